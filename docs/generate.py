"""Fills the generated parts of the documentation from the code.

    python docs/generate.py            rewrites what stands between the markers
    python docs/generate.py --check    fails if that would change anything

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of `PARTS`. Plugins, hooks, public
names and rooms are found, never listed here.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from string import ascii_uppercase
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

import advkit
from advkit import OptionError, Passes, Plugin, Schedule, registry
from advkit.compose.registration import HOOKS, hooks_of
from advkit.config import recipes as recipe_files
from advkit.config.layer import Layer
from advkit.config.resolve import Resolved, resolve
from advkit.errors import HookConflict
from advkit.hookspec import MAY_DEMAND
from advkit.options import validate
from advkit.settings import SECTIONS
from advkit.testing import CHECKS, Subject
from advkit.testing.subject import Check

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DATA = {"digits": "Digits", "fashion": "Fashion-MNIST"}
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

BUILT_INS = tuple(registry.names("plugin"))
PAPER_EPS = 8 / 255
NUMBERS = [str(number) for number in range(1, 1000)]
LETTERS_OF_REFUSALS = [*ascii_uppercase, *(f"{a}{b}" for a in ascii_uppercase for b in ascii_uppercase)]


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------------- hooks, settings, options


def hooks() -> str:
    """Every hook, its rule, and the built-ins that answer it."""
    rows = (
        (
            f"[`{hook}`](#{hook})",
            spec.rule.value,
            ", ".join(name for name in BUILT_INS if hook in hooks_of(_plugin(name))),
        )
        for hook, spec in HOOKS.items()
    )
    return table(("hook", "rule", "built-in answers"), rows)


def phase(name: str) -> str:
    """What the specification says of each hook of a phase."""
    parts = []
    for spec in (spec for spec in HOOKS.values() if spec.phase == name):
        views = [f"`{argument}`" for argument in spec.arguments if argument in MAY_DEMAND[spec.phase]]
        facts = [
            "asked by `advkit.train` and by a `Step`" if spec.asked_by == "step" else "asked by `advkit.train` alone",
            f"may demand {', '.join(views)}{', without gradient' if spec.detached else ''}" if views else "",
            "its owner may prefer settings" if spec.prefers else "",
            f"default: {spec.default}" if spec.default else "",
        ]
        parts += [
            f"### {spec.name}",
            f"**{spec.rule.value}** `({', '.join(spec.arguments)}) -> {spec.signature.return_annotation}`",
            f"A{'; '.join(fact for fact in facts if fact).removeprefix('a')}.",
            inspect.getdoc(spec.function) or "",
        ]
    return "\n\n".join(parts)


def settings() -> str:
    """Every setting of a run."""
    rows = (
        (f"`{section}.{key}`", f"`{_plain(field.default)}`" if field.default != "" else "", field.description)
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
    )
    return table(("setting", "default", "meaning"), rows)


def options(name: str) -> str:
    """The options of a plugin. Defaults that depend on eps are also given at the papers' 8/255."""
    fields = _plugin(name).Options
    at_paper = validate(fields, {}, where=name, eps=PAPER_EPS)
    header = ["option", "paper", "default", "at eps 8/255", "unit", "allowed", "meaning"]
    rows = [
        [
            f"`{key}`",
            _extra(field).get("symbol", ""),
            f"`{_plain(field.default)}`",
            f"{_plain(getattr(at_paper, key))}" if isinstance(field.default, str) and "eps" in field.default else "",
            _extra(field).get("unit", ""),
            _allowed(field),
            field.description or "",
        ]
        for key, field in fields.model_fields.items()
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
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in signs.items()
        if hasattr(limit, key)
    ]
    if field.annotation is Schedule:
        limits.append(">= 0, or a schedule")
    return ", ".join(limits)


# ---------------------------------------------------------------------- compositions


def passes() -> str:
    """Passes a step with K = 10: of every built-in alone, and of what the recipes combine."""
    recipes = (recipe_files.load(name) for name in recipe_files.names())
    combined = {",".join(recipe.table["plugins"]): tuple(recipe.table["plugins"]) for recipe in recipes}
    sets = [(name,) for name in BUILT_INS] + [chosen for chosen in combined.values() if len(chosen) > 1]
    rows = [_row("none: PGD-AT"), _row("none, `attack.steps=0`: standard training", settings={"attack.steps": 0})]
    for chosen in sets:
        if not _fate(chosen)[0]:
            rows.append(_row(f"`{','.join(chosen)}`", chosen))
    header = ("plugins", "attack forward", "input backward", "update forward", "full backward", "x PGD-AT")
    return table(header, rows)


