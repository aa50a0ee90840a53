"""A plugin under examination, and what a check is: a function that takes one and raises where it misbehaves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Literal

from .. import registry
from ..compose.registration import HOOKS, hooks_of
from ..errors import AdvkitError, HookContract, NoTemporaryFiles, blamed, blames, says, without_temporary_files
from ..options import validate
from ..plugin import Plugin
from .company import Choice, Options, alone, installed, refusal, registers
from .small import Trained, needs_the_loop, trained

_HOOK = re.compile(r"(?:the contract of|, hook) (\w+)")
"""The hook that a failure names."""


class Misbehaves(AdvkitError):
    """A plugin fails a check: what was expected, and what came."""

    def __init__(self, plugin: str, check: str, expected: str, came: str) -> None:
        super().__init__(f"{plugin} fails check_{check}. Expected: {expected} Came: {came}")
        self.plugin, self.check, self.expected, self.came = plugin, check, expected, came


class Came(Exception):
    """What came instead of what a check expects; it becomes `Misbehaves`."""


class NotRun(Exception):
    """Why a check has nothing to look at, or can not look."""


@dataclass
class Subject:
    """A plugin, the options to try it with, and whom it needs beside it."""

    plugin: type[Plugin]
    options: Mapping[str, object] = field(default_factory=dict)
    """Its options, under which a few steps show what it does."""
    neutral: Mapping[str, object] | None = None
    """Those under which it does nothing; None where nobody has said."""
    set_aside: list[type[Plugin]] = field(default_factory=list)
    """Installed plugins that no run can have; and that fail by themselves, where they stood in the way."""
    presupposed: dict[str, str] = field(default_factory=dict)  # by check, how it ended

    @classmethod
    def of(
        cls,
        plugin: Choice | Subject,
        options: Mapping[str, object] | None = None,
        neutral: Mapping[str, object] | None = None,
    ) -> Subject:
        """From the name of an installed plugin, or its class.

        What is not given the class may say itself, by class methods `example_options()` and `neutral_options()`. Raises
        PluginLoad where it can not be loaded, OptionError where it has not these options.
        """
        if isinstance(plugin, Subject):
            return plugin
        found: Any = registry.load("plugin", plugin) if isinstance(plugin, str) else plugin
        with blamed(f"in plugin {getattr(found, 'name', '')}, its options to try it with"):
            own: Mapping[str, object] = getattr(found, "example_options", dict)()
            silent = getattr(found, "neutral_options", lambda: None)()
        for given in (options, neutral):
            if given:
                validate(found.Options, given, where=found.name, eps=8 / 255, decays=range(1, 10_000))
        return cls(found, own if options is None else options, silent if neutral is None else neutral)

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks it answers."""
        return hooks_of(self.plugin)

    @property
    def held_constant(self) -> str:
        """What its loss depends on and its gradient does not, in its own words."""
        return str(getattr(self.plugin, "held_constant", ""))

    @property
    def falls_short(self) -> str:
        """Why its attack ends elsewhere than at the best point within its radius, in its own words."""
        return str(getattr(self.plugin, "falls_short", ""))

    @property
    def declared(self) -> dict[str, str]:
        """By check, the words with which it says that the check does not hold of it and should not."""
        return {"optimum": self.falls_short, "gradient": self.held_constant}

    @cached_property
    def others(self) -> list[type[Plugin]]:
        """The installed plugins but itself, and but those that no run can have, which are set aside."""
        sound, self.set_aside = installed(but=self.name)
        return sound

    @cached_property
    def company(self) -> tuple[Any, ...]:
        """The smallest set with it that runs; NotRun where it can not be registered."""
        if not registers(self.plugin):
            raise NotRun("check_registration fails")
        return (self.plugin,) if not self.refused((self.plugin,)) else alone(self.plugin, self.others, self.refused)

    def among_the_sound(self, work: Callable[[], None]) -> None:
        """`work` beside others; where it fails, once more without those of them who are broken, which are set aside."""
        try:
            work()
        except NotRun:
            raise
        except Exception:
            broken = [other for other in self.others if isinstance(Subject.of(other).plain, Exception)]
            if not broken:
                raise
            self.set_aside += broken
            self.others = [other for other in self.others if other not in broken]
            work()

    def refused(self, chosen: tuple[Any, ...]) -> str:
        """Why a set is refused under the subject's options."""
        return refusal(chosen, self.given(chosen))

    def given(self, chosen: tuple[Any, ...]) -> Options:
        """Its options by plugin, for a set that it may be in."""
        return {self.name: self.options} if self.options and self.plugin in chosen else {}

    @cached_property
    def by_the_loop(self) -> bool:
        """Whether it takes `advkit.train` to try it."""
        return needs_the_loop(self.company)

    def trained(self, chosen: tuple[Any, ...] | None = None, **arguments: Any) -> Trained:
        """A small training of it and whom it needs, or of a set."""
        plugins = self.company if chosen is None else chosen
        return trained(plugins, **{"options": self.given(plugins), "by_the_loop": needs_the_loop(plugins), **arguments})

    @cached_property
    def plain(self) -> Trained | Exception:
        """Two epochs on ordinary images, watched all the time; or how they failed."""
        try:
            return self.trained(settings={"run.check_hooks": True})
        except (NotRun, NoTemporaryFiles):
            raise
        except Exception as error:
            return error

    @cached_property
    def failures(self) -> list[Exception]:
        """How the plain training fails; and what else breaks a contract once the hook that failed is not answered."""
        found: list[Exception] = []
        left_out = {"setup"}  # without it the others have nothing to work with
        plugin, error = self.plugin, self.plain
        while isinstance(error, Exception) and (not found or isinstance(error, HookContract)):
            found.append(error)
            hook = next(iter(_HOOK.findall(told(error))), "setup")
            if hook in left_out:
                break
            left_out.add(hook)
            plugin = _without(plugin, hook)
            rest = Subject(plugin, self.options)
            rest.others = self.others
            try:
                error = rest.plain
            except Exception:  # nothing is left of it, or nothing that can be asked
                break
        return found

    def run_plainly(self, rule: str = "") -> Trained:
        """The plain training. Came where it breaks `rule`, NotRun where another, which another check is for."""
        if not isinstance(self.plain, Exception):
            return self.plain
        broken = [(error.rule if isinstance(error, HookContract) else "step", told(error)) for error in self.failures]
        if mine := [sentence for of, sentence in broken if of == rule]:
            raise Came(" And: ".join(mine))
        raise NotRun(f"check_{broken[0][0]} fails")

    @cached_property
    def reference(self) -> Trained:
        """The same training without anybody watching."""
        self.run_plainly()
        return self.trained()

    def repeatable(self) -> Trained:
        """The reference; NotRun where it is not even equal to itself."""
        self.presuppose("draws")
        return self.reference

    def presuppose(self, name: str) -> None:
        """NotRun where another check fails, without which this one says nothing."""
        self.presupposed[name] = self.presupposed.get(name) or CHECKS[name].outcome(self).state
        if self.presupposed[name] == "fails":
            raise NotRun(f"check_{name} fails")

    def answers(self, phase: str) -> bool:
        """Whether it answers a hook of a phase."""
        return any(HOOKS[hook].phase == phase for hook in self.hooks)


