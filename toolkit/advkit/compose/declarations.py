"""What a plugin says of itself beside its hooks: read, and blamed on it where it is of a wrong type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any

from ..api_version import unfit
from ..errors import HookContract, PluginImport, UnknownHook, blamed, did_you_mean
from ..hookspec import VIEWS, HookSpec, Rule
from ..options import under
from ..plugin import Budgets, Order, Plugin, PluginOptions
from ..settings import SECTIONS
from ..types import Passes

REPLACEABLE = tuple(f"{of}.{key}" for of in ("attack", "update", "data") for key in SECTIONS[of].model_fields)
"""Settings of what hooks answer."""


def check_declarations(plugin_type: type[Plugin], name: str, hooks: Mapping[str, HookSpec]) -> None:
    """The class attributes that are read before there is an object; what they say of hooks that are none is refused."""
    if sentence := unfit(name, plugin_type.api_version):
        raise PluginImport(sentence)

    def companion(value: object) -> bool:
        if not isinstance(value, tuple) or len(value) != 2:
            return False
        return isinstance(value[0], str) and isinstance(value[1], Mapping)

    for attribute, fits, expected in (
        ("prefers", lambda value: True, "settings and values, such as {'attack.init': 'normal'}"),
        ("companions", companion, "hooks and (plugin, options), such as {'weight_perturbation': ('awp', {})}"),
        ("replaces", _texts, "hooks and settings, such as {'inner_attack': ('attack.init',)}"),
        ("order", _place, "hooks and advkit.Order, such as {'target_label': Order()}"),
    ):
        stated = getattr(plugin_type, attribute)
        names = isinstance(stated, Mapping) and all(isinstance(key, str) for key in stated)
        if not names or not all(fits(value) for value in stated.values()):
            raise UnknownHook(f"Plugin {name}: {attribute} must be {expected}, not {stated!r:.80}.")
    for wish in plugin_type.companions:
        if (hook := wish.partition(":")[0]) not in hooks:
            raise UnknownHook(f"Plugin {name}: companions has {wish}, which is no hook.{did_you_mean(hook, hooks)}")
    for hook in plugin_type.replaces:
        if hook not in hooks:
            raise UnknownHook(f"Plugin {name}: replaces has {hook}, which is no hook.{did_you_mean(hook, hooks)}")
        if not hasattr(plugin_type, hook):
            raise UnknownHook(
                f"Plugin {name}: replaces has {hook}, which it does not answer; answer it, or take it out."
            )
        for key in plugin_type.replaces[hook]:
            if key not in REPLACEABLE:
                near = did_you_mean(key, REPLACEABLE)
                raise UnknownHook(f"Plugin {name}: replaces[{hook!r}] has {key}, which no hook stands in for.{near}")
    chains = [hook for hook, spec in hooks.items() if spec.rule is Rule.CHAIN]
    for hook in plugin_type.order:
        if hook not in chains:
            near = did_you_mean(hook, chains) or f" Those are {', '.join(chains)}."
            raise UnknownHook(f"Plugin {name}: order has {hook}, which is no chained hook.{near}")
    if not isinstance(plugin_type.Options, type) or not issubclass(plugin_type.Options, PluginOptions):
        raise UnknownHook(f"Plugin {name}: Options must be a class that derives from advkit.PluginOptions.")
    for key, (other, _) in under(plugin_type.Options).items():
        if other not in plugin_type.Options.model_fields:
            raise UnknownHook(f"Plugin {name}: the option {key} is under {other}, which is no option of it.")


def build(plugin_type: type[Plugin], options: PluginOptions) -> Plugin:
    """The plugin with its options; what its own constructor raises says whose it is."""
    with blamed(f"in plugin {plugin_type.name}, __init__"):
        plugin = plugin_type(options)
    if not hasattr(plugin, "taken"):
        raise HookContract(f"Plugin {plugin_type.name}: __init__ must call super().__init__(options).")
    return plugin


def _texts(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(text, str) for text in value)


def _place(value: object) -> bool:
    return isinstance(value, Order) and _texts(value.before) and _texts(value.after)


def _numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) and isfinite(value) and value >= 0 for value in values)


def _counts(*values: object) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


_DECLARED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "active": (lambda value: isinstance(value, bool), "True or False"),
    "demands": (
        lambda value: value is None or (_texts(value) and {*value} <= {*VIEWS, "success", "gradient_at"}),
        "names of arguments, or None",
    ),
    "detached": (lambda value: _texts(value) and {*value} <= {*VIEWS}, "names of logits"),
    "passes": (
        lambda value: isinstance(value, Passes) and _counts(*vars(value).values()),
        "advkit.Passes",
    ),
    "largest_budget": (
        lambda value: isinstance(value, Budgets) and _numbers(value.attack, value.label),
        "advkit.Budgets",
    ),
    "largest_scale": (_numbers, "a number, such as 1.0"),
    "terms": (lambda value: _texts(value), "names of loss terms, such as ('base_loss',)"),
    "by_sample": (lambda value: isinstance(value, bool), "True or False"),
    "every": (lambda value: _counts(value) and value >= 1, "a whole number from 1"),
    "steps_at_shift": (lambda value: isinstance(value, bool), "True or False"),
    "join": (lambda value: _texts(value), "a list of sentences, empty where there is none"),
}
"""What a plugin says of itself beside its hooks: how that must look."""


def by_default(plugin: Plugin, name: str) -> bool:
    """Whether a plugin leaves it to `Plugin` to say this."""
    return getattr(type(plugin), name) is getattr(Plugin, name) and name not in vars(plugin)


def stated(plugin: Plugin) -> frozenset[str]:
    """What of that which may change with the epoch it does not leave to `Plugin`."""
    return frozenset(name for name in ("active", "demands", "detached", "passes") if not by_default(plugin, name))


def declared(plugin: Plugin, name: str, *arguments: object) -> Any:
    """What a plugin declares: a property's value, or a method's answer. HookContract where it is of a wrong type."""
    if by_default(plugin, name):
        value = getattr(plugin, name)
        return value(*arguments) if callable(value) else value  # it fits; a plan asks hundreds of times
    hook = f" of {arguments[0]}" if arguments and isinstance(arguments[0], str) else ""
    with blamed(f"in plugin {plugin.name}, {name}{hook}"):
        value = getattr(plugin, name)
        value = value(*arguments) if callable(value) else value
    fits, expected = _DECLARED[name]
    if not fits(value):
        raise HookContract(f"Plugin {plugin.name}: {name} must be {expected}, not {value!r:.80}.")
    return value
