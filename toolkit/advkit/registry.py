"""Finding plugins, data sets and models by entry point. Only what is named gets imported; the rest is read as text."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path

from .errors import PluginImport, PluginLoad, did_you_mean

GROUPS = {
    "plugin": "advkit.plugins",
    "data set": "advkit.datasets",
    "model": "advkit.models",
    "attack": "advkit.attacks",
}
"""What can be registered, and the entry point group it is registered in."""

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


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({point.name for point in entry_points(group=GROUPS[kind])})


def describe(kind: str) -> list[Description]:
    """Everything registered of a kind, sorted by name; names that two distributions claim appear twice."""
    points = entry_points(group=GROUPS[kind])
    described = [_describe(point) for point in points]
    return sorted(described, key=lambda one: (one.name, one.distribution))


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


def attack_of(typed: str) -> str | None:
    """The registered name that an attack as it is typed is, or begins with; the longest: pgd of pgd-20x5-l2."""
    return max(
        (name for name in names("attack") if typed == name or typed.startswith((f"{name}-", f"{name}:"))),
        key=len,
        default=None,
    )


def load(kind: str, name: str) -> type:
    """Import the class registered as `name`.

    Raises PluginLoad where it is unknown, claimed by two distributions or not allowed, PluginImport where the
    import fails.
    """
    points = [point for point in entry_points(group=GROUPS[kind]) if point.name == name]
    if not points:
        command = "advkit plugins list" if kind == "plugin" else ", ".join(names(kind))
        hint = f"`{command}` shows what is installed." if kind == "plugin" else f"Installed: {command}."
        if kind == "plugin" and any(mark in name for mark in ":./"):
            hint = (
                "The command line takes installed plugins; a class of your own works from Python, plugins=[Class], or "
                "as a package: docs/writing-a-plugin.md."
            )
        raise PluginLoad(f"Unknown {kind} {name}.{did_you_mean(name, names(kind))} {hint}")
    if len(points) > 1:
        owners = " and ".join(sorted(_distribution(point)[0] for point in points))
        raise PluginLoad(f"The {kind} name {name} is registered by {owners}; uninstall one of them.")
    allowed = os.environ.get(ALLOWED)
    if kind == "plugin" and allowed is not None and name not in [each.strip() for each in allowed.split(",")]:
        raise PluginLoad(f"The plugin {name} may not be loaded: {ALLOWED} allows only '{allowed}'.")
    try:
        found = points[0].load()
    except (Exception, SystemExit) as error:
        raise PluginImport(
            f"The {kind} {name} of distribution {_distribution(points[0])[0]} can not be imported "
            f"({type(error).__name__}: {error}); reinstall or repair it."
        ) from error
    if not isinstance(found, type) or getattr(found, "name", None) != name:
        raise PluginImport(
            f"The {kind} {name} is registered as {points[0].value}, which is not a class with name = '{name}'; "
            "correct its entry point."
        )
    return found


@cache
def code(kind: type) -> dict[str, str]:
    """{"code": digest of version and file of a class of a third party}, {} for advkit's own.

    What depends on such a class is told apart by it: the same name may compute something else after an edit. Asked
    once for a class: what runs is what was imported, whatever is saved meanwhile.
    """
    package = kind.__module__.partition(".")[0]
    if package in ("advkit", "advkit_plugins"):
        return {}
    found = hashlib.sha256()
    for distribution in packages_distributions().get(package, ()):
        found.update(f"{distribution} {version(distribution)}\n".encode())
    with suppress(KeyError, AttributeError, OSError):  # a class of an interactive session has no file
        found.update(Path(sys.modules[kind.__module__].__file__ or "").read_bytes())
    return {"code": found.hexdigest()[:12]}


def _distribution(point: EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return "unknown", "unknown"
    return point.dist.name or "unknown", point.dist.version or "unknown"  # metadata may be broken


def _describe(point: EntryPoint) -> Description:
    hooks, summary, literals = _read(point)
    return Description(point.name, *_distribution(point), hooks, summary, literals)


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
            target = member.targets[0] if isinstance(member, ast.Assign) else member.target
            if isinstance(target, ast.Name):
                with suppress(ValueError):  # no literal
                    literals.setdefault(target.id, ast.literal_eval(member.value))
    lines = (ast.get_docstring(chosen) or "").splitlines()
    return sorted(hooks), lines[0] if lines else "", literals


def _with_bases(chosen: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    yield chosen
    for base in chosen.bases:
        if isinstance(base, ast.Name) and (found := classes.pop(base.id, None)):  # once, or A(B), B(A) has no end
            yield from _with_bases(found, classes)


def _is_hookimpl(mark: ast.expr) -> bool:
    if isinstance(mark, ast.Call):
        mark = mark.func
    return (mark.id if isinstance(mark, ast.Name) else getattr(mark, "attr", "")) == "hookimpl"


def source(module: str) -> Path | None:
    """Where a module's source lies, without importing it or its packages."""
    path: list[str] | None = None
    for depth, _ in enumerate(parts := module.split(".")):
        try:
            spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