def _without(plugin: type[Plugin], hook: str) -> type[Plugin]:
    """The plugin, but for its answer to a hook."""

    def active(self: Plugin, name: str, epoch: int) -> bool:
        return name != hook and plugin.active(self, name, epoch)

    return type(plugin.__name__, (plugin,), {"active": active, "__doc__": plugin.__doc__})


def told(error: BaseException) -> str:
    """What an exception says, with where it came from."""
    text = str(error) if isinstance(error, AdvkitError) else f"{type(error).__name__}: {says(error)}"
    return " ".join((text, *(f"({note})" for note in blames(error))))


@dataclass(frozen=True)
class Finding:
    """How a check ended."""

    check: str
    expected: str
    state: Literal["holds", "fails", "not run"]
    said: str = ""
    """What came, or why it was not run."""


@dataclass(frozen=True)
class Check:
    """One check, by the name of its function without `check_`."""

    name: str
    expected: str
    """What must hold, the first line of its docstring."""
    function: Callable[[Subject], None]
    applies: Callable[[Subject], str]
    """Why it has nothing to look at, "" where it has."""

    def __call__(self, subject: Subject) -> None:
        """Raises Misbehaves, or NotRun."""
        try:
            if reason := self.applies(subject):
                raise NotRun(reason)
            self.function(subject)
        except Came as came:
            raise Misbehaves(subject.name, self.name, self.expected, str(came)) from None
        except (NotRun, NoTemporaryFiles):
            raise
        except (Exception, SystemExit) as error:
            if absent := without_temporary_files(error):
                raise absent from None
            raise Misbehaves(subject.name, self.name, self.expected, told(error)) from error

    def outcome(self, subject: Subject) -> Finding:
        """What there is to say of a subject."""
        try:
            self(subject)
        except Misbehaves as failure:
            return Finding(self.name, self.expected, "fails", failure.came)
        except NotRun as reason:
            return Finding(self.name, self.expected, "not run", str(reason))
        aside = [other.name for other in subject.set_aside] if self.name in ("order", "pairs") else []
        return Finding(self.name, self.expected, "holds", f"without {', '.join(aside)}, broken alone" if aside else "")


CHECKS: dict[str, Check] = {}
"""Every check, in the order in which they are run."""


def check(
    applies: Callable[[Subject], str] = lambda subject: "",
) -> Callable[[Callable[[Subject], None]], Callable[..., None]]:
    """Marks a function `check_NAME(subject)` that raises `Came`; one calls it with a plugin's name or class."""

    def marked(function: Callable[[Subject], None]) -> Callable[..., None]:
        name = function.__name__.removeprefix("check_")
        CHECKS[name] = Check(name, (function.__doc__ or "").splitlines()[0], function, applies)

        @wraps(function)
        def called(
            plugin: Choice | Subject,
            *,
            options: Mapping[str, object] | None = None,
            neutral: Mapping[str, object] | None = None,
        ) -> None:
            CHECKS[name](Subject.of(plugin, options, neutral))

        return called

    return marked


def findings(subject: Subject) -> Iterator[Finding]:
    """All checks, one after the other."""
    yield from (one.outcome(subject) for one in CHECKS.values())
