"""Fills the generated tables of the documentation from the code.

    python docs/generate.py            rewrites what stands between the markers
    python docs/generate.py --check    fails if that would change anything

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from advkit import OptionError, Passes, Plugin, Schedule, Step, registry
from advkit.compose.registration import RULES, hooks_of
from advkit.config import recipes as recipe_files
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import HookConflict
from advkit.options import validate
from advkit.settings import SECTIONS

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

METHODS = ("cat-eps", "dirichlet-ls", "cat-margin", "trades", "mart", "awp", "lsiw", "av-rank")
BUILT_INS = (*METHODS, "eps-ramp", "vulnerability-log")
PAPER_EPS = 8 / 255
DIGITS = [str(number) for number in range(1, 100)]

LETTERS = {
    "trades.beta": "β",
    "mart.lam": "λ",
    "cat-margin.kappa": "κ",
    "cat-eps.eta": "η",
    "cat-eps.eps_max": "ε_max",
    "dirichlet-ls.c": "c",
    "lsiw.lam": "λ",
    "awp.gamma": "γ",
}
"""How the papers call an option."""

MEASURED: Sequence[tuple[str, Sequence[str], Mapping[str, object], Mapping[str, Mapping[str, object]]]] = (
    ("none: PGD-AT", (), {}, {}),
    ("none, `attack.steps=0`: standard training", (), {"attack.steps": 0}, {}),
    ("`dirichlet-ls`", ("dirichlet-ls",), {}, {}),
    ("`cat-eps`", ("cat-eps",), {}, {}),
    ("`cat-eps,dirichlet-ls`", ("cat-eps", "dirichlet-ls"), {}, {}),
    ("`cat-eps,dirichlet-ls,cat-margin`", ("cat-eps", "dirichlet-ls", "cat-margin"), {}, {}),
    ("`trades`", ("trades",), {}, {}),
    ("`mart`", ("mart",), {}, {}),
    ("`awp`", ("awp",), {}, {}),
    ("`awp`, gamma 0", ("awp",), {}, {"awp": {"gamma": 0.0}}),
    ("`trades,awp`", ("trades", "awp"), {}, {}),
    ("`mart,awp`", ("mart", "awp"), {}, {}),
    ("`lsiw` (with `awp` and `av-rank`)", ("lsiw",), {}, {}),
    ("`lsiw`, lam 0", ("lsiw",), {}, {"lsiw": {"lam": 0.0}}),
    ("`cat-eps,dirichlet-ls,lsiw`", ("cat-eps", "dirichlet-ls", "lsiw"), {}, {}),
)
"""The rows of the pass-count table: what is said, plugins, settings, options."""


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------------- hooks, settings, options


def hooks() -> str:
    """Every hook, its rule, and the built-ins that answer it."""
    kinds = {name: registry.load("plugin", name) for name in BUILT_INS}
    rows = (
        (f"[`{hook}`](#{hook})", rule.value, ", ".join(n for n, kind in kinds.items() if hook in hooks_of(kind)))
        for hook, rule in RULES.items()
    )
    return table(("hook", "rule", "built-in answers"), rows)


def settings() -> str:
    """Every setting of a run."""
    rows = (
        (f"`{section}.{key}`", f"`{_plain(field.default)}`" if field.default != "" else "", field.description)
        for section, kind in SECTIONS.items()
        for key, field in kind.model_fields.items()
    )
    return table(("setting", "default", "meaning"), rows)


def options(name: str) -> str:
    """The options of a plugin. Defaults that depend on eps are also given at the papers' 8/255."""
    kind: type[Plugin] = registry.load("plugin", name)
    at_paper = validate(kind.Options, {}, where=name, eps=PAPER_EPS)
    header = ["option", "paper", "default", "at eps 8/255", "unit", "allowed", "meaning"]
    rows = [
        [
            f"`{key}`",
            LETTERS.get(f"{name}.{key}", ""),
            f"`{_plain(field.default)}`",
            f"{_plain(getattr(at_paper, key))}" if isinstance(field.default, str) and "eps" in field.default else "",
            _extra(field).get("unit", ""),
            _allowed(field),
            field.description or "",
        ]
        for key, field in kind.Options.model_fields.items()
    ]
    kept = [column for column in range(len(header)) if column in (0, 2) or any(row[column] for row in rows)]
    return table((header[c] for c in kept), ([row[c] for c in kept] for row in rows))


def _extra(field: Any) -> Mapping[str, str]:
    return field.json_schema_extra or {}


def _plain(value: object) -> str:
    value = value.plain() if isinstance(value, Schedule) else value
    if isinstance(value, bool):
        return str(value).lower()  # as it is typed
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _allowed(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(each, key)}" for each in field.metadata for key, sign in signs.items() if hasattr(each, key)
    ]
    if field.annotation is Schedule:
        limits.append(">= 0, or a schedule")
    return ", ".join(limits)


# ---------------------------------------------------------------------- compositions


def passes() -> str:
    """Passes a step, counted by the ledger of one real step with K = 10."""
    rows = []
    for said, plugins, chosen, given in MEASURED:
        found = _one_step(plugins, chosen, given)
        attack, update = found["attack"], found["update"]
        rows.append((said, attack.forward, attack.input_backward, update.forward, update.full_backward, _cost(found)))
    header = ("plugins", "attack forward", "input backward", "update forward", "full backward", "x PGD-AT")
    return table(header, rows)