def _row(said: str, chosen: Sequence[str] = (), settings: Mapping[str, object] = {}) -> list[object]:
    resolved = _resolved(chosen, settings)
    spent: Mapping[str, Passes] = max((stage for _, stage in resolved.composition.stages()), key=_price).passes
    attack, update = spent["attack"], spent["update"]
    if resolved.composition.added:
        said += f" (with {' and '.join(f'`{name}`' for name in sorted(resolved.composition.added))})"
    return [said, attack.forward, attack.input_backward, update.forward, update.full_backward, _cost(spent)]


def _price(stage: Any) -> int:
    return int(stage.cost)


@cache
def composition() -> str:
    """The built-ins two by two; below, what the notes say."""
    alone = {name: _fate((name,)) for name in BUILT_INS}
    refusals: list[str] = []
    cautions: list[str] = []
    rows = []
    for row in BUILT_INS:
        cells = [f"`{row}`"]
        for column in BUILT_INS:
            refusal, said = alone[row] if row == column else _fate(tuple(sorted((row, column))))
            if refusal:
                cells.append(f"refused {_marks([refusal], refusals, LETTERS_OF_REFUSALS)}")
            else:
                known = [] if row == column else alone[row][1] + alone[column][1]
                cells.append(f"runs {_marks([text for text in said if text not in known], cautions, NUMBERS)}".strip())
        rows.append(cells)
    return "\n".join(
        [
            table(("", *(f"`{name}`" for name in BUILT_INS)), rows),
            "",
            *(f"- ({mark}) {text}" for mark, text in zip(LETTERS_OF_REFUSALS, refusals, strict=False)),
            *(f"- ({mark}) {text}" for mark, text in zip(NUMBERS, cautions, strict=False)),
        ]
    )


@cache
def _fate(chosen: tuple[str, ...]) -> tuple[str, list[str]]:
    """Why a set of plugins is refused, "" if it runs, and its cautions."""
    try:
        return "", list(_resolved(chosen).cautions)
    except (HookConflict, OptionError) as refusal:
        return str(refusal), []


def _resolved(chosen: Iterable[str], settings: Mapping[str, object] = {}) -> Resolved:
    # Named as Step names what is passed to it: data set and model need not be looked up for each set.
    layer = Layer("docs", {"model.name": "python:model", "data.name": "python:data", **settings})
    return resolve([_plugin(name) for name in chosen], [layer])


@cache
def _plugin(name: str) -> type[Plugin]:
    plugin: type[Plugin] = registry.load("plugin", name)
    return plugin


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
            f"{row['net']}, eps {row['eps']}: {_clean(row)}{row['attack']} {row['robust']} ({row['source']})"
            for row in recipe.published
        )
        plugins = ",".join(recipe.table["plugins"])
        cost = "" if recipe.at_epochs is None else f"{recipe.at_epochs:.0f}"
        shown = f"`{plugins}`" if plugins else "none"
        rows.append((f"`{name}`", shown, recipe.summary, cost, "; ".join(figures) or "none at hand"))
    return table(("recipe", "plugins", "what", "AT epochs", "published, in percent"), rows)


def _clean(figure: Mapping[str, Any]) -> str:
    return f"clean {figure['clean']}, " if "clean" in figure else ""


def notes() -> str:
    """What each recipe's file says about paper and code."""
    lines = []
    for name in recipe_files.names():
        recipe = recipe_files.load(name)
        if not name.endswith(recipe_files.MINI):
            lines += [f"### {name}", "", f"{recipe.paper}.", "", *(f"- {note}" for note in recipe.notes), ""]
    return "\n".join(lines).rstrip()


def _cost(spent: Mapping[str, Passes]) -> str:
    """Relative to PGD-AT with ten steps: 10 forwards and input backwards, one forward and full backward."""
    pgd_at = Passes(10, 10).cost + Passes(1, full_backward=1).cost
    return f"{sum(passes.cost for passes in spent.values()) / pgd_at:.2f}"


