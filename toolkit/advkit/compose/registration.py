"""Whether a plugin's methods fit the hook specification; refused with a sentence before anything runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pluggy

from ..errors import UnknownHook, did_you_mean
from ..hooks import Hooks
from ..hookspec import HookSpec
from ..plugin import CORE, Plugin
from .declarations import check_declarations

HOOKS: dict[str, HookSpec] = {
    name: function.spec for name, function in vars(Hooks).items() if hasattr(function, "spec")
}
"""Every hook, in the order of the specification."""

_ORDERING = ("tryfirst", "trylast", "wrapper", "hookwrapper")


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
    for attribute in dir(plugin_type):
        method = inspect.getattr_static(plugin_type, attribute)
        marks = getattr(method, "advkit_impl", None)
        if marks is not None:
            _check_method(name, attribute, method, marks)
        elif attribute in HOOKS:
            raise UnknownHook(
                f"Plugin {name} has a method named like the hook {attribute}, but it is not marked: "
                "put @hookimpl on it, or rename it."
            )


def _check_method(plugin: str, name: str, method: Callable[..., Any], marks: dict[str, Any]) -> None:
    where = f"Plugin {plugin}, hook {name}"
    if name not in HOOKS:
        raise UnknownHook(
            f"Plugin {plugin} marks {name} as a hook, but there is no such hook.{did_you_mean(name, HOOKS)}"
            " advkit/hooks.py lists them."
        )
    used = [mark for mark in _ORDERING if marks.get(mark)]
    if used:
        raise UnknownHook(
            f"{where}: {used[0]} is refused, because results must not depend on call order; "
            "declare `order` on the class for chained hooks."
        )
    if marks.get("specname") or marks.get("optionalhook"):
        raise UnknownHook(
            f"{where}: specname and optionalhook are refused, because they silence misspellings; "
            "name the method like the hook."
        )
    specified = HOOKS[name].signature.parameters
    signature = inspect.signature(method)
    for position, (argument, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise UnknownHook(f"{where}: argument {argument} must be an ordinary one, not *, ** or keyword-only.")
        if position == 0:
            continue  # self
        if parameter.default is not inspect.Parameter.empty:
            raise UnknownHook(
                f"{where}: argument {argument} has a default, and pluggy would never fill it in; remove the default."
            )
        if argument not in specified:
            raise UnknownHook(
                f"{where}: there is no argument {argument}.{did_you_mean(argument, specified)} "
                f"Known: {', '.join(list(specified)[1:])}."
            )
        _check_annotation(where, argument, parameter.annotation, specified[argument].annotation)
    _check_annotation(where, "return", signature.return_annotation, HOOKS[name].signature.return_annotation)


def _check_annotation(where: str, argument: str, given: object, specified: object) -> None:
    # `| None` is what a method sees whose `demands` leave an argument out.
    if given is inspect.Signature.empty or _plain(given).removesuffix("|None") == _plain(specified).removesuffix(
        "|None"
    ):
        return
    raise UnknownHook(
        f"{where}: {argument} is annotated {_plain(given)}, but the hook's is {_plain(specified)}; "
        "correct or remove the annotation."
    )


def _plain(annotation: object) -> str:
    """An annotation as text without module names: typing.Optional and quotes aside, what one would type."""
    if annotation is None or annotation is type(None):
        return "None"
    text = annotation if isinstance(annotation, str) else None
    if text is None:
        text = annotation.__name__ if isinstance(annotation, type) else repr(annotation)
    return re.sub(r"\b(?:\w+\.)+", "", text).replace("'", "").replace('"', "").replace(" ", "")


def register(plugins: list[Plugin]) -> pluggy.PluginManager:
    """A plugin manager that holds exactly `plugins`, all of them checked."""
    manager = pluggy.PluginManager("advkit")
    manager.add_hookspecs(Hooks)
    for plugin in plugins:
        check(type(plugin))
        manager.register(plugin, name=plugin.name)
    manager.check_pending()
    return manager
