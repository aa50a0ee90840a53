"""The documentation says what the code does: signatures, options, commands, outputs, keys and links."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import methods
import pytest

import advkit
from advkit import Order, errors, registry, rng
from advkit.cli.main import cli, run
from advkit.compose.registration import HOOKS, hooks_of
from advkit.config import recipes
from advkit.hookspec import Rule
from advkit.options import validate
from advkit.settings import SECTIONS
from advkit.testing.package import new_package

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "third_party_plugin"
PAGES = sorted(
    {*ROOT.glob("*.md"), *(page for room in ("docs", "examples", "results") for page in (ROOT / room).rglob("*.md"))}
)
CARDS = registry.names("plugin")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its first two lines."""
    lines = f"\n{text}".split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------- generated tables


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=named)
def test_generated_tables_are_up_to_date(generate: ModuleType, page: Path) -> None:
    assert generate.render(read(page)) == read(page), "run: python docs/generate.py"


def test_every_part_is_shown_and_a_stale_one_is_noticed(generate: ModuleType) -> None:
    texts = [read(page) for page in generate.pages()]
    assert sorted(name for text in texts for name in re.findall(r"<!-- generated: (.+?) -->", text)) == sorted(
        generate.PARTS
    )
    loop = read(DOCS / "loop.md")
    stale = loop.replace("| none: PGD-AT | 10 |", "| none: PGD-AT | 11 |", 1)
    assert stale != loop and generate.render(stale) == loop