# ---------------------------------------------------------------------- conformance


def checks() -> str:
    """What each check expects of a plugin."""
    return table(("check", "what must hold"), ((f"`check_{one.name}`", one.expected) for one in CHECKS.values()))


def _mark(check: Check, subject: Subject) -> str:
    if not check.applies(subject):
        return "•"
    return "○" if subject.declared.get(check.name) else ""


@cache
def conformance() -> str:
    """Which check has something to look at in which built-in; that it holds is what the tests say."""
    subjects = [Subject.of(name) for name in BUILT_INS]
    rows = ((f"`{subject.name}`", *(_mark(one, subject) for one in CHECKS.values())) for subject in subjects)
    return table(("", *(one.name.replace("_", " ") for one in CHECKS.values())), rows)


# ---------------------------------------------------------------------- the methods, the rooms, the public names


def methods() -> str:
    """Every built-in with the first line of its class, which `advkit plugins list` shows too."""
    rows = (
        (f"[`{name}`](docs/methods/{name}.md)", (inspect.getdoc(_plugin(name)) or "").splitlines()[0])
        for name in BUILT_INS
    )
    return table(("plugin", "what it does"), rows)


@cache
def _audited() -> list[dict[str, Any]]:
    """What results/methods.py measured."""
    runs: list[dict[str, Any]] = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))["runs"]
    return runs