@cache
def composition() -> str:
    """The methods two by two; below, what the notes say, and how all subsets fare."""
    alone = {name: _fate([name]) for name in METHODS}
    refusals: list[str] = []
    cautions: list[str] = []
    rows = []
    for row in METHODS:
        cells = [f"`{row}`"]
        for column in METHODS:
            refusal, said = alone[row] if row == column else _fate([row, column])
            if refusal:
                cells.append(f"refused {_marks([refusal], refusals, ascii_uppercase)}")
            else:
                known = [] if row == column else alone[row][1] + alone[column][1]
                cells.append(f"runs {_marks([each for each in said if each not in known], cautions, DIGITS)}".strip())
        rows.append(cells)
    counts = Counter(_fate(chosen)[0] for size in range(len(METHODS) + 1) for chosen in combinations(METHODS, size))
    return "\n".join(
        [
            table(("", *(f"`{name}`" for name in METHODS)), rows),
            "",
            *(f"- ({mark}) {text}" for mark, text in zip(ascii_uppercase, refusals, strict=False)),
            *(f"- ({mark}) {text}" for mark, text in zip(DIGITS, cautions, strict=False)),
            "",
            f"All {counts.total()} subsets:",
            "",
            table(
                ("subsets", "result"),
                [(counts.pop(""), "runs"), *((count, f"refused: {text}") for text, count in counts.most_common())],
            ),
        ]
    )


def _fate(chosen: Iterable[str]) -> tuple[str, list[str]]:
    """Why a set of plugins is refused, "" if it runs, and its cautions."""
    try:
        # Named as Step names what is passed to it: data set and model need not be looked up 300 times.
        layer = Layer("docs", {"model.name": "python:model", "data.name": "python:data"})
        resolved = resolve([_kind(name) for name in chosen], [layer])
    except (HookConflict, OptionError) as refusal:
        return str(refusal), []
    return "", list(resolved.cautions)


@cache
def _kind(name: str) -> type[Plugin]:
    found: type[Plugin] = registry.load("plugin", name)
    return found


def _marks(texts: Iterable[str], known: list[str], marks: Sequence[str]) -> str:
    """The marks of texts, which are numbered as they come."""
    known += [text for text in dict.fromkeys(texts) if text not in known]
    return " ".join(f"({marks[known.index(text)]})" for text in texts)


def recipes() -> str:
    """Every recipe with its published figures."""
    rows = []
    for name in recipe_files.names():
        recipe = recipe_files.load(name)
        if name.endswith(recipe_files.MINI):
            continue
        figures = (
            f"{each['net']}, eps {each['eps']}: {_clean(each)}{each['attack']} {each['robust']} ({each['source']})"
            for each in recipe.published
        )
        plugins = ",".join(recipe.table["plugins"])
        rows.append((f"`{name}`", f"`{plugins}`" if plugins else "none", recipe.summary, "; ".join(figures)))
    return table(("recipe", "plugins", "what", "published, in percent"), rows)


def _clean(figure: Mapping[str, Any]) -> str:
    return f"clean {figure['clean']}, " if "clean" in figure else ""


def notes() -> str:
    """What each recipe's file says about paper and code."""
    found = []
    for name in recipe_files.names():
        recipe = recipe_files.load(name)
        if not name.endswith(recipe_files.MINI):
            found += [f"### {name}", "", f"{recipe.paper}.", "", *(f"- {note}" for note in recipe.notes), ""]
    return "\n".join(found).rstrip()


def _one_step(
    plugins: Sequence[str], chosen: Mapping[str, object], given: Mapping[str, Mapping[str, object]]
) -> Mapping[str, Passes]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    step = Step(net, torch.optim.SGD(net.parameters(), 0.1), plugins, num_samples=3, settings=chosen, options=given)
    return step(torch.full((3, 1, 2, 2), 0.5), torch.arange(3), torch.arange(3), epoch=0).passes


def _cost(found: Mapping[str, Passes]) -> str:
    """Relative to PGD-AT with ten steps: 10 forwards and input backwards, one forward and full backward."""
    pgd_at = Passes(10, 10).cost + Passes(1, full_backward=1).cost
    return f"{sum(each.cost for each in found.values()) / pgd_at:.2f}"


# ---------------------------------------------------------------------- files

TABLES: dict[str, Callable[[], str]] = {
    "hooks": hooks,
    "settings": settings,
    "passes": passes,
    "composition": composition,
    "recipes": recipes,
    "notes": notes,
    **{f"options {name}": lambda name=name: options(name) for name in BUILT_INS},  # type: ignore[misc]
}


def render(text: str) -> str:
    """`text` with every generated table as it should be. Raises KeyError for a name that is not in `TABLES`."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted(HERE.rglob("*.md"))


def main(arguments: Sequence[str]) -> int:
    """Rewrite the pages, or with --check only say which are out of date. Returns the exit code."""
    stale = [(path, render(path.read_text(encoding="utf-8"))) for path in pages()]
    stale = [(path, text) for path, text in stale if text != path.read_text(encoding="utf-8")]
    for path, text in stale:
        if "--check" in arguments:
            print(f"{path} is out of date; run: python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