def test_check_fails_where_a_page_is_stale(generate: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page = tmp_path / "hooks.md"
    page.write_text(read(DOCS / "hooks.md").replace("| chain |", "| sum |", 1))
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0
    assert page.read_text() == read(DOCS / "hooks.md")


def card(name: str) -> str:
    """The text of a plugin's card; fails with a sentence where there is none."""
    page = DOCS / "methods" / f"{name}.md"
    if not page.exists():
        pytest.fail(
            f"The plugin {name} has no card: write docs/methods/{name}.md with the headings of the others.",
            pytrace=False,
        )
    return read(page)


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_the_options_of_their_plugins(name: str) -> None:
    fields = registry.load("plugin", name).Options.model_fields
    text = card(name)
    column = text.split("\n## Options\n", 1)[1].split("| option ", 1)[1].splitlines()[0].split("|").index(" default ")
    shown = {quoted(row[0])[0]: [*quoted(row[column]), ""][0] for row in rows(text, "## Options")}
    assert shown.keys() == fields.keys()
    for key, field in fields.items():
        default = field.default.plain() if isinstance(field.default, advkit.Schedule) else field.default
        text = str(default).lower() if isinstance(default, bool) else str(default)
        assert shown[key] in (text, text.removesuffix(".0"))


def test_cards_have_one_shape() -> None:
    shape = r"^(## .+|- (?:Paper|Defaults|Weakness): )"
    shapes = {tuple(re.findall(shape, card(name), re.MULTILINE)) for name in CARDS}
    assert len(shapes) == 1
    assert shapes.pop()[:3] == ("- Paper: ", "- Defaults: ", "- Weakness: ")
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == set(CARDS)


@pytest.mark.parametrize(("missing", "sentence"), [(card, "has no card"), (methods.declared, "has no parity test")])
def test_a_plugin_without_card_or_parity_test_is_named(missing: Any, sentence: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"The plugin never-written {sentence}: write "):
        missing("never-written")


@pytest.mark.parametrize("name", CARDS)
def test_every_plugin_has_a_parity_test(name: str) -> None:
    methods.declared(name)
    _, path = methods.methods()[name]
    assert re.search(r"^def test_\w+", read(path), re.MULTILINE), f"{path.name} tests nothing"


def test_no_method_has_dropped_out_of_a_proof(generate: ModuleType) -> None:
    """Docs/proofs.md: in every list, or refused there; equations compared and told apart, no option left out."""
    proofs = generate._script(DOCS / "proofs.py")
    for name, row in zip(CARDS, proofs.rows(), strict=True):
        cells = dict(zip((*proofs.OF_ONE, *proofs.OF_ALL), row[1:], strict=True))
        in_the_loop = methods.needs_the_loop([name])
        assert all(cells[proof] for proof in proofs.OF_ALL if not (in_the_loop and proof.startswith("plan"))), name
        assert in_the_loop or all(int(cells[proof]) for proof in ("equations", "wrong constants")), name
        assert len(set(cells["options"].split(" of "))) == 1, name


def test_a_refusal_of_two_names_both(generate: ModuleType) -> None:
    """But where one of them is refused alone, as it needs a third."""
    refused = [(pair, generate._fate(pair)[0]) for pair in combinations(CARDS, 2)]
    alone = {name for name in CARDS if generate._fate((name,))[0]}
    assert alone == {"av-rank"}
    told = [(pair, said) for pair, said in refused if said and not alone & {*pair}]
    assert len(told) > 20
    assert [(pair, said) for pair, said in told if not {*pair} <= {*re.findall(r"[a-z]+(?:-[a-z]+)*", said)}] == []


def beside(plugin: str, hook: str) -> set[str]:
    """Whom a plugin wants before or after itself in a hook."""
    place = registry.load("plugin", plugin).order.get(hook, Order())
    return {*place.before, *place.after}


def refusal(chosen: set[str]) -> str:
    """Why a pair can not be, by the specification alone: a hook with two owners, or a term that nobody adds."""
    answers = {name: set(hooks_of(registry.load("plugin", name))) for name in chosen}
    for hook, spec in HOOKS.items():
        both = len(chosen) > 1 and all(hook in hooks for hooks in answers.values())
        if both and spec.rule is Rule.CHAIN and not any(beside(name, hook) & chosen for name in chosen):
            return f"both change {hook} and neither declares its place"
        if both and spec.rule is Rule.EXCLUSIVE:
            return f"both own {hook}"
    adders = {name for name, hooks in answers.items() if "extra_regularizer" in hooks} | {"base_loss"}
    for name, hooks in answers.items():
        plugin = registry.load("plugin", name)
        options = validate(plugin.Options, {}, where=name, eps=8 / 255)
        terms = plugin(options).terms if "instance_weight" in hooks else ()
        if not {*terms} <= adders:
            return f"{name} weighs the term"
    return ""


OWN_REFUSALS = {
    **{frozenset({other, "score"}): "score has no gradient" for other in ("cat-eps", "fgsm-rs", "iaat", "las-at")},
    **{frozenset({other, "mart"}): "nor the loss of mart uses it" for other in ("bilateral", "ccat")},
    **{frozenset({other, "ccat"}): "ccat declares that it asks no observers" for other in ("fat", "fosc", "gairat")},
    frozenset({"cutmix", "cat-eps"}): "which is judged by one label",
    frozenset({"fgsm-rs", "ccat"}): "the inner attack ccat begins as it likes",
}
"""By a plugin itself, from the settings that the two leave in force, or from what a third hook uses."""


def test_the_table_of_pairs_says_which_are_refused_and_why() -> None:
    text = read(DOCS / "composing.md")
    notes = dict(re.findall(r"^- \((\w+)\) (.+)$", text, re.MULTILINE))
    table = rows(text, "## The built-ins, two by two")
    assert [quoted(row[0])[0] for row in table] == CARDS
    for row, (_, *cells) in zip(CARDS, table, strict=True):
        for column, cell in zip(CARDS, cells, strict=True):
            marks = re.findall(r"\((\w+)\)", cell)
            assert set(marks) <= set(notes)
            expected = refusal({row, column}) or OWN_REFUSALS.get(frozenset({row, column}))
            assert cell.startswith("refused" if expected else "runs"), (row, column)
            assert not expected or expected in notes[marks[0]]


def test_every_recipe_is_shown() -> None:
    text = read(DOCS / "recipes.md")
    shown = [quoted(row[0])[0] for row in rows(text, "# Recipes")]
    assert shown == [name for name in recipes.names() if not name.endswith("-mini")]
    assert shown == re.findall(r"^### (.+)$", text, re.MULTILINE)


# ---------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", advkit.__all__)
def test_every_public_name_has_a_docstring(generate: ModuleType, name: str) -> None:
    said = generate.docstring(name)
    assert said.endswith((".", "?", ":", ")")) or len(said) > 20, f"advkit.{name} says {said!r}"


# ---------------------------------------------------------------------- hooks.md


def test_hooks_are_documented_with_their_rules_and_exact_arguments_in_order() -> None:
    written = re.findall(r"^### (\w+)\n\n\*\*(\w+)\*\* `\((.*?)\) -> (.+?)`$", read(DOCS / "hooks.md"), re.MULTILINE)
    specified = []
    for name, spec in HOOKS.items():
        arguments = ", ".join(spec.arguments)
        specified.append((name, spec.rule.value, arguments, spec.signature.return_annotation))
    assert written == specified


def test_the_arguments_tables_name_every_argument() -> None:
    text = read(DOCS / "hooks.md")
    section = text.split("\n## Arguments\n", 1)[1].split("\n## ", 1)[0]
    shown = {name for line in section.splitlines() if line.startswith("|") for name in quoted(line.split("|")[1])}
    arguments = {name for hook in HOOKS.values() for name in hook.arguments}
    loop_and_attack = {"dataset", "indices", "batch_size", "x", "draws", "epoch", "metrics", "params", "term"}
    own = {"model", "objective", "observe", "x_adv", "logits", "loss", "gradient", "move", "step", "restart"}
    # said where their hooks are
    assert shown == arguments - loop_and_attack - own


# ---------------------------------------------------------------------- links and paths


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Targets outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", re.sub(r"\[`([^`]*)`\]", r"[\1]", read(page)), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_links_are_found_and_broken_ones_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](no.md) [`y`](#a-b-c) `[z](code.md)`\n")
    assert links(page) == ["no.md", "#a-b-c"]
    assert anchors(page) == {"a-b-c"}
    assert any(links(page) for page in PAGES)


OUTSIDE = re.compile(r"(?<![\w./~])(?:/(?:tmp|home|root|usr|etc|opt|mnt|var|Users)\b|~/|[A-Z]:\\)")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_path_outside_the_repository_is_named(page: Path) -> None:
    assert not OUTSIDE.findall(read(page))


def test_such_paths_would_be_found() -> None:
    assert all(OUTSIDE.search(text) for text in ("in /tmp/x", "(/home/me)", "~/runs", "`/opt/data`"))
    assert not OUTSIDE.search("https://doi.org/home and forward / work")


# ---------------------------------------------------------------------- commands

PLACEHOLDER = re.compile(r"\.\.\.|\[-|(?<![\w.])(?:DIR|FILE|NAME|A,B|RUN)\b|\||=[A-Z]+\b|=value\b|\.py:\w")
"""What a reader has to fill in: then only the names of command and flags are checked."""


def commands(page: Path) -> Iterator[str]:
    """Lines of code that begin with advkit, as they would be typed."""
    text = read(page).replace("\\\n", " ")
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL) + re.findall(r"(?:^ {4,}.*\n?)+", text, re.MULTILINE)
    for line in (line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()):
        if line.startswith("advkit "):
            yield re.sub(r" {3,}(?=\S).*$", "", re.sub(r"(?<=\S) +(?=-)", " ", line))
    for code in re.findall(r"`(advkit [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield " ".join(code.split())


EVERY_COMMAND = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.fixture(scope="session")
def scaffold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `advkit plugins new acme-margin` writes, as if it were installed; once, as its module is imported then."""
    site = tmp_path_factory.mktemp("scaffold")
    new_package("acme-margin", site)
    info = site / "acme-margin" / "acme_margin-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-margin\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[advkit.plugins]\nacme-margin = acme_margin:AcmeMargin\n")
    return info.parent


@pytest.fixture
def example_installed(tmp_path: Path, scaffold: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third parties' packages, as if they were installed."""
    for package in (EXAMPLE, EXAMPLE.with_name("zero_grad")):
        project = tomllib.loads(read(package / "pyproject.toml"))["project"]
        info = tmp_path / f"{project['name'].replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
        points = project["entry-points"]["advkit.plugins"]
        lines = [f"{name} = {value}\n" for name, value in points.items()]
        (info / "entry_points.txt").write_text("[advkit.plugins]\n" + "".join(lines))
        monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(scaffold), *sys.path])
    monkeypatch.delenv("ADVKIT_LOAD_PLUGINS", raising=False)
    yield
    sys.modules.pop("acme_margin", None)  # others write a package of that name


