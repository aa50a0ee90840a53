"""Whether a plugin's methods fit the hook specification; refused with a sentence before anything runs."""

from __future__ import annotations

import re
from collections import ChainMap
from typing import Any

import pluggy

from ..errors import UnknownHook
from ..hooks import Hooks
from ..hookspec import HookSpec
from ..plugin import CORE, Plugin
from .declarations import check_declarations
from .signatures import check_method

HOOKS: dict[str, HookSpec] = {
    name: function.spec for name, function in vars(Hooks).items() if hasattr(function, "spec")
}
"""Every hook, in the order of the specification."""


def hooks_of(plugin_type: type[Plugin]) -> tuple[str, ...]:
    """The hooks that a checked plugin class answers, in the specification's order."""
    return tuple(name for name in HOOKS if hasattr(getattr(plugin_type, name, None), "advkit_impl"))


def check(plugin_type: type[Plugin]) -> None:
    """Refuse a plugin class whose methods do not fit `Hooks`. Raises UnknownHook."""
    if not isinstance(plugin_type, type) or not issubclass(plugin_type, Plugin):
        raise UnknownHook(f"{plugin_type!r} is not a subclass of advkit.Plugin; derive it from advkit.Plugin.")
    name = getattr(plugin_type, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UnknownHook(
            f"Plugin class {plugin_type.__name__} needs a kebab-case class attribute `name`, such as 'my-plugin'."
        )
    if name == CORE:
        raise UnknownHook(f"Plugin class {plugin_type.__name__} is called {CORE}, as what no plugin owns; rename it.")
    check_declarations(plugin_type, name, HOOKS)
    # What Plugin has itself is left out: every run asks a dozen times. Nothing is remembered: notebooks change classes.
    own = ChainMap(*(dict(vars(base)) for base in plugin_type.__mro__ if base not in Plugin.__mro__))
    for attribute in sorted(own):
        method = own[attribute]
        marks = getattr(method, "advkit_impl", None)
        if marks is not None:
            check_method(HOOKS, name, attribute, method, marks)
        elif attribute in HOOKS:
            raise UnknownHook(
                f"Plugin {name} has a method named like the hook {attribute}, but it is not marked: "
                "put @hookimpl on it, or rename it."
            )


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Of what is called like a hook; `check` has refused marks elsewhere, and pluggy would read every attribute."""
        return super().parse_hookimpl_opts(plugin, name) if name in HOOKS else None


def register(plugins: list[Plugin]) -> pluggy.PluginManager:
    """A plugin manager that holds exactly `plugins`, whose classes are checked."""
    manager = _Manager("advkit")
    manager.add_hookspecs(Hooks)
    for plugin in plugins:
        manager.register(plugin, name=plugin.name)
    manager.check_pending()
    return manager
