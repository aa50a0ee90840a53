"""Finding plugins, data sets and models by entry point. Only what is named gets imported; the rest is read as text."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import TypeVar

from .api_version import unfit
from .errors import (
    DataError,
    HookContract,
    PluginImport,
    PluginLoad,
    blamed,
    cut,
    did_you_mean,
    says,
    shown,
    without_temporary_files,
)
from .explained import is_somebodys
from .unreadable import tolerate

A = TypeVar("A")

GROUPS = {
    "plugin": "advkit.plugins",
    "data set": "advkit.datasets",
    "model": "advkit.models",
    "attack": "advkit.attacks",
    "tracker": "advkit.trackers",
}
"""What can be registered, and the entry point group it is registered in."""

OWN = ("advkit", "advkit_plugins")
"""advkit's own packages."""

ALLOWED = "ADVKIT_LOAD_PLUGINS"
"""Environment variable: comma-separated names of the only plugins that may be loaded; empty allows none."""


@dataclass(frozen=True)
class Description:
    """A registered name, without importing it. `hooks` and `summary` are None where there is no source to read."""

    name: str
    distribution: str
    version: str
    hooks: list[str] | None
    summary: str | None
    literals: Mapping[str, object]
    """What the class body sets to a literal, such as an attack's `spellings`."""

    def as_dict(self) -> dict[str, object]:
        """For people: all but the literals."""
        return {key: value for key, value in vars(self).items() if key != "literals"}


def names(group: str) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({point.name for point in points(GROUPS[group])})


def describe(group: str) -> list[Description]:
    """Everything registered of a kind, sorted by name; names that two distributions claim appear twice."""
    registered = points(GROUPS[group])
    return sorted(map(described, registered), key=lambda one: (one.name, one.distribution))


def owners(group: str) -> dict[str, str]:
    """Distribution and version by registered name; no source is read."""
    read: dict[int, str] = {}  # a distribution parses its metadata whenever it is asked
    for point in (registered := points(GROUPS[group])):
        if id(point.dist) not in read:
            read[id(point.dist)] = " ".join(distribution(point))
    return {point.name: read[id(point.dist)] for point in registered}


def attacks() -> list[tuple[Description, tuple[str, ...]]]:
    """Every attack with how it is typed, in the order of tables and help."""

    def place(one: Description) -> tuple[int, str]:
        said = one.literals.get("place")
        return said if isinstance(said, int) else 50, one.name

    rows = []
    for one in sorted(describe("attack"), key=place):
        said = one.literals.get("spellings")
        typed = [text for text in said if isinstance(text, str)] if isinstance(said, (tuple, list)) else []
        rows.append((one, tuple(typed) or (one.name,)))
    return rows


def spellings() -> list[str]:
    """How all attacks are typed: clean, fgsm, pgd-K, ..."""
    return list(dict.fromkeys(text for _, typed in attacks() for text in typed))


def attacks_of(typed: str) -> list[str]:
    """The registered names that an attack as it is typed is, or begins with, the shortest first: pgd of pgd-20x5-l2."""
    fitting = (name for name in names("attack") if typed == name or typed.startswith((f"{name}-", f"{name}:")))
    return sorted(fitting, key=len)


def attack_of(typed: str) -> str | None:
    """The longest of `attacks_of`."""
    return next(reversed(attacks_of(typed)), None)


def load(group: str, name: str) -> type:
    """Import the class registered as `name`.

    Raises PluginLoad where it is unknown, claimed by two distributions or not allowed, PluginImport where the
    import fails.
    """
    claims = [point for point in points(GROUPS[group]) if point.name == name]
    if not claims:
        command = "advkit plugins list" if group == "plugin" else ", ".join(names(group))
        hint = f"`{command}` shows what is installed." if group == "plugin" else f"Installed: {command}."
        if group == "plugin" and any(mark in name for mark in ":./"):
            hint = (
                "The command line takes installed plugins; a class of your own works from Python, plugins=[Class], or "
                "as a package: docs/writing-a-plugin.md."
            )
        if group in ("model", "data set") and any(mark in name for mark in ":./"):
            hint += " One of your own is named FILE.py:NAME."
            if ".py:" in name:  # where only what is registered can be shown or prepared
                hint = "It is code of your own, which plan, train and evaluate take; this one is of what is installed."
        trackers = names("tracker") if group == "plugin" else []
        if name in trackers:
            raise PluginLoad(f"{name} is a tracker and no plugin: train, plan, ablate and sweep take it, no other.")
        raise PluginLoad(f"Unknown {group} {cut(name)}.{did_you_mean(name, [*names(group), *trackers])} {hint}")
    if len(claims) > 1:
        owners = " and ".join(sorted(distribution(point)[0] for point in claims))
        raise PluginLoad(f"The {group} name {name} is registered by {owners}; uninstall one of them.")
    allowed = os.environ.get(ALLOWED)
    if group == "plugin" and allowed is not None and name not in [part.strip() for part in allowed.split(",")]:
        raise PluginLoad(f"The plugin {name} may not be loaded: {ALLOWED} allows only '{allowed}'.")
    try:
        loaded = claims[0].load()
        fine = isinstance(loaded, type) and getattr(loaded, "name", None) == name
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and whatever else a module raises while it is imported
        stated = described(claims[0]).literals.get("api_version", "")  # which may say why
        if group == "plugin" and (sentence := unfit(name, stated)):
            raise PluginImport(sentence) from error
        raise PluginImport(
            f"The {group} {name} of distribution {distribution(claims[0])[0]} can not be imported "
            f"({type(error).__name__}: {says(error)}); reinstall or repair it."
        ) from error
    if not fine:
        raise PluginImport(
            f"The {group} {name} is registered as {claims[0].value}, which is not a class with name = '{name}'; "
            "correct its entry point."
        )
    return loaded  # type: ignore[no-any-return]