def output(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return code, out.getvalue(), err.getvalue()


def flags(command: click.Command) -> set[str]:
    known = {"--help", "-h"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts} if isinstance(parameter, click.Option) else set()
    return known


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after it. Raises UsageError where there is none."""
    command: click.Command = cli
    words = list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command)
        _, chosen, words = command.resolve_command(context, words)
        assert chosen
        command = chosen
    return command, words


def check(line: str) -> None:
    """Fail unless the command line is one that would run."""
    if PLACEHOLDER.search(line):
        command, rest = find(re.sub(r"[\[\]|]", " ", line.split("advkit ", 1)[1]).split())
        stray = {word.partition("=")[0] for word in rest if word.startswith("-")} - flags(command)
        assert not stray, f"{line}: {stray}"
        return
    words = shlex.split(line)[1:]
    command, rest = find(words)
    if not rest and command.name in ("evaluate", "audit"):
        return  # the name of the command in a sentence
    absent = command.name in ("evaluate", "audit", "prepare", "pseudo-label", "check", "new")
    if absent or "--resume" in rest or "--config" in rest or "--init-from" in rest:
        command.make_context(command.name, list(rest))  # what it names does not exist here
        return
    if command.name == "train":
        words.append("--print-config")
    code, _, error = output(*words)
    assert code == 0, f"{line}: {error}"


@pytest.mark.usefixtures("example_installed")
@pytest.mark.parametrize(
    ("page", "line"), EVERY_COMMAND, ids=[f"{named(page)}: {line}" for page, line in EVERY_COMMAND]
)
def test_commands_resolve(page: Path, line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "advkit trian --plugins lsiw",
        "advkit train --plugin lsiw --epochs 2",
        "advkit train --plugins lsiww",
        "advkit plan --plugins lsiw -o lsiw.lambda=0.1",
        "advkit evaluate DIR --attack clean",
        "advkit train --plugins A,B [--sets section.key=value]",
        "advkit evaluate runs/first --split validation",
    ],
)
def test_commands_that_would_fail_are_noticed(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(line)


KEY = re.compile(r"([a-z][a-z0-9-]*)\.([a-z_]+)(?:=(\S+))?")


def assignments(page: Path) -> Iterator[tuple[str, ...]]:
    """Settings and options in sentences: the words to type, or (owner, key) where no value is given."""
    for code in dict.fromkeys(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL))):
        if PLACEHOLDER.search(code):
            continue
        if code.startswith(("-o ", "--set ", "--eps ")):
            yield tuple(shlex.split(code))
        elif (pair := KEY.fullmatch(code)) and pair[1] in {*SECTIONS, *CARDS}:
            if pair[3]:
                yield "--set" if pair[1] in SECTIONS else "-o", code
            elif pair[1] not in ("run", "attack"):  # run.epoch, attack.x_adv: what hooks get
                yield pair[1], pair[2]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_settings_and_options_in_sentences_exist(page: Path) -> None:
    """Beside the plugins that they name, or beside all that fit."""
    for words in assignments(page):
        if words[0].startswith("-"):
            named = {name for name in CARDS if any(re.search(rf"(?<![\w-]){name}\.", word) for word in words)}
            named |= {"trades"} if any("clean_logits" in word for word in words) else set()  # computed for somebody
            smallest = tuple(sorted({member for name in named for member in methods.alone(name)}))
            errors = []
            for together in (smallest, *(crowd for crowd in methods.crowds() if named <= {*crowd})):
                code, _, error = output("plan", "--plugins", ",".join(together), *words, "--json")
                if code == 0:
                    break
                errors.append(error)
            else:
                pytest.fail("\n".join(errors))
        else:
            owner, key = words
            options = SECTIONS.get(owner) or registry.load("plugin", owner).Options
            assert key in options.model_fields, f"{owner}.{key}"


def test_settings_and_options_in_sentences_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`-o 'awp.gamma=[[0, 0.0]]'`, `--eps 1 -o a.b=c`, `run.seed=1`, `run.epoch`, `lsiw.lam` and `x.y`")
    assert list(assignments(page)) == [
        ("-o", "awp.gamma=[[0, 0.0]]"),
        ("--eps", "1", "-o", "a.b=c"),
        ("--set", "run.seed=1"),
        ("lsiw", "lam"),
    ]


def test_commands_are_found_with_continuations_and_without_remarks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n    $ advkit plan --plugins a      what it does\n    advkit train --plugins a \\\n        --eps 1\n"
        "\nand `advkit plugins\nlist` too\n"
    )
    assert list(commands(page)) == [
        "advkit plan --plugins a",
        "advkit train --plugins a --eps 1",
        "advkit plugins list",
    ]
    assert len(EVERY_COMMAND) > 25


def test_the_plan_in_the_readme_is_the_real_one() -> None:
    block = re.search(r"^ {4}\$ (advkit plan .+)\n((?: {4}.+\n)+)", read(ROOT / "README.md"), re.MULTILINE)
    assert block
    shown = [line.strip() for line in block[2].splitlines()]
    assert shown[-1] == "..." and len(shown) > 8
    code, out, _ = output(*shlex.split(block[1])[1:])
    assert code == 0
    assert [line.strip() for line in out.splitlines()][: len(shown) - 1] == shown[:-1]


# ---------------------------------------------------------------------- what a run does


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, set[tuple[str, str, str]]]:
    """One small run, and the addresses of all random numbers drawn in it: (owner, purpose, phase)."""
    addresses: set[tuple[str, str, str]] = set()
    digest = rng._digest

    def noted(kind: str, seed: int, owner: str, purpose: str, phase: str, epoch: int) -> int:
        addresses.add((owner, purpose, phase))
        return digest(kind, seed, owner, purpose, phase, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "_digest", noted)
        result = advkit.train(
            plugins=["cat-eps", "dirichlet-ls", "lsiw"],
            epochs=1,
            settings={
                "data.limit": 40,
                "attack.steps": 1,
                "attack.init": "uniform",
                "validation.steps": 1,
                "validation.fraction": 0.3,
                "model.width": 2,
            },
            out=tmp_path_factory.mktemp("runs") / "run",
        )
    return result, addresses


def test_the_keys_of_metrics_are_documented(trained: Any) -> None:
    result, _ = trained
    (row,) = result.history
    table = rows(read(DOCS / "run-folder.md"), "## metrics.jsonl")
    assert [key for cells in table for key in quoted(cells[0])] == list(row)
    said = {quoted(cells[0])[0]: set(quoted(cells[1])) for cells in table}
    assert set(row["validation"]) == {name.replace("-K", "-1") for name in said["validation"]}
    assert set(row["seconds"]) == said["seconds"]
    assert set(row["state"]["cat-eps/eps"]) == said["state"]
    assert set(row["terms"]["lsiw"]) == said["terms"]
    assert {name for passes in row["passes"].values() for name in passes} == said["passes"]


def test_the_files_of_a_run_are_documented(trained: Any) -> None:
    result, _ = trained
    table = rows(read(DOCS / "run-folder.md"), "# The run folder")
    assert {quoted(row[0])[0].rstrip("/") for row in table} == {path.name for path in result.folder.iterdir()}
    store = result.folder / "checkpoints"
    text = read(DOCS / "run-folder.md")
    for path in (store / "last").resolve().iterdir():
        assert f"/{path.name} " in text
    environment = re.search(r"## environment.json\n\n(.+?\n\n)", text, re.DOTALL)
    assert environment
    shown = set(quoted(environment[1])) - {"run.toml", "--resume"}
    optional = {name for name in ("torchvision", "timm") if importlib.util.find_spec(name) is None}
    assert shown - optional == set(json.loads((result.folder / "environment.json").read_text()))


def test_the_addresses_of_random_numbers_are_documented(trained: Any) -> None:
    _, addresses = trained
    table = rows(read(DOCS / "loop.md"), "## Randomness")
    shown = {(quoted(row[1])[0], quoted(row[2])[0], *(quoted(row[3]) or [""])) for row in table if quoted(row[1])}
    core = {address for address in addresses if address[0] == "core"}
    assert {
        (owner, purpose, "" if purpose in ("model", "evaluation") else phase) for owner, purpose, phase in core
    } == shown
    assert addresses - core == {("dirichlet-ls", "noise", "attack"), ("dirichlet-ls", "noise", "train")}


def test_exit_codes_are_documented() -> None:
    shown = {int(row[0]) for row in rows(read(DOCS / "run-folder.md"), "## Exit codes")}
    failures = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.AdvkitError)
    ]
    assert shown == {0, *(failure.exit_code for failure in failures)}


def test_the_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page run one after the other, in an empty folder; they assert what the text says."""
    monkeypatch.chdir(tmp_path)
    pages = {page: re.findall(r"```python\n(.*?)```", read(page), re.DOTALL) for page in PAGES}
    assert len(pages[DOCS / "writing-a-plugin.md"]) > 5
    for page, blocks in pages.items():
        known: dict[str, Any] = {"__name__": "docs"}
        for block in blocks:
            exec(compile(block, str(page), "exec", dont_inherit=True), known)


def test_the_answer_on_masking_is_what_was_measured() -> None:
    """The table of CAT's card against the JSON of the pages it cites."""
    text = (DOCS / "methods" / "cat-eps.md").read_text()
    table = re.findall(
        r"^\| (digits|Fashion-MNIST), ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, re.M
    )
    keys = {
        "PGD-AT": "pgd-at",
        "`cat-eps`": "cat-eps",
        "`cat-eps,dirichlet-ls`": "cat",
        "with `cat-margin`": "cat-margin",
        "`cat-eps,dirichlet-ls,lsiw`": "sentence",
    }
    assert len(table) == 7
    for data, method, *said in table:
        name = "digits" if data == "digits" else "fashion"
        runs = json.loads((ROOT / "results" / f"robustness-{name}.json").read_text())["runs"]
        rows = [
            {row["name"]: row["accuracy"] for row in run["strong"]["attacks"]}
            for run in runs
            if re.sub(r"-[0-9]$", "", run["run"]) == keys[method]
        ]
        mean = {attack: sum(row[attack] for row in rows) / len(rows) for attack in rows[0]}
        measured = [mean["pgd-20"], mean["cw-20"], mean["autoattack"], mean["pgd-20"] - mean["autoattack"]]
        assert [float(figure) for figure in said] == pytest.approx(measured, abs=0.00051), method
