"""Checks of what a plugin says of itself, before anything runs."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint

from .. import registry
from ..compose.declarations import declared
from ..compose.registration import HOOKS, check as registered
from ..config import runfile
from ..errors import AdvkitError, OptionError
from ..hookspec import Rule
from ..options import validate
from ..plugin import Costs, Order
from ..types import Passes
from .company import resolved
from .subject import Came, Subject, check

PAPER_EPS = 8 / 255


@check()
def check_registration(subject: Subject) -> None:
    """It is accepted, with a name, a summary and hooks, and says of itself the same when asked again."""
    registered(subject.plugin)
    if not subject.hooks:
        raise Came("it answers no hook; mark a method with @advkit.hookimpl")
    if not (subject.plugin.__doc__ or "").strip():
        raise Came("its class has no docstring, whose first line `advkit plugins list` shows")
    run = resolved(subject.company, subject.given(subject.company))
    plugin = next(plugin for plugin in run.composition.plugins if plugin.name == subject.name)
    costs = Costs(10, Passes(1), Passes(1))
    for hook in subject.hooks:
        for name, arguments in (
            ("active", (hook, 0)), ("demands", (hook, 0)), ("detached", (hook, 0)), ("passes", (hook, costs)),
            ("terms", ()), ("by_sample", ()), ("steps_at_shift", ()), ("largest_budget", (PAPER_EPS,)),
        ):  # fmt: skip
            first, second = (declared(plugin, name, *arguments) for _ in range(2))
            if first != second:
                raise Came(f"{name}{arguments} is {first!r}, and {second!r} when asked again")


def _no_source(subject: Subject) -> str:
    try:
        registered(subject.plugin)
    except AdvkitError:
        return "check_registration fails"
    top_level = getattr(sys.modules.get(subject.plugin.__module__), subject.plugin.__qualname__, None)
    return "" if top_level is subject.plugin else "its class stands in no module, from where it could be listed"


@check(_no_source)
def check_listing(subject: Subject) -> None:
    """Its hooks and summary can be read from its module's source, which `advkit plugins list` does not import."""
    plugin = subject.plugin
    point = EntryPoint(subject.name, f"{plugin.__module__}:{plugin.__qualname__}", registry.GROUPS["plugin"])
    described = registry.described(point)
    if described.hooks is None:
        raise Came(f"no source of {plugin.__module__} is on the path")
    if described.hooks != sorted(subject.hooks):
        raise Came(
            f"the source says {', '.join(described.hooks) or 'no hook'}, the class answers "
            f"{', '.join(sorted(subject.hooks))}; write its hooks into its own module"
        )
    if not described.summary:
        raise Came("the source has no docstring of the class")


@check()
def check_options(subject: Subject) -> None:
    """Options have a meaning, come back from a run file as they were, and refuse what is unknown or no number."""
    subject.company  # noqa: B018 - NotRun where it can not be registered
    fields = subject.plugin.Options.model_fields
    for name, field in fields.items():
        if not field.description:
            raise Came(f"the option {name} has no help; write option(..., help=...)")
    for name, value in (("no-such-option", 1), *((name, float("nan")) for name in fields)):
        try:
            validate(subject.plugin.Options, {name: value}, where=subject.name, eps=PAPER_EPS, decays=range(1, 10_000))
        except OptionError:
            continue
        raise Came(f"{subject.name}.{name} = {value} was accepted; leave model_config as PluginOptions has it")
    text = runfile.dump(resolved(subject.company, subject.given(subject.company)))
    layer = runfile.parse(tomllib.loads(text), "run.toml")
    again = runfile.dump(resolved(subject.company, layer.options, layer.settings))
    if changed := runfile.difference(text, again):
        raise Came(f"read from its run file it is another run: {changed[0]}")


def _in_no_chain(subject: Subject) -> str:
    chains = [hook for hook in subject.hooks if HOOKS[hook].rule is Rule.CHAIN]
    return "" if chains and subject.plugin.order else "it declares no place on a chained hook"


@check(_in_no_chain)
def check_places(subject: Subject) -> None:
    """Its places on chained hooks contradict neither each other nor those of installed plugins."""
    subject.company  # noqa: B018 - NotRun where it can not be registered
    for hook, place in subject.plugin.order.items():
        if hook not in subject.hooks:
            raise Came(f"it has a place on {hook}, which it does not answer")
        for other in subject.others:
            theirs = getattr(other, "order", {}).get(hook, Order())
            earlier = other.name in place.after or subject.name in theirs.before
            later = other.name in place.before or subject.name in theirs.after
            if earlier and later:
                raise Came(f"{other.name} would come both before and after it on {hook}")
        if subject.name in {*place.before, *place.after}:
            raise Came(f"on {hook} it would come before itself")