def measured(name: str) -> str:
    """Whether PGD overstates the nets that were trained with a built-in."""
    lines = []
    for plugins in dict.fromkeys(run["plugins"] for run in _audited()):
        if name in plugins.split(","):
            said = ". ".join(_verdict(run) for run in _audited() if run["plugins"] == plugins)
            who = f" with `{plugins}`" if plugins != name else ""
            lines.append(
                f"- Measured{who} ([methods](../../results/methods.md): five epochs, one seed, 200 test images, "
                f"intervals over images). {said}."
            )
    return "\n".join(fill(line, 118, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _verdict(run: Mapping[str, Any]) -> str:
    base = next(other for other in _audited() if other["data"] == run["data"])
    figures = {row["name"]: row["accuracy"] for row in run["attacks"]}
    gap, (low, high) = run["gap"]
    alarms = ", ".join(f"`{alarm}`" for alarm in run["alarms"]) or "no alarm"
    return (
        f"{DATA[run['data']]}: pgd-20 {figures['pgd-20']:.3f}, AutoAttack {figures['autoattack']:.3f}, "
        f"a gap of {gap:.3f} ({low:.3f} to {high:.3f}) where PGD-AT has {base['gap'][0]:.3f}: "
        f"{'**overstated by PGD**' if run['overstated'] else 'no sign here that PGD overstates it'}, {alarms}"
    )


def attacks() -> str:
    """What an evaluation can attack with: how each is typed, and the first line of its class."""
    rows = [[", ".join(f"`{text}`" for text in typed), one.summary] for one, typed in registry.attacks()]
    return table(("typed", "what it does"), rows)


@cache
def _script(path: Path) -> Any:
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _test_of_rooms() -> Any:
    """Their order, and how imports are read, stand once: in the test that holds them."""
    return _script(Path(__file__).parents[1] / "tests" / "test_rooms.py")


def proofs() -> str:
    """Which tests hold each built-in to its equations and its place among others."""
    return _proofs(engines=False)


def engines() -> str:
    """Which built-ins are tested on each engine."""
    return _proofs(engines=True)


def _proofs(*, engines: bool) -> str:
    read = _script(Path(__file__).with_name("proofs.py"))
    columns = (*read.OF_ONE, *read.OF_ALL)
    shown = [place for place, column in enumerate(columns, 1) if (column in read.ENGINES) == engines]
    rows = ([row[0], *(row[place] for place in shown)] for row in read.rows())
    return table(("plugin", *(columns[place - 1] for place in shown)), rows)


def rooms() -> str:
    """The tree: every module with the first sentence of its docstring."""
    held = _test_of_rooms()
    lines = ["```text", "toolkit/advkit/"]
    for room in held.ROOMS:
        indent = "  "
        if room:
            path = held.CORE / room / "__init__.py"
            lines.append(f"  {room + '/':<30}{_sentence(path)}")
            indent = "    "
        inside = [(name, path) for name, path in held.modules().items() if held.room(name) == room and name != room]
        for name, path in sorted(inside):
            if name in held.FRONT:
                continue
            words = name.split(".")[1:] if room else [name]
            file = "/".join(words) + ("/" if path.name == "__init__.py" else ".py")
            lines.append(f"{indent + file:<32}{_sentence(path)}")
    return "\n".join([*lines, "```"])


def _sentence(path: Path) -> str:
    """The first one, if not more than the docstring's first line: "et al." ends none."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
    return re.split(r"(?<!al)(?<!Fig)(?<!Eq)(?<=[.?]) (?=[A-Z])", first)[0]


def imports() -> str:
    """Which rooms each room imports from."""
    held = _test_of_rooms()
    known = held.modules()
    taken: dict[str, set[str]] = {room: set() for room in held.ROOMS}
    for name, path in known.items():
        if name not in held.FRONT:
            targets = held.imports(name, path, path.read_text(encoding="utf-8"), known)
            taken[held.room(name)] |= {held.room(target) for target, typing in targets if target and not typing}
    rows = [
        (
            f"`{room}`" if room else "the shelf",
            ", ".join(
                f"`{other}`" if other else "the shelf" for other in held.ROOMS if other in taken[room] and other != room
            )
            or "nothing",
        )
        for room in held.ROOMS
    ]
    return table(("room", "imports from"), rows)


def api() -> str:
    """The public names by room: name, signature, first line of the docstring."""
    homes = sorted(advkit._HOME.items(), key=lambda home: (_room(home[1][0]), home[0]))
    parts = []
    for room, names in groupby(homes, key=lambda home: _room(home[1][0])):
        rows = [(f"`{name}`", signature(name), docstring(name)) for name, _ in names]
        parts += [f"## {room or 'The shelf'}", "", table(("name", "signature", "what it is"), rows), ""]
    return "\n".join(parts).rstrip()


def _room(module: str) -> str:
    head, dot, _ = module.removeprefix(".").partition(".")
    return head if dot else ""


def docstring(name: str) -> str:
    """The first line of a public name's docstring; of a value, of the text below its assignment. "" if it has none."""
    value = getattr(advkit, name)
    module, there = advkit._HOME[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        text = "" if (text or "").startswith(f"{there}(") else text or ""  # what dataclasses write of themselves
    else:
        source = inspect.getsource(importlib.import_module(module, "advkit"))
        body = ast.parse(source).body
        below = {
            ast.unparse(target): after.value.value
            for node, after in pairwise(body)
            if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            for target in node.targets
        }
        text = str(below.get(there, ""))
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def signature(name: str) -> str:
    """How a public name is called; "" for what is no class or function."""
    value = getattr(advkit, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)) or (
        inspect.isclass(value) and issubclass(value, Exception | Enum)
    ):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return ""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"`{inspect.Signature(plain)}`"


# ---------------------------------------------------------------------- files

PARTS: dict[str, Callable[[], str]] = {
    "hooks": hooks,
    **{f"phase {name}": lambda name=name: phase(name) for name in MAY_DEMAND},  # type: ignore[misc]
    "settings": settings,
    "passes": passes,
    "composition": composition,
    "recipes": recipes,
    "notes": notes,
    "methods": methods,
    "checks": checks,
    "conformance": conformance,
    "attacks": attacks,
    "proofs": proofs,
    "engines": engines,
    "rooms": rooms,
    "imports": imports,
    "api": api,
    **{f"options {name}": lambda name=name: options(name) for name in BUILT_INS},  # type: ignore[misc]
    **{  # type: ignore[misc]
        f"measured {name}": lambda name=name: measured(name)
        for name in BUILT_INS
        if any(name in run["plugins"].split(",") for run in _audited())
    },
}


def render(text: str) -> str:
    """`text` with every generated part as it should be. Raises KeyError for a name that is not in `PARTS`."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{PARTS[block[2]]()}\n\n{block[3]}", text)


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [*(path for path in [HERE.parent / "README.md"] if path.exists()), *sorted(HERE.rglob("*.md"))]


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