def by_advkit(given: type) -> bool:
    """Whether a class is advkit's own."""
    return str(given.__module__).partition(".")[0] in OWN


def answer(group: str, given: type, kinds: tuple[type, ...], method: Callable[..., A], *arguments: object) -> A:
    """What a method of a registered class returns. If the class is not advkit's own, failures name it.

    Raises HookContract for what is none of `kinds`; of data sets and models DataError or PluginImport for a file that
    can not be read.
    """
    if by_advkit(given):
        return method(*arguments)
    name = getattr(given, "name", given.__name__)
    owner = owners(group).get(name)
    whose = f"the {group} {name} of {owner}" if owner else f"the {group} {name}"
    called = "__init__" if method is given else method.__name__
    try:
        with blamed(f"in {called} of {whose}"):
            answered = method(*arguments)
    except OSError as error:
        kind = {"data set": DataError, "model": PluginImport}.get(group)  # those that read files
        if kind is None or is_somebodys(error) or without_temporary_files(error):
            raise
        raise kind(
            f"{called} of {whose} can not use a file ({type(error).__name__}: {says(error)}); restore it."
        ) from error
    if not isinstance(answered, kinds):
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise HookContract(f"{called} of {whose} returns {shown(answered)}; return {expected}.")
    return answered


def points(group: str) -> list[EntryPoint]:
    """The entry points of a group. A distribution whose own can not be read has none (`unreadable`)."""
    return list(_read_once(_stamps()).get(group, ()))


@lru_cache(maxsize=8)
def _read_once(stamps: tuple[object, ...]) -> Mapping[str, Sequence[EntryPoint]]:
    """By group: to read those of one takes as long as to read all."""
    try:
        every = entry_points()
        return {name: tuple(every.select(group=name)) for name in every.groups if name.startswith("advkit.")}
    except Exception:  # of one distribution, broken in any way, but of which is not said
        tolerate()
    readable: dict[str, list[EntryPoint]] = {}
    for installed in distributions():
        with suppress(Exception):
            readable.setdefault(installed.name, [*installed.entry_points])  # the first on the path is imported
    found = [point for own in readable.values() for point in own]
    return {name: [point for point in found if point.group == name] for name in {point.group for point in found}}


def _stamps() -> tuple[object, ...]:
    """Other ones where something was installed or removed, by what importlib.metadata itself goes by."""
    stamps: list[object] = [*map(id, sys.meta_path)]
    for place in sys.path:
        with suppress(OSError):
            stamps += place, os.stat(place or ".").st_mtime_ns
    return tuple(stamps)


def distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version; "unknown" where its metadata are broken."""
    with suppress(Exception):
        if point.dist is not None:
            return point.dist.name or "unknown", point.dist.version or "unknown"
    return "unknown", "unknown"


def described(point: EntryPoint) -> Description:
    """What an entry point registers, from its source."""
    hooks, summary, literals = _read(point)
    return Description(point.name, *distribution(point), hooks, summary, literals)


def _read(point: EntryPoint) -> tuple[list[str] | None, str | None, Mapping[str, object]]:
    """Hooks, first docstring line and literals of the entry point's class, from its source."""
    try:
        path = source(point.module)
        tree = ast.parse(path.read_text(encoding="utf-8") if path else "")
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        chosen = classes[point.attr]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError, KeyError, AttributeError):
        return None, None, {}  # AttributeError: the entry point's value is malformed
    members = [member for base in _with_bases(chosen, dict(classes)) for member in base.body]
    hooks = {
        member.name
        for member in members
        if isinstance(member, ast.FunctionDef) and any(_is_hookimpl(mark) for mark in member.decorator_list)
    }
    literals: dict[str, object] = {}
    for member in members:
        if isinstance(member, (ast.Assign, ast.AnnAssign)) and member.value is not None:
            target, value = member.targets[0] if isinstance(member, ast.Assign) else member.target, member.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):  # classes, shape = 10, (1, 8, 8)
                pairs = list(zip(target.elts, value.elts, strict=False))
            for name, one in pairs:
                if isinstance(name, ast.Name):
                    with suppress(ValueError):  # no literal
                        literals.setdefault(name.id, ast.literal_eval(one))
    lines = (ast.get_docstring(chosen) or "").splitlines()
    return sorted(hooks), lines[0] if lines else "", literals


def _with_bases(chosen: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    yield chosen
    for base in chosen.bases:
        if isinstance(base, ast.Name) and (parent := classes.pop(base.id, None)):  # once, or A(B), B(A) has no end
            yield from _with_bases(parent, classes)


def _is_hookimpl(mark: ast.expr) -> bool:
    if isinstance(mark, ast.Call):
        mark = mark.func
    return (mark.id if isinstance(mark, ast.Name) else getattr(mark, "attr", "")) == "hookimpl"


def source(module: str, beside: str = "") -> Path | None:
    """Where a module's source lies, in the folder `beside` or on sys.path, without importing it or its packages."""
    path = [beside, *sys.path] if beside else None
    for part in module.split("."):
        try:  # by its last name: of a folder without __init__.py Python asks for the package above, which is not loaded
            spec = PathFinder.find_spec(part, path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
