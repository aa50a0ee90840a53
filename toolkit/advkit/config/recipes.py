"""Recipes: published settings by name. A recipe is data, a run file with a table [recipe] about it.

Packages ship them: an entry point in group "advkit.recipes" names a package, and every `*.toml` in its folder is a
recipe. A table [mini] holds what to change for a twin called NAME-mini, which trains in minutes on a laptop. Nothing
here imports torch: a recipe becomes a layer of a run in `Request.of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import PluginImport, PluginLoad, cut, did_you_mean, named, spoken
from ..reading import read
from .toml import parsed

GROUP = "advkit.recipes"
MINI = "-mini"
FRACTION = 0.1
"""The default of validation.fraction, which is defined where torch is."""
HELD_OUT = (
    "advkit holds {share:.0%} of the training images out, which choose the checkpoint, and trains on the others; with "
    "validation.fraction=0 it trains on all, and the last epoch counts."
)


@dataclass(frozen=True)
class Recipe:
    """Settings, options and plugins of a run (`table`, as in a run file), and what is known about it."""

    name: str
    distribution: str
    summary: str
    paper: str
    mini: str | None
    """The name of its twin; a twin's is its own."""
    published: tuple[Mapping[str, Any], ...]
    """Figures in percent: net, clean, attack, robust, eps, source; `clean` may be absent. A twin has none."""
    notes: tuple[str, ...]
    """Where paper and official code differ, and what advkit does; beside figures, on how many images it trains."""
    table: Mapping[str, Any]
    at_epochs: float | None = None
    """What it costs, as a plan says it, in epochs of PGD-AT with ten steps; None where its file does not say."""

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "published": list(self.published), "notes": list(self.notes)}


def names() -> list[str]:
    """All recipes, each followed by its twin."""
    known = []
    for name, (path, _) in sorted(_files().items()):
        known += [name, f"{name}{MINI}"] if "mini" in _read(path) else [name]
    return known


def load(name: str) -> Recipe:
    """The recipe called `name`. Raises PluginLoad where there is none, PluginImport where its file is damaged."""
    files = _files()
    whole = name if name in files else name.removesuffix(MINI)
    table = _read(files[whole][0]) if whole in files else {}
    if whole not in files or (name != whole and "mini" not in table):
        hint = did_you_mean(name, names())
        if spoken(name) in registry.names("plugin") and spoken(name) not in files:
            hint = f" {spoken(name)} is a plugin: {named('--plugins', spoken(name))}."
        raise PluginLoad(f"Unknown recipe {cut(name)}.{hint} `advkit recipes list` shows them all.")
    path, distribution = files[whole]
    about, mini = table.pop("recipe", {}), table.pop("mini", None)
    _check(about, path)
    twin = f"{whole}{MINI}" if mini is not None else None
    summary, published, notes = about["summary"], about.get("published", ()), about.get("notes", ())
    cost = about.get("at_epochs")
    if name != whole:
        table = _merged(table, mini)
        summary, published, cost = f"{summary}, small enough for a laptop", (), None
    if published and (share := table.get("validation", {}).get("fraction", FRACTION)):
        notes = [*notes, HELD_OUT.format(share=share)]
    return Recipe(name, distribution, summary, about["paper"], twin, tuple(published), tuple(notes), table, cost)


def called(name: str) -> list[str]:
    """The recipes that go by a name, or begin with it: those of "ISEAT" are iseat-cifar10 and others."""
    known = [recipe for recipe in names() if not recipe.endswith(MINI)]
    same = [recipe for recipe in known if recipe == spoken(name)]
    return same or [recipe for recipe in known if recipe.startswith(f"{spoken(name)}-")]


def _files() -> dict[str, tuple[Path, str]]:
    """Path and distribution of every recipe, by name."""
    files: dict[str, tuple[Path, str]] = {}
    for point in registry.points(GROUP):
        owner = registry.distribution(point)[0]
        home = registry.source(point.value)
        for path in sorted(home.parent.glob("*.toml")) if home else ():
            if path.stem in files:
                raise PluginLoad(
                    f"The recipe name {path.stem} is registered by {files[path.stem][1]} and {owner}; "
                    "uninstall one of them."
                )
            files[path.stem] = (path, owner)
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        return parsed(read(path, 1 << 20).decode())
    except (OSError, ValueError) as error:
        raise _damaged(path, next(iter(str(error).splitlines()), type(error).__name__)) from None


def _merged(table: Mapping[str, Any], mini: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with the values of `mini` in place of its own. Another model has other options: [model] is replaced."""
    merged = dict(table)
    for key, value in mini.items():
        deep = isinstance(value, dict) and isinstance(table.get(key), dict) and key != "model"
        merged[key] = _merged(table[key], value) if deep else value
    return merged


FIGURE = {"net": str, "clean": float, "attack": str, "robust": float, "eps": str, "source": str}


def _check(about: Any, path: Path) -> None:
    """Say what is wrong with a table [recipe]."""
    if not isinstance(about, dict) or not all(isinstance(about.get(key), str) for key in ("summary", "paper")):
        raise _damaged(path, "[recipe] needs a summary and a paper")
    if stray := about.keys() - {"summary", "paper", "published", "notes", "at_epochs"}:
        raise _damaged(path, f"[recipe] has an unknown {min(stray)}")
    if type(about.get("at_epochs", 1.0)) is not float:
        raise _damaged(path, "at_epochs must be a number such as 200.0")
    notes, published = about.get("notes", []), about.get("published", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise _damaged(path, "notes must be a list of texts")
    for figure in published if isinstance(published, list) else [None]:
        types = {key: type(value) for key, value in figure.items()} if isinstance(figure, dict) else {}
        if types != {key: known for key, known in FIGURE.items() if key in types or key != "clean"}:
            raise _damaged(path, f"a published figure needs {', '.join(FIGURE)}, shares in percent such as 54.04")


def _damaged(path: Path, reason: str) -> PluginImport:
    return PluginImport(f"The recipe {path.stem} can not be read ({reason}); reinstall or repair {path}.")
