"""`advkit report`: one page, whole in itself, escaped, well formed, and right in its figures. No browser needed."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection
from functools import reduce
from html.parser import HTMLParser
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from advkit.cli.main import run
from advkit.data.transforms import to_float
from advkit.evaluation.statistics import wilson
from advkit.storage.run_folder import RunFolder
from advkit.studies.analysis import plotting
from advkit.studies.report import build, charts, markup
from advkit.studies.report.charts import Bar, Series
from advkit.studies.report.recorded import recorded
from advkit.studies.subject import of_run
from advkit.training.parts import build_model, data_of, load_weights
from advkit.training.same_run import resolve_folder

TINY = ["--limit", 60, "--batch-size", 30, "--epochs", 3, "--set", "model.width=2", "--set", "attack.steps=2"]
TINY += ["--set", "validation.steps=2", "--progress", "none"]
PARTS = ("settings", "curves", "evaluations", "audit", "analyses", "samples", "environment")
VOID = {"img", "meta", "link", "br"}
HOSTILE = "<img src=x onerror=alert(1)> \"'&amp; \x1b[31m \u202e $(id)"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def advkit(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(each) for each in arguments])
    assert "Traceback" not in err.getvalue()
    return Ran(code, out.getvalue(), err.getvalue())


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str | None]
    parents: tuple[int, ...]
    text: list[str]


class Outline(HTMLParser):
    """All elements of a page, each with the places of its parents and the text inside; refuses tags that do not fit."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[int] = []
        self.feed(page)
        self.close()
        assert not self._open, [self.elements[place].tag for place in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append(Element(tag, dict(attrs), tuple(self._open), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()].tag == tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place].text.append(data)

    def all(self, *tags: str) -> list[Element]:
        return [each for each in self.elements if each.tag in tags]

    def id(self, name: str) -> Element:
        (found,) = [each for each in self.elements if each.attributes.get("id") == name]
        return found

    def within(self, name: str, tag: str) -> list[Element]:
        (place,) = [place for place, each in enumerate(self.elements) if each.attributes.get("id") == name]
        return [each for each in self.elements if each.tag == tag and place in each.parents]


def text(element: Element) -> str:
    return " ".join("".join(element.text).split())


def rows(page: Outline, name: str, caption: str) -> list[list[str]]:
    """The cells of the table with that caption in a section."""
    (outer,) = [place for place, each in enumerate(page.elements) if each.attributes.get("id") == name]
    for place, element in enumerate(page.elements):
        if element.tag == "table" and outer in element.parents:
            inside = {number: each for number, each in enumerate(page.elements) if place in each.parents}
            if text(next(each for each in inside.values() if each.tag == "caption")).startswith(caption):
                lines = [number for number, each in inside.items() if each.tag == "tr"]
                cells = [each for each in inside.values() if each.tag in ("th", "td")]
                return [[text(cell) for cell in cells if cell.parents[-1] == line] for line in lines]
    raise AssertionError(f"{name} has no table {caption!r}")


def faults(page: Outline) -> list[str]:
    """Whatever makes a page depend on something else, or unreadable for some."""
    found = []
    ids = Counter(each.attributes["id"] for each in page.elements if "id" in each.attributes)
    found += [f"id {name} twice" for name, count in ids.items() if count > 1]
    levels = [int(each.tag[1]) for each in page.elements if re.fullmatch("h[1-6]", each.tag)]
    if levels.count(1) != 1 or levels[0] != 1 or any(b > a + 1 for a, b in pairwise(levels)):
        found.append(f"headings {levels}")
    for place, element in enumerate(page.elements):
        tag, attributes = element.tag, element.attributes
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href") and not (
                (value or "").startswith("data:") or (name == "href" and (value or "")[1:] in ids and value[0] == "#")  # type: ignore[index]
            ):
                found.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                found.append(f"{tag} {name}")
            if name in ("aria-labelledby", "aria-describedby") and value not in ids:
                found.append(f"{tag} {name}={value}")
        if tag in ("script", "iframe", "object", "embed", "form", "base"):
            found.append(tag)
        if tag == "style" and re.search(r"url\(|@import|//", "".join(element.text)):
            found.append("style loads something")
        if tag == "section":
            heading = next(
                (e for e in page.elements if e.attributes.get("id") == attributes.get("aria-labelledby")), None
            )
            inside = heading is not None and place in heading.parents
            if heading is None or not inside or not re.fullmatch("h[2-6]", heading.tag) or not text(heading):
                found.append(f"section {attributes.get('id')} has no heading")
        inner = [each for each in page.elements if place in each.parents] if tag in ("table", "svg") else []
        if tag == "table" and not any(each.tag == "caption" and text(each) for each in inner):
            found.append("a table without caption")
        if tag == "th" and attributes.get("scope") not in ("row", "col"):
            found.append("a th without scope")
        if tag == "img" and not attributes.get("alt"):
            found.append("a picture without alt")
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            told = {each.tag for each in inner if each.tag in ("title", "desc") and text(each)}
            if attributes.get("role") != "img" or told != {"title", "desc"}:
                found.append("a chart without title and description")
    return found


EVALUATION: dict[str, Any] = {
    # Figures of a fixture: no run has them.
    "run": "r", "dataset": "digits", "model": "small-cnn", "checkpoint": "best", "weights": "raw", "epoch": None,
    "selected_on": "validation", "split": "test", "n": 200, "norm": "linf", "eps": 0.15, "seed": 0,
    "versions": {"advkit": "0.1.0"},
    "attacks": [
        {"name": "clean", "norm": "linf", "eps": 0.0, "accuracy": 0.91, "interval": [0.862, 0.942],
         "passes": {"forward": 1.0, "input_backward": 0.0}, "seconds": 0.1},
        {"name": "pgd-20", "norm": "linf", "eps": 0.15, "steps": 20, "step_size": 0.03, "restarts": 1,
         "accuracy": 0.5, "interval": [0.431, 0.569], "passes": {"forward": 20.5, "input_backward": 20}, "seconds": 2},
    ],
    "worst_case": {"accuracy": 0.5, "interval": [0.431, 0.569]}, "suspect": True,
    "audit": [{"name": "zero-gradients", "figure": 0.41, "threshold": 0.1, "alarm": True, "sentence": "Many are 0."}],
    "robustbench": None,
}  # fmt: skip
CHOSEN = "200 of 360 images, chosen at random, seed 0"
AUDIT = {
    "run": "r", "checkpoint": "best", "split": "test", "n": 200, "norm": "linf", "eps": 0.15,
    "checks": [
        {"name": "large-eps", "figure": 0.0, "threshold": 0.0, "alarm": False, "sentence": "Nothing is left."},
        {"name": "black-box", "figure": 0.09, "threshold": 0.02, "alarm": True, "sentence": "Square beats PGD."}
        | {"interval": [0.06, 0.14], "count": 18, "of": 200, "alarm_from": 9},
        {"name": "transfer", "figure": None, "threshold": 0.02, "alarm": None, "sentence": "No other run."},
    ],
    "alarms": ["black-box"],
}  # fmt: skip


def put(folder: Path, path: str, value: object) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def changed(**fields: object) -> dict[str, Any]:
    return {**json.loads(json.dumps(EVALUATION)), **fields}


PGD = {"name": "pgd-20", "norm": "linf", "eps": 0.15, "steps": 20, "step_size": 0.03}
CLEAN, CW = {"name": "clean", "norm": "linf", "eps": 0.0}, PGD | {"name": "cw-20"}


def judge(run: Path, name: str, *attacks: tuple[dict[str, Any], Collection[int]], n: int = 200, **fields: Any) -> None:
    """An evaluation of `n` images with its verdicts: attacks, each with the images that it breaks."""
    rows = []
    for attack, broken in attacks:
        right = n - len(broken)
        rows.append({"column": attack["name"], **attack, "accuracy": right / n, "interval": wilson(right, n)})
    found = changed(**{"n": n, "attacks": rows, "worst_case": None, "suspect": None, "audit": [], **fields})
    put(run, f"evaluations/{name}/n-{n}/evaluation.json", found)
    lines = [[str(i), "0", *(str(int(i not in broken)) for _, broken in attacks)] for i in range(n)]
    head = ["index", "label", *(row["column"] for row in rows)]
    put(run, f"evaluations/{name}/n-{n}/verdicts.csv", "".join(f"{','.join(line)}\n" for line in [head, *lines]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `plain` and `cat`; nobody writes into them."""
    folder = tmp_path_factory.mktemp("trained")
    assert advkit("train", *TINY, "--out", folder / "plain").code == 0
    assert advkit("train", "--plugins", "cat-eps", *TINY, "--seed", 7, "--out", folder / "cat").code == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with copies of both."""
    for name in ("plain", "cat"):
        shutil.copytree(trained / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_of(*names: str, samples: int = 2) -> Outline:
    return Outline(build(names, samples).html)


# ---------------------------------------------------------------------- the page


def test_a_page_is_whole_in_itself_and_well_formed(runs: Path) -> None:
    put(runs / "cat", "evaluations/one/n-9/evaluation.json", EVALUATION)
    put(runs / "cat", "audit.json", AUDIT)
    for page in (page_of("plain"), page_of("plain", "cat")):
        assert faults(page) == []
        assert text(page.all("title")[0]).startswith("advkit report")
        assert len(page.all("main")) == len(page.all("nav")) == 1
        assert page.elements[page.elements.index(page.all("body")[0]) + 1].attributes == {
            "href": "#report",
            "class": "skip",
        }
    policy = [each.attributes["content"] for each in page.all("meta") if "http-equiv" in each.attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [
        ('<img src="https://a.b/c.png" alt="c">', "img src="),
        ('<a href="#nowhere">a</a>', "href=#nowhere"),
        ('<p id="report"></p>', "id report twice"),
        ("<h4>a</h4>", "headings"),
        ("<script>1</script>", "script"),
        ('<p onclick="a"></p>', "onclick"),
        ("<section></section>", "no heading"),
        ("<table><tr><th>a</th></tr></table>", "caption"),
        ('<img src="data:,">', "alt"),
        ("<svg></svg>", "chart without"),
        ("<style>a{background:url(b)}</style>", "style loads"),
    ],
)
def test_the_checks_of_a_page_find_faults(spoiled: str, named: str) -> None:
    sound = '<h1>a</h1><p id="report"></p>{}<h2>b</h2>'
    assert faults(Outline(sound.format(""))) == []
    assert any(named in fault for fault in faults(Outline(sound.format(spoiled))))


def test_nothing_that_a_run_holds_becomes_markup(runs: Path) -> None:
    name = HOSTILE.replace("/", "")
    (runs / "plain").rename(runs / name)
    put(runs / name, f"evaluations/{name}/n-9/evaluation.json", changed(split=HOSTILE, versions={HOSTILE: HOSTILE}))
    put(runs / name, "audit.json", {"checks": [{"name": HOSTILE, "alarm": True, "sentence": HOSTILE}]})
    put(runs / name, f"analysis/{name}.json", {HOSTILE: HOSTILE, "figures": {HOSTILE: [HOSTILE]}})
    put(runs / name, "environment.json", {HOSTILE: HOSTILE, "command": ["train", HOSTILE]})
    page = page_of(name, "cat")
    assert faults(page) == []
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert text(page.id("run-1-h")) == f"Run 1 {shown}"
    body = text(page.all("body")[0])
    assert body.count(shown) > 12 and "\x1b" not in body and "\u202e" not in body
    # The commands can be pasted: the name is one quoted word.
    code = [text(each) for each in page.within("run-1-analyses", "code")]
    assert all(each.startswith("advkit analyze ") and "'\"'\"'" in each for each in code) and len(code) == 3


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_text_comes_back_as_it_went_in(value: str) -> None:
    for page in (Outline(markup.tag("p", value)), Outline(markup.tag("p", title=value))):
        (element,) = page.elements
        spelled = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in value)
        assert "".join(element.text) == spelled or element.attributes == {"title": spelled}


def test_what_is_missing_is_said_with_the_command_that_makes_it(runs: Path) -> None:
    page = page_of("plain")
    commands = {
        "evaluations": ["advkit evaluate plain --attacks clean,pgd-20,cw-20"],
        "audit": ["advkit audit plain"],
        "analyses": [f"advkit analyze {kind} plain" for kind in ("vulnerability", "margin", "landscape")],
    }
    for part, expected in commands.items():
        assert [text(each) for each in page.within(f"run-1-{part}", "code")] == expected
    assert "Not evaluated yet" in text(page.id("run-1-evaluations")) and "Not audited yet" in text(
        page.id("run-1-audit")
    )
    put(runs / "plain", "evaluations/one/n-9/evaluation.json", EVALUATION)
    put(runs / "plain", "audit.json", AUDIT)
    put(runs / "plain", "analysis/margin.json", {"figures": {"q50": 1.25}, "steps": 50})
    page = page_of("plain")
    assert "Not evaluated yet" not in text(page.id("run-1-evaluations"))
    assert "Not audited yet" not in text(page.id("run-1-audit"))
    assert [text(each) for each in page.within("run-1-analyses", "code")] == [
        command for command in commands["analyses"] if "margin" not in command
    ]
    assert rows(page, "run-1-analyses", "margin: figures")[1:] == [["mu 50 % quantile", "1.250 L2"], ["steps", "50"]]


def test_evaluations_and_audits_are_shown_as_they_are(runs: Path) -> None:
    put(runs / "plain", "evaluations/one/n-9/evaluation.json", changed(selected_on="test", images=CHOSEN))
    put(runs / "plain", "audit.json", AUDIT | {"images": CHOSEN})
    page = page_of("plain")
    assert rows(page, "run-1-evaluations", "Accuracy under each attack")[1:] == [
        ["clean", "", "", "0.910", "0.862 to 0.942", "1 + 0", "0.1"],
        ["pgd-20", "linf 0.15", "20 of 0.03", "0.500", "0.431 to 0.569", "20.5 + 20", "2.0"],
        ["worst case", "", "", "0.500", "0.431 to 0.569", "", ""],
    ]
    said = text(page.id("run-1-evaluations"))
    assert "Suspect:" in said and "figures on it are optimistic" in said and f"test split, {CHOSEN}" in said
    assert f"test split, {CHOSEN}" in text(page.id("run-1-audit"))
    assert rows(page, "run-1-evaluations", "Short audit")[1] == [
        "zero-gradients",
        "ALARM",
        "0.41",
        "",
        "",
        "above 0.1",
        "Many are 0.",
    ]
    checks = rows(page, "run-1-audit", "Checks")[1:]
    assert [row[:2] for row in checks] == [["large-eps", "silent"], ["black-box", "ALARM"], ["transfer", "not run"]]
    assert checks[1][3:6] == ["0.060 to 0.140", "18 of 200", "from 9"]
    said = "1 of the 2 checks that ran raises an alarm: black-box; 1 could not be run."
    assert said in text(page.id("run-1-audit"))
    put(runs / "plain", "evaluations/one/n-9/evaluation.json", changed(suspect=False, audit=[]))
    put(runs / "plain", "audit.json", {**AUDIT, "checks": [AUDIT["checks"][0], AUDIT["checks"][2]], "alarms": []})
    page = page_of("plain")
    assert "Suspect" not in text(page.id("run-1-evaluations"))
    assert "None of the 1 checks that ran raises an alarm; 1 could not be run." in text(page.id("run-1-audit"))


def test_the_verdict_comes_first(runs: Path) -> None:
    def said() -> tuple[str, str | None]:
        _, first, *_ = page_of("plain", samples=0).within("run-1", "p")
        return text(first), first.attributes.get("class")

    assert said() == ("Robustness unknown: no evaluation of this net.", "missing")
    put(runs / "plain", "evaluations/one/n-200/evaluation.json", changed(suspect=False, audit=[], images=CHOSEN))
    put(runs / "plain", "audit.json", AUDIT | {"sha256_of_weights": "0" * 64, "alarms": [], "checks": []})  # another's
    assert said() == (
        "Worst case 0.500 (0.431 to 0.569) within linf 0.15 under pgd-20 (test split, 200 of 360 images, "
        "chosen at random, seed 0); not audited. AutoAttack was not among the attacks, so the truth may be lower.",
        "verdict",
    )
    put(runs / "plain", "evaluations/three/n-300/evaluation.json", changed(n=300, eps=1e-3, suspect=False, audit=[]))
    assert said()[0].startswith("Worst case 0.500 (0.431 to 0.569) within linf 0.15 under pgd-20 (test split, 200 of")
    worst = {"accuracy": 0.46, "interval": [0.36, 0.56]}
    beside = [*EVALUATION["attacks"], {**EVALUATION["attacks"][1], "name": "pgd-20-l2", "norm": "l2", "eps": 0.4}]
    of_both = changed(attacks=beside[::2], worst_case=None, worst_case_by_norm={"l2": worst}, suspect=False, audit=[])
    put(runs / "plain", "evaluations/one/n-200/evaluation.json", of_both)
    assert said()[0].startswith("Worst case 0.460 (0.360 to 0.560) within l2 0.4 under pgd-20-l2 (test split, ")
    strong = [*EVALUATION["attacks"], {**EVALUATION["attacks"][1], "name": "autoattack", "accuracy": 0.46}]
    few = changed(n=100, attacks=strong, worst_case=worst, suspect=False, audit=[])
    put(runs / "plain", "evaluations/two/n-100/evaluation.json", few)
    put(runs / "plain", "audit.json", AUDIT)
    verdict, kind = said()
    assert verdict.startswith(
        "Worst case 0.460 (0.360 to 0.560) within linf 0.15 under pgd-20, autoattack (test split, n = 100)"
    )
    assert "; audit: alarms, black-box (audit.json, n = 200)." in verdict and kind == "caution"
    put(runs / "plain", "audit.json", {**AUDIT, "checks": AUDIT["checks"][::2], "alarms": []})
    assert said()[0].endswith("; audit: no alarm.")
    why = "the net answers '1' to all 100 images, right for 22 of them"
    put(runs / "plain", "audit.json", AUDIT | {"checks": AUDIT["checks"][2:], "alarms": [], "hopeless": why})
    assert said()[0].endswith(f"; there is nothing to be robust: {why}.") and said()[1] == "caution"
    assert f"Caution. Nothing was attacked: {why}." in text(page_of("plain", samples=0).id("run-1-audit"))
    asked = {
        "name": "zero-gradient",
        "figure": None,
        "threshold": 0.02,
        "alarm": None,
        "sentence": f"Not checked: {why}.",
    }
    put(runs / "plain", "evaluations/two/n-100/evaluation.json", few | {"audit": [asked]})
    (runs / "plain" / "audit.json").unlink()
    assert said()[0].endswith(f"; there is nothing to be robust: {why}.") and said()[1] == "caution"
    assert f"There is nothing to be robust: {why}." in text(page_of("plain", samples=0).id("run-1-evaluations"))


def test_an_alarm_is_told_once_with_the_audits_that_raise_it(runs: Path) -> None:
    gap = {"name": "loss-gap", "figure": 0.1, "threshold": 0.06, "alarm": True, "sentence": "They differ."}
    judge(runs / "cat", "one", (PGD, ()), n=539, suspect=True, audit=[gap])
    judge(runs / "cat", "two", (PGD, ()), n=539, suspect=True, audit=[gap])  # another seed, say
    put(runs / "cat", "audit.json", {"n": 100, "checks": AUDIT["checks"][::2]})
    short = "loss-gap (short audit of the evaluation at n = 539, test, checkpoint best"
    page = page_of("plain", "cat", samples=0)
    cautions = [text(each) for each in page.within("comparison-runs", "p") if each.attributes.get("class") == "caution"]
    assert cautions == [f"Caution. Run 2 raises alarms: {short}); audit.json, n = 100, raises none."]
    said = text(page.id("run-2-audit"))
    assert "None of the 1 checks that ran raises an alarm; 1 could not be run." in said
    assert f"Alarms raised elsewhere: {short})." in said
    cautions = [text(e) for e in page.within("run-2-evaluations", "p") if e.attributes.get("class") == "caution"]
    assert cautions == 2 * ["Caution. Suspect: the short audit of this evaluation (n = 539) raises alarms: loss-gap."]
    put(runs / "cat", "audit.json", {"n": 100, "checks": [gap, AUDIT["checks"][1]]})
    page = page_of("plain", "cat", samples=0)
    both = f"Run 2 raises alarms: {short}; audit.json, n = 100), black-box (audit.json, n = 100)."
    assert both in text(page.id("comparison-runs"))
    assert "Alarms raised elsewhere" not in text(page.id("run-2-audit"))


@pytest.mark.usefixtures("quick_audit")
def test_every_command_that_is_suggested_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compare of runs at two radii would be refused, so the page names those that go together, or none."""
    monkeypatch.setattr(plotting, "rendered", lambda draw: {})  # pictures have tests of their own
    assert advkit("train", *TINY, "--eps", "0.05", "--out", "near").code == 0
    assert advkit("train", *TINY, "--eps", "0", "--out", "clean").code == 0
    for name in ("plain", "near", "cat", "clean"):
        judge(runs / name, "one", (CLEAN, []), (PGD, range(40)))
    page = page_of("plain", "near", "cat", "clean", samples=0)
    made_by = shlex.join(["advkit", *sys.argv[1:]])  # what each run says of itself, here the command line of the tests
    commands = {text(element) for element in page.all("code") if text(element).startswith("advkit ")} - {made_by}
    compares = [command for command in commands if command.startswith("advkit compare")]
    assert compares == ["advkit compare plain cat"]
    assert {command.split()[1] for command in commands} >= {"compare", "audit", "analyze"}
    quick = {"compare": ["--n", "9", "--attacks", "clean"], "audit": ["--n", "2"], "analyze": ["--n", "2"]}
    for command in commands:
        _, name, *rest = command.split()
        ran = advkit(name, *rest, *([] if "budget" in rest else quick[name]))
        assert ran.code in (0, 3), (command, ran.err)
    assert "advkit compare" not in text(page_of("plain", "near", samples=0).id("comparison-accuracy"))


def test_a_run_that_no_command_can_judge_says_why(runs: Path) -> None:
    file = runs / "cat" / "run.toml"
    file.write_text(file.read_text().replace('name = "small-cnn"', 'name = "python:Mine"').replace("width = 2\n", ""))
    page = page_of("cat", samples=0)
    said = text(page.id("run-1-evaluations"))
    assert said.endswith("passed from Python; so pass them to advkit.evaluate.") and "advkit evaluate cat" not in said
    assert not [element for element in page.all("code") if text(element).startswith(("advkit audit", "advkit analyze"))]


def test_attacks_of_one_name_are_told_apart(runs: Path) -> None:
    wide = PGD | {"step_size": 0.0375, "column": "pgd-20 step_size=0.0375"}
    judge(runs / "plain", "one", (wide, (0,)), (PGD | {"column": "pgd-20 step_size=0.03"}, (0, 1)), (CW, ()))
    judge(runs / "cat", "one", (wide, ()), (PGD | {"column": "pgd-20 step_size=0.03"}, (3,)))
    page = page_of("plain", "cat", samples=0)
    names = [row[0] for row in rows(page, "run-1-evaluations", "Accuracy under each attack")[1:]]
    assert names == ["pgd-20, step 0.0375", "pgd-20, step 0.03", "cw-20"]
    told = text(page.id("run-1-evaluation-1-bars-d"))
    assert "pgd-20, step 0.0375: 0.995," in told and "pgd-20, step 0.03: 0.990," in told and "cw-20: " in told
    table = rows(page, "comparison-accuracy", "Accuracy with 95 % interval")
    assert [row[0] for row in table[1:]] == [
        "pgd-20 linf 0.15, step 0.03",
        "pgd-20 linf 0.15, step 0.0375",
        "cw-20 linf 0.15, step 0.03",
        "worst case linf 0.15, over pgd-20 (step 0.03), pgd-20 (step 0.0375)",
    ]
    assert "pgd-20, step 0.0375, 2: 1.000," in text(page.id("comparison-bars-d"))


def test_a_row_is_of_attacks_of_equal_settings_source_and_code(runs: Path) -> None:
    """Seeds apart, of which the lower counts; what one run has twice is shown twice."""
    weak, strong = ({"name": "mine", "norm": "linf", "eps": 0.15, "code": "c0de", "tries": n} for n in (1, 200))
    by, other = ({"name": "transfer:src", "norm": "linf", "eps": 0.15, "source": {"weights": w * 64}} for w in "ab")
    judge(runs / "plain", "one", (weak, range(10)), (by, range(20)), (PGD | {"seed": 0}, range(40)))
    judge(runs / "plain", "two", (strong, range(30)), (strong | {"code": "edited", "column": "mine 2"}, range(50)))
    judge(runs / "cat", "one", (strong, range(60)), (other, range(70)), (PGD | {"seed": 1}, range(20, 60)))
    judge(runs / "cat", "two", (PGD | {"seed": 2}, range(100)))
    table = rows(page_of("plain", "cat", samples=0), "comparison-accuracy", "Accuracy with 95 % interval")
    assert [[row[0], *(cell[:5] for cell in row[1:])] for row in table[1:]] == [
        ["pgd-20 linf 0.15, step 0.03", "0.800", "0.500"],
        ["transfer:src linf 0.15, source weights aaaaaaaa", "0.900", "–"],
        ["transfer:src linf 0.15, source weights bbbbbbbb", "–", "0.650"],
        ["mine linf 0.15, code c0de, tries 1", "0.950", "–"],
        ["mine linf 0.15, code c0de, tries 200", "0.850", "0.700"],
        ["mine linf 0.15, code edited, tries 200", "0.750", "–"],
        ["worst case linf 0.15, over pgd-20, mine (code c0de, tries 200)", "0.800", "0.500"],
    ]


@pytest.mark.parametrize(
    "content", ["{", "[]", "\x00", "[" * 100_000, json.dumps(changed(attacks=[{"name": "a", "accuracy": "high"}]))]
)
def test_a_damaged_part_is_a_sentence_and_the_rest_is_shown(runs: Path, content: str) -> None:
    for file in ("evaluations/one/n-9/evaluation.json", "audit.json", "analysis/margin.json", "environment.json"):
        put(runs / "plain", file, content)
    page = page_of("plain")
    assert faults(page) == []
    for part, file in (("evaluations", "evaluation.json"), ("audit", "audit.json")):
        assert f"{file} is damaged" in text(page.id(f"run-1-{part}"))
    if "accuracy" not in content:
        assert "margin.json is damaged" in text(page.id("run-1-analyses"))
        assert "environment.json is damaged" in text(page.id("run-1-environment"))
    assert len(page.within("run-1-curves", "svg")) == 4


def test_pictures_of_analyses_are_embedded_the_vector_one_unless_it_is_large(runs: Path) -> None:
    folder = runs / "plain" / "analysis"
    put(runs / "plain", "analysis/margin.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    put(runs / "plain", "analysis/margin.json", {})
    Image.new("L", (3, 2)).save(folder / "margin.png")
    (image,) = page_of("plain").within("run-1-analyses", "img")
    kind, content = (image.attributes["src"] or "").split(";base64,")
    assert kind == "data:image/svg+xml" and base64.b64decode(content) == (folder / "margin.svg").read_bytes()
    put(runs / "plain", "analysis/margin.svg", f"<svg><!--{'a' * (257 << 10)}--></svg>")
    (image,) = page_of("plain").within("run-1-analyses", "img")
    kind, content = (image.attributes["src"] or "").split(";base64,")
    assert kind == "data:image/png" and base64.b64decode(content) == (folder / "margin.png").read_bytes()
    for known, shown in ((hashlib.sha256((folder / "margin.png").read_bytes()).hexdigest(), 1), ("0" * 64, 0)):
        put(runs / "plain", "analysis/margin.json", {"pictures": {"png": known}})
        page = page_of("plain")
        assert len(page.within("run-1-analyses", "img")) == shown
        assert ("margin.png is not of its analysis, margin.json; make" in text(page.id("run-1-analyses"))) != shown


def test_an_analysis_that_is_a_link_is_told_to_be_copied(tmp_path: Path) -> None:
    for name in ("margin.json", "margin.svg"):
        (tmp_path / name).symlink_to("kept")
    (tmp_path / "kept").write_text("{}")
    said = "is a link, and nothing of a run is read through one; put a copy in its place."
    (found,) = recorded(tmp_path)
    assert found.problems == (f"{tmp_path / 'margin.json'} {said}", f"{tmp_path / 'margin.svg'} {said}")


def test_every_analysis_is_shown_whatever_its_file_is_called(runs: Path) -> None:
    figures = {"loss_at_x": 0.1, "highest": 5.0, "highest_at_first": 2.4, "highest_at_second": -2.4, "skipped": 0}
    record = {"checkpoint": "best", "epoch": 2, "split": "train", "n": 16, "kind": "cat", "figures": figures}
    pgd = {"name": "pgd-50", "norm": "linf", "eps": 0.15}
    one = {**record, "analysis": "landscape-iseat-7", "kind": "iseat", "index": 7, "n": 1, "attack": pgd}
    put(runs / "plain", "analysis/landscape.json", record | {"analysis": "landscape", "points": 41})
    put(runs / "plain", "analysis/landscape-cat.json", record | {"analysis": "landscape-cat"})
    put(runs / "plain", "analysis/landscape-iseat-7.json", one)
    put(runs / "plain", "analysis/notes.json", {"analysis": "mine"})
    put(runs / "plain", "analysis/margin-old.json", "{")
    page = page_of("plain", samples=0)
    heads = [text(each) for each in page.within("run-1-analyses", "h4")]
    assert heads == [
        *2 * ["landscape, cat, mean of 16 images"],
        "landscape, iseat, image 7",
        "margin-old",
    ]
    said = text(page.id("run-1-analyses"))
    assert "analysis/landscape-cat.json, checkpoint best (epoch 3), train split, n = 16." in said
    assert "analysis/landscape-iseat-7.json, checkpoint best (epoch 3), train split, n = 1, pgd-50 at eps 0.15" in said
    assert "margin-old.json is damaged" in said and "notes" not in said
    assert "analyze landscape" not in said and "analyze margin" not in said and "analyze vulnerability" in said
    assert rows(page, "run-1-analyses", "landscape, iseat, image 7")[1:] == [
        ["loss at x", "0.100 nats"],
        ["highest loss", "5.000 nats at (2.4, -2.4)"],
        ["images left out", "0"],
    ]


@pytest.mark.parametrize("kind", ["vulnerability", "margin", "landscape", "budget"])
def test_figures_of_analyses_have_the_words_of_the_command(runs: Path, kind: str) -> None:
    ran = advkit("analyze", kind, "cat", *([] if kind == "budget" else ["--n", 20]))
    assert ran.code == 0, ran.err
    table = rows(page_of("cat", samples=0), "run-1-analyses", "")[1:]
    printed = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in ran.out.splitlines()}
    named = [(name, value) for name, value in table if value == printed.get(name)]
    assert len(named) >= {"vulnerability": 6, "margin": 8, "landscape": 3, "budget": 7}[kind], (table, printed)


# ---------------------------------------------------------------------- settings, samples


def test_settings_are_complete_and_say_where_they_come_from(runs: Path) -> None:
    page = page_of("cat")
    found = {key: (value, origin) for key, value, origin in rows(page, "run-1-settings", "All settings")[1:]}
    assert set(found) == set(resolve_folder(RunFolder.open(runs / "cat")).values())
    assert found["run.epochs"] == ("3", "given") and found["model.width"] == ("2", "given")
    assert found["attack.eps"] == ("0.15", "data set digits") and found["attack.init"] == ("zero", "plugin cat-eps")
    assert found["attack.step_size"] == ("0.0375", "default") and found["data.name"] == ("digits", "default")
    assert found["cat-eps.eta"][1] == "default" and found["run.seed"] == ("7", "given")
    hooks = rows(page, "run-1-settings", "Composition")
    assert ["perturbation_budget", "cat-eps", "exclusive"] in hooks
    assert ["base_loss", "core: soft cross-entropy on x_adv", "exclusive"] in hooks
    assert rows(page, "run-1-settings", "Passes per step")[1] == ["from epoch 1", "attack", "3", "2", "0"]
    environment = dict(rows(page, "run-1-environment", "What the run was started with"))
    assert environment["torch"] == torch.__version__


def test_settings_that_scale_with_a_typed_eps_stay_defaults(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    typed = (trained / "plain" / "run.toml").read_text()
    file.write_text(re.sub(r"\neps = 0.15\nstep_size = 0.0375", "\neps = 0.2\nstep_size = 0.05", typed))
    found = {row[0]: row[2] for row in rows(page_of(str(tmp_path)), "run-1-settings", "All settings")[1:]}
    assert found["attack.eps"] == "given" and found["attack.step_size"] == "default"


def pixels(image: Element) -> np.ndarray[Any, Any]:
    content = (image.attributes["src"] or "").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)


def test_samples_are_the_first_test_images_before_and_after_the_attack(runs: Path) -> None:
    page = page_of("plain", samples=5)
    resolved = resolve_folder(RunFolder.open(runs / "plain"))
    splits = data_of(resolved)
    model = build_model(resolved, splits.train)
    load_weights(model, runs / "plain")
    model.eval()
    x = to_float(splits.test.images[:5])
    y = splits.test.labels[:5]
    x_adv = x.clone()
    for _ in range(20):  # PGD, written out
        x_adv.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = (x_adv + 0.03 * gradient.sign()).detach()
        x_adv = torch.clamp(x_adv, (x - 0.15).clamp(min=0), (x + 0.15).clamp(max=1))
    images = page.within("run-1-samples", "img")
    captions = [text(each) for each in page.within("run-1-samples", "figcaption")]
    assert len(images) == 15 and len(captions) == 5
    largest = float((x_adv - x).abs().max())
    for i in range(5):
        clean, adversarial, difference = (pixels(each) for each in images[3 * i : 3 * i + 3])
        assert (clean == splits.test.images[i, 0].numpy()).all()
        assert np.abs(adversarial - 255 * x_adv[i, 0].numpy()).max() <= 0.501
        assert np.abs(difference - 255 * (0.5 + (x_adv - x)[i, 0].numpy() * 0.5 / largest)).max() <= 0.501
        before, after = (model(each[i : i + 1]).detach().softmax(1)[0] for each in (x, x_adv))
        expected = [f"{int(p.argmax())} ({100 * float(p.max()):.0f} %)" for p in (before, after)]
        assert captions[i].startswith(f"Label {int(y[i])}: clean {expected[0]}, adversarial {expected[1]};")
        right = [int(p.argmax()) == int(y[i]) for p in (before, after)]
        assert captions[i].endswith("withstood" if right[1] else "fooled" if right[0] else "wrong already")
    assert "step eps/5, linf, eps 0.15" in text(page.id("run-1-samples"))


def test_without_a_budget_nothing_is_added(runs: Path) -> None:
    assert advkit("train", *TINY, "--eps", 0, "--out", "still").code == 0
    images = page_of("still", samples=1).within("run-1-samples", "img")
    clean, adversarial, difference = (pixels(each) for each in images)
    assert (clean == adversarial).all() and (difference == 128).all()


def test_standard_training_is_called_so_and_judged_at_its_last_checkpoint(runs: Path) -> None:
    tiny = ["attack.steps=0" if each == "attack.steps=2" else each for each in TINY]
    assert advkit("train", *tiny, "--out", "standard").code == 0
    page = page_of("standard", "plain", samples=1)
    for number, checkpoint in ((1, "last"), (2, "best")):
        assert f"eps 0.15, at the {checkpoint} checkpoint" in text(page.id(f"run-{number}-samples"))
    head, standard, plain = rows(page, "comparison-runs", "What was trained")
    told = [head.index(name) for name in ("plugins", "attacked in", "cost of a step")]
    assert [standard[i] for i in told] == ["none (standard training)", "–", "1.00 x standard training"]
    assert [plain[i] for i in told] == ["none (PGD-AT)", "linf 0.15", "1.00 x PGD-AT with 2 steps"]
    shown = advkit("runs", "show", "standard").out
    assert "none: standard training" in shown and "none: PGD-AT" in advkit("runs", "show", "plain").out
    figures = [
        json.loads(line)["mean_radius"] for line in (runs / "standard" / "metrics.jsonl").read_text().splitlines()
    ]
    assert figures == [0.0] * 3, "nothing is attacked"

    def said(name: str) -> str:
        return text(page_of(name, samples=0).within("run-1", "p")[1])

    for name, judged, other in (("standard", "last", "best"), ("plain", "best", "last")):
        judge(runs / name, "other", (PGD, range(90)), checkpoint=other, worst_case=half(110))
        assert f"under pgd-20 (checkpoint {other}, test split" in said(name)
        judge(runs / name, "judged", (PGD, range(100)), checkpoint=judged, worst_case=half(100))
        assert said(name).startswith("Worst case 0.500") and "under pgd-20 (test split" in said(name)
        trained_on = {"split": "train", "worst_case": half(300, 400)}
        judge(runs / name, "both", (PGD, range(10)), n=50, checkpoint=judged)
        judge(runs / name, "train", (PGD, range(100)), n=400, checkpoint=judged, **trained_on)
        assert said(name).startswith("Worst case 0.500") and "trained on" not in said(name), "of test images"
        for one in ("other", "judged"):
            shutil.rmtree(runs / name / "evaluations" / one)
        assert said(name).startswith("Worst case 0.750")
        assert said(name).endswith(" It was trained on these images: of others fewer may withstand.")
    page = page_of("standard", "plain", samples=0)
    (chart,) = page.within("comparison-accuracy", "figcaption")
    assert "digits test, n = 50, checkpoint best, of standard training last, the most that runs 1, 2" in text(chart)
    strange = {"eps": 0.1, "worst_case": half(100)}
    for name, against in (("standard", False), ("plain", True)):
        judge(runs / name, "judged", (PGD, range(100)), checkpoint=None, **strange)
        assert ("It was trained against linf 0.15" in said(name)) == against


def half(right: int, n: int = 200) -> dict[str, Any]:
    return {"accuracy": right / n, "interval": wilson(right, n)}


def test_no_samples_where_none_are_wanted(runs: Path) -> None:
    assert "run-1-samples" not in build(["plain"], 0).sections


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "No pictures: plain has no checkpoint 'best' yet"),
        (
            lambda run: swap(run, 'name = "digits"', 'name = "python:mine"'),
            "No pictures: This run was trained on images",
        ),
        (lambda run: swap(run, "limit = 60", "limit = 50"), "is not of the run that plain/run.toml says: data.limit: "),
        (lambda run: swap(run, 'name = "digits"', 'name = "cifar10"'), "No pictures: "),
    ],
    ids=["no weights", "passed data", "other images", "absent data"],
)
def test_where_weights_or_images_are_missing_the_section_says_why(
    runs: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(runs / "plain")
    page = page_of("plain")
    assert sentence in text(page.id("run-1-samples")) and not page.within("run-1-samples", "img")
    assert page.within("run-1-curves", "svg") and faults(page) == []


def swap(folder: Path, old: str, new: str) -> None:
    text = (folder / "run.toml").read_text()
    assert old in text
    (folder / "run.toml").write_text(text.replace(old, new))


def test_a_run_whose_plugin_is_gone_is_shown_without_its_plan(runs: Path) -> None:
    swap(runs / "cat", '"cat-eps"', '"gone-eps"')
    swap(runs / "cat", "[options.cat-eps]", "[options.gone-eps]")
    page = page_of("cat")
    said = text(page.id("run-1-settings"))
    assert "The plan is not known: " in said and "gone-eps" in said
    origins = {row[0]: row[2] for row in rows(page, "run-1-settings", "All settings")[1:]}
    assert origins["gone-eps.eta"] == "run.toml"
    assert page.within("run-1-curves", "svg") and faults(page) == []


def test_where_metrics_are_lost_the_checkpoint_says_how_far_the_run_is(runs: Path) -> None:
    metrics = runs / "plain" / "metrics.jsonl"
    lines, before = metrics.read_text().splitlines(), page_of("plain", "cat")
    for left in ([], lines[1:]):
        metrics.write_text("".join(f"{line}\n" for line in left)) if left else metrics.unlink()
        page = page_of("plain", "cat")
        lost = f"metrics.jsonl has {len(left)} of the {len(lines)} epochs that have ended; the others are lost."
        assert lost in text(page.id("run-1-curves")) and "lost" not in text(before.id("run-1-curves"))
        assert "Not finished" not in text(page.id("comparison")) and faults(page) == []
        assert "no best checkpoint" not in text(page.id("run-1")) and f"{len(lines)} of" in text(page.id("comparison"))


def test_a_run_without_an_epoch_is_shown(runs: Path) -> None:
    (runs / "plain" / "metrics.jsonl").unlink()
    shutil.rmtree(runs / "plain" / "checkpoints")
    page = page_of("plain", "cat")
    assert "No epoch has ended yet; advkit train --resume plain" in text(page.id("run-1-curves"))
    assert "Not finished: run 1." in text(page.id("comparison")) and faults(page) == []


def test_a_run_killed_inside_a_line_is_shown_up_to_it(runs: Path) -> None:
    whole = (runs / "plain" / "metrics.jsonl").read_text()
    before = page_of("plain")
    (runs / "plain" / "metrics.jsonl").write_text(whole + '{"epoch": 2, "los')
    page = page_of("plain")
    title = f"All {len(whole.splitlines())} epochs as figures"
    assert title in text(page.id("run-1-curves"))
    said = (
        "The last line of metrics.jsonl is unfinished and not shown; unless the run goes on now, advkit train --resume"
    )
    assert said in text(page.id("run-1-curves")) and said not in text(before.id("run-1-curves"))
    (runs / "plain" / "metrics.jsonl").write_text(whole.rstrip("\n"))  # all but the end of the line
    assert said not in text(page_of("plain").id("run-1-curves"))
    (runs / "plain" / "metrics.jsonl").write_text('{"epo\n' + whole + '{"epoch": 2, "los')
    assert advkit("report", "plain").code == 4


def test_settings_that_no_run_could_have_name_the_run(runs: Path) -> None:
    swap(runs / "plain", "momentum = 0.9", "momentum = -7.0")
    ran = advkit("evaluate", "plain")
    assert ran.code == 4 and ran.err.startswith("Error: plain/run.toml: optimizer.momentum = -7.0 must be")
    assert "It belongs to a run: restore it, or start a new run." in ran.err
    swap(runs / "cat", '"cat-eps"', '"gone-eps"')
    swap(runs / "cat", "[options.cat-eps]", "[options.gone-eps]")
    for command in (["evaluate", "cat"], ["train", "--resume", "cat"]):
        ran = advkit(*command)
        assert ran.code == 4 and ran.err.startswith("Error: cat/run.toml: Unknown plugin gone-eps.")
        assert "The run was made with it: install it here first, or" in ran.err
    assert advkit("train", "--plugins", "gone-eps", "--out", "new").code == 2  # typed


# ---------------------------------------------------------------------- comparison


def test_several_runs_are_compared_on_equal_terms(runs: Path) -> None:
    judge(runs / "plain", "one", (CLEAN, range(20)), (PGD, range(100)))
    judge(runs / "cat", "small", (CLEAN, range(10)), (PGD, range(75)), n=100)
    page = page_of("plain", "cat")
    said = "No two runs have been evaluated on the same number of test images at the best checkpoint."
    assert said in text(page.id("comparison-accuracy")) and not page.within("comparison-accuracy", "figure")
    for n, cells in ((200, ["0.500 0.431 to 0.569", "–"]), (100, ["–", "0.250 0.175 to 0.343"])):  # no row has both
        table = rows(page, "comparison-accuracy", f"Accuracy with 95 % interval: digits test, n = {n}, checkpoint best")
        assert table[0] == ["attack", "1 plain", "2 cat"]
        assert ["pgd-20 linf 0.15, step 0.03", *cells] in table
    judge(runs / "cat", "one", (CLEAN, ()), (PGD, range(100)))
    judge(runs / "cat", "two", (CLEAN, ()), (PGD, range(80, 200)), seed=1)
    page = page_of("plain", "cat")
    assert said not in text(page.id("comparison-accuracy"))
    table = rows(page, "comparison-accuracy", "Accuracy with 95 % interval: digits test, n = 200, checkpoint best")
    assert ["pgd-20 linf 0.15, step 0.03", "0.500 0.431 to 0.569", "0.400 0.335 to 0.469"] in table  # the lower
    cautions = text(page.id("comparison-runs"))
    assert "differ in their data" not in cautions and "differ in norm" not in cautions
    assert ["run.seed", "0", "7"] in (settings := rows(page, "comparison-settings", "Values by run"))
    assert "--init-from" not in [row[0] for row in settings]
    environment = json.loads((runs / "cat" / "environment.json").read_text())
    (runs / "cat" / "environment.json").write_text(json.dumps(environment | {"init_from": "runs/at"}))
    settings = rows(page_of("plain", "cat"), "comparison-settings", "Values by run")
    assert ["--init-from", "–", "runs/at"] in settings


def test_a_table_says_whose_averaged_weights_it_is_of(runs: Path) -> None:
    """A run whose best epoch lies before its average began."""
    judge(runs / "plain", "one", (PGD, range(80)))
    judge(runs / "cat", "one", (PGD, range(100)))
    judge(runs / "cat", "last", (PGD, range(90)), checkpoint="last", weights="averaged", images=CHOSEN)
    page = page_of("plain", "cat")
    captions = [text(each) for each in page.within("comparison-accuracy", "caption")]
    head = "Accuracy with 95 % interval: digits test, n = 200, checkpoint"
    assert captions == [f"{head} best ({CHOSEN})", f"{head} last ({CHOSEN}); averaged weights: run 2"]
    said = "Run 2: best is judged by raw weights, last by averaged ones, so averaging is part of how they differ."
    assert said in text(page.id("comparison-accuracy"))
    assert "Worst case" not in (own := text(page.id("run-2-evaluations"))) and own.count("averaged weights") == 1
    assert "averaged" not in text(page.id("run-2-samples")) + text(page.id("run-1-evaluations"))
    for name in ("plain", "cat"):
        judge(runs / name, "one", (PGD, range(80)), weights="averaged", worst_case=half(120), images=CHOSEN)
    page = page_of("plain", "cat", samples=0)
    compared = text(page.id("comparison-accuracy"))
    assert "the most that runs 1, 2 share; averaged weights: runs 1, 2" in compared and "raw" not in compared
    assert f"under pgd-20 (test split, {CHOSEN}, averaged weights)" in text(page.within("run-1", "p")[1])


def test_the_worst_case_is_over_what_all_runs_share_image_by_image(runs: Path) -> None:
    judge(runs / "plain", "one", (PGD | {"name": "fgsm"}, range(50)), (PGD, (0, 1, 2)), (CW, (2, 3)))
    judge(runs / "cat", "one", (CLEAN, ()), (PGD, (5,)), (CW, (6,)))
    table = rows(page_of("plain", "cat", samples=0), "comparison-accuracy", "Accuracy with 95 % interval")
    (worst,) = (row for row in table if row[0].startswith("worst case"))
    expected = [f"{r / 200:.3f} {low:.3f} to {high:.3f}" for r in (196, 198) for low, high in [wilson(r, 200)]]
    assert worst == ["worst case linf 0.15, over pgd-20, cw-20", *expected]


def test_worst_cases_are_those_of_the_evaluations_where_all_is_shared(runs: Path) -> None:
    worst = []
    for name in ("plain", "cat"):
        assert advkit("evaluate", name, "--attacks", "pgd-2,cw-2", "--eps", 0.05, "--n", 60).code == 0
        (file,) = (runs / name).glob("evaluations/*/n-60/evaluation.json")
        found = json.loads(file.read_text())["worst_case"]
        worst.append(f"{found['accuracy']:.3f} {markup.span(found['interval'])}")
    table = rows(page_of("plain", "cat", samples=0), "comparison-accuracy", "Accuracy with 95 % interval")
    assert table[-1] == ["worst case linf 0.05, over pgd-2, cw-2", *worst]


@pytest.mark.parametrize("content", [None, "", "index,label,pgd-20\n0,0,1\n", "\0", "a,b\n1\n"])
def test_verdicts_that_do_not_fit_are_named(runs: Path, content: str | None) -> None:
    for name in ("plain", "cat"):
        judge(runs / name, "one", (PGD, (5,)))
    file = runs / "cat/evaluations/one/n-200/verdicts.csv"
    file.unlink() if content is None else file.write_text(content)
    page = page_of("plain", "cat", samples=0)
    table = rows(page, "comparison-accuracy", "Accuracy with 95 % interval")
    assert table[-1][0].startswith("worst case") and table[-1][2] == "–" != table[-1][1]
    said = text(page.id("comparison-accuracy"))
    if content is None:
        assert "No worst case of run 2: cat/evaluations/one/n-200/verdicts.csv " in said
    else:
        assert f"An evaluation of run 2 is left out: {NOT_ITS}" in said
        assert text(page.id("run-2-evaluations")).endswith(f"one/n-200{NOT_ITS}")


NOT_ITS = "cat/evaluations/one/n-200/verdicts.csv does not fit its evaluation.json; make both again with fresh."
FORGED = {
    "accuracy": (("attacks", 0), {"accuracy": 0.96}),
    "interval": (("attacks", 0), {"interval": [0.95, 0.97]}),
    "worst case": (("worst_case",), {"accuracy": 0.96, "interval": [0.92, 0.98]}),
    "what is listed": (("robustbench",), {"reported": "96.00"}),
}


@pytest.mark.parametrize("what", [None, *FORGED])
def test_figures_are_those_of_the_verdicts_beside_them(runs: Path, what: str | None) -> None:
    low, high = wilson(160, 200)
    worst = {"accuracy": 0.8, "interval": [low, high]}
    judge(runs / "cat", "one", (PGD, range(40)), worst_case=worst, robustbench={"reported": "80.00"})
    file = runs / "cat/evaluations/one/n-200/evaluation.json"
    found = json.loads(file.read_text())
    if what:
        path, figures = FORGED[what]
        reduce(getitem, path, found).update(figures)  # type: ignore[call-overload]
        file.write_text(json.dumps(found))
    page = page_of("cat", samples=0)
    assert (NOT_ITS in text(page.id("run-1-evaluations"))) == (what is not None)
    assert ("Worst case 0.800" in text(page.id("run-1"))) == (what is None)


def test_worst_cases_at_another_eps_or_in_another_norm_are_other_figures(runs: Path) -> None:
    judge(runs / "plain", "one", (PGD, ()), (PGD | {"name": "pgd-20-l2", "norm": "l2", "eps": 0.5}, (1,)))
    judge(runs / "cat", "one", (PGD, ()))
    judge(runs / "cat", "two", (PGD | {"eps": 0.1}, ()), eps=0.1)
    page = page_of("plain", "cat", samples=0)
    table = rows(page, "comparison-accuracy", "Accuracy with 95 % interval")
    worst = {row[0]: "–" in row for row in table if row[0].startswith("worst case")}
    assert worst == {
        "worst case linf 0.15, over pgd-20": False,
        "worst case l2 0.5, over pgd-20": True,
        "worst case linf 0.1, over pgd-20": True,
    }
    # In a run of that norm the attack is called without it, and is the same one.
    judge(runs / "cat", "two", (PGD | {"norm": "l2", "eps": 0.5}, (0,)), eps=0.5)
    shared = rows(page_of("plain", "cat", samples=0), "comparison-accuracy", "Accuracy with 95 % interval")
    assert [row[-2:] for row in shared if row[0].startswith("worst case l2")] and not any(
        "–" in row for row in shared if row[0].startswith(("pgd-20 l2", "worst case l2"))
    )
    # The runs' own ball is not repeated in the chart; another one is named.
    judge(runs / "cat", "one", (PGD, ()), (PGD | {"name": "pgd-20-l2", "norm": "l2", "eps": 0.5}, (1,)))
    told = text(page_of("plain", "cat", samples=0).id("comparison-bars-d"))
    assert "worst case, 1: 1.000," in told and "worst case, l2 0.5, 1: 0.995," in told


def test_the_chart_shows_the_largest_n_that_runs_share_and_tables_follow_in_that_order(runs: Path) -> None:
    for name in ("plain", "cat"):
        judge(runs / name, "best", (PGD, (0,)), n=40)
        judge(runs / name, "best", (CLEAN, ()), (PGD, (0, 1)), (CW, ()), n=100)
        judge(runs / name, "last", (PGD, (0, 1, 2)), n=150, checkpoint="last")
    judge(runs / "plain", "best", (PGD, (0, 1, 2, 3)), n=190)
    page = page_of("plain", "cat", samples=0)
    (figure,) = page.within("comparison-accuracy", "figcaption")
    shown = "digits test, n = 100, checkpoint best"
    assert text(figure) == f"Accuracy with 95 % intervals: {shown}, the most that runs 1, 2 share"
    told = text(page.id("comparison-bars-d"))
    assert "pgd-20, 1: 0.980" in told and [told.count(f"{name}, 2:") for name in ("clean", "pgd-20", "cw-20")] == 3 * [
        1
    ]
    captions = [text(each).partition(": ")[2] for each in page.within("comparison-accuracy", "caption")]
    others = ["n = 190, checkpoint best", "n = 150, checkpoint last", "n = 40, checkpoint best"]
    assert captions == [shown, *(f"digits test, {each}" for each in others)]
    keys = [e for e in page.within("comparison", "ul") if e.attributes.get("class") == "key"]
    assert len(keys) == 2 and all(text(each) == "1 plain2 cat" for each in keys)
    sizes = [text(each) for each in page.within("run-1-evaluations", "h4")]
    assert sizes == ["best/n-190", "last/n-150", "best/n-100", "best/n-40"]


def test_runs_without_an_evaluation_are_named_and_validation_is_no_substitute(runs: Path) -> None:
    page = page_of("plain", "cat")
    assert [text(each) for each in page.within("comparison-accuracy", "code")] == [
        f"advkit evaluate {name} --attacks clean,pgd-20,cw-20" for name in ("plain", "cat")
    ]
    head, first, _ = rows(page, "comparison-validation", "Accuracy on the validation images")
    assert head == ["run", "best epoch", "images", "clean", "pgd-2", "cw-2"]
    best = [row for row in RunFolder.open(runs / "plain").history() if row["best"]][-1]
    assert first[1] == str(best["epoch"] + 1) and first[2] == str(best["validation"]["n"])
    assert first[4].startswith(f"{best['validation']['pgd-2']:.3f} ")
    curves = text(page.id("run-1-curves"))
    assert f"Validation: {first[2]} images, 0.1 of the training split, held out at random by run.seed." in curves
    assert "they are no evaluation" in text(page.id("comparison-validation"))


def test_runs_on_different_data_are_said_to_be(runs: Path) -> None:
    assert advkit("train", *TINY, "--limit", 50, "--out", "fewer").code == 0
    for samples in (0, 1):  # from the settings, and from the images' fingerprints
        said = text(page_of("plain", "fewer", samples=samples).id("comparison-runs"))
        assert "The runs differ in their data (run 1: digits with limit 60; run 2: digits with limit 50)" in said
        assert "differ in their data" not in text(page_of("plain", "cat", samples=samples).id("comparison-runs"))


def test_runs_of_different_threats_are_said_to_be(runs: Path) -> None:
    assert advkit("train", *TINY, "--eps", 0.1, "--out", "narrower").code == 0
    assert "The runs differ in norm or eps" in text(page_of("plain", "narrower", samples=0).id("comparison-runs"))


# ---------------------------------------------------------------------- the command


def test_the_command_writes_the_page_and_says_so(runs: Path) -> None:
    (runs / "a.html").write_text('<!doctype html>\n<meta name="generator" content="advkit 0.1.0">')
    ran = advkit("report", "plain", "cat", "--out", "a.html", "--samples", 1, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    content = (runs / "a.html").read_bytes()
    assert found.keys() == {"out", "bytes", "seconds", "runs", "sections", "doubts", "without_pictures"}
    assert found["out"] == "a.html" and found["bytes"] == len(content) and found["seconds"] >= 0
    assert found["runs"] == ["plain", "cat"]
    assert found["sections"][:2] == ["comparison", "run-1"]
    assert found["sections"][2:9] == [f"run-1-{part}" for part in PARTS]
    page = Outline(content.decode())
    assert faults(page) == [] and all(page.id(name).tag == "section" for name in found["sections"])
    before = {file for file in runs.rglob("*") if file.is_file()}
    assert advkit("report", "plain", "cat", "--samples", 1).out.startswith("report.html: 2 runs, ")
    assert (runs / "report.html").read_bytes() == content  # the same runs, the same page
    assert {file for file in runs.rglob("*") if file.is_file()} == before | {runs / "report.html"}


def test_the_terminal_says_what_keeps_pictures_out_and_how_to_get_them(runs: Path) -> None:
    put(runs / "cat", "analysis/margin.json", {"figures": {"q50": 1.25}})
    shutil.rmtree(runs / "cat" / "checkpoints")
    said = advkit("report", "plain", "cat", "--samples", 1).err.splitlines()
    assert said[0] == "plain: No analysis has been made yet: advkit analyze vulnerability plain is one."
    assert said[1] == "cat: The analysis margin has no picture; pip install 'advkit[plot]', and make it again."
    assert said[2].startswith("cat: No sample pictures: ") and len(said) == 3
    put(runs / "plain", "analysis/margin.json", {"figures": {"q50": 1.25}})
    put(runs / "plain", "analysis/margin.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert advkit("report", "plain", "--samples", 1).err == "", "where all is there nothing is said"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["absent"], 4, "absent is not a run folder"),
        (["plain", "torn"], 4, "metrics.jsonl is damaged"),
        (["plain", "loop"], 4, "loop is not a run folder: "),
        (["plain", "plain"], 2, "plain is named twice; name each run once."),
        (["plain", "cat/../plain"], 2, "cat/../plain is named twice"),
        ([], 2, "Missing argument"),
        (["plain", "--samples", "many"], 2, "--samples"),
        (["plain", "--out", "cat"], 2, "--out cat can not be written (it is a folder); name another file."),
        (["plain", "--out", "a.pdf"], 2, "A report is a page of HTML, and a.pdf is no name of one; give --out a.html."),
        (["plain", "--out", "no/a.html"], 2, "--out no/a.html can not be written (its folder does not exist)"),
        (["plain", "--out", "plain/run.toml/a.html"], 2, "--out plain/run.toml/a.html can not be written"),
        (["plain", "--out", "a" * 300], 2, "can not be written (File name too long)"),
    ],
)
def test_refusals(runs: Path, arguments: list[str], code: int, sentence: str) -> None:
    shutil.copytree(runs / "cat", runs / "torn", symlinks=True)
    (runs / "torn" / "metrics.jsonl").write_text('{"epoch": 0}\n5\n')
    (runs / "report.html").write_text("old")
    (runs / "loop").symlink_to("loop")
    ran = advkit("report", *arguments)
    assert (ran.code, ran.out) == (code, "") and sentence in ran.err and ran.err.count("\n") == 1
    assert (runs / "report.html").read_text() == "old"


def test_a_damaged_run_file_is_refused(runs: Path) -> None:
    (runs / "plain" / "run.toml").write_text("[run")
    ran = advkit("report", "plain")
    assert ran.code == 4 and "run.toml is not valid TOML" in ran.err


# ---------------------------------------------------------------------- charts and colours


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_lines_run_through_their_points() -> None:
    points = [(1.0, 0.0), (2.0, 0.25), (5.0, 1.0)]
    page = Outline(charts.lines("k", "T", [Series("a", points, 0)], share=True))
    (path,) = [each.attributes["d"] for each in page.all("path") if each.attributes["class"] == "line s0"]
    (x0, y0), (x1, y1), (x2, y2) = coordinates(path or "")
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=1e-3)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 4, abs=1e-3) and y2 < y0  # upwards
    assert text(page.id("k-t")) == "T"
    assert text(page.id("k-d")) == "a: 0 at epoch 1, 1 at epoch 5, between 0 and 1."


def test_a_logarithmic_axis_gives_every_decade_its_length() -> None:
    page = Outline(charts.lines("k", "T", [Series("a", [(1, 0.1), (2, 0.01), (3, 0.001)], 0)], log=True))
    (path,) = [each.attributes["d"] for each in page.all("path") if each.attributes["class"] == "line s0"]
    ys = [y for _, y in coordinates(path or "")]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11) and ys[1] > ys[0]


def test_whiskers_span_the_interval() -> None:
    page = Outline(charts.bars("k", "T", [("pgd", [Bar("", 0.5, (0.25, 0.75), 0)])]))
    grid = [each.attributes["d"] or "" for each in page.all("path") if each.attributes["class"] == "grid"]
    left, right = (float(re.findall(r"M([\d.]+)", grid[place])[0]) for place in (0, -1))
    (whisker,) = [each.attributes["d"] or "" for each in page.all("path") if each.attributes["class"] == "line s0"]
    low, high = float(re.findall(r"M([\d.]+)", whisker)[0]), float(re.findall(r"H([\d.]+)", whisker)[0])
    assert (low - left) / (right - left) == pytest.approx(0.25, abs=1e-3)
    assert (high - left) / (right - left) == pytest.approx(0.75, abs=1e-3)


def test_a_line_ends_in_one_marker_beside_its_name() -> None:
    runs = [Series("a", [(1, 0.5), (2, 0.7), (3, 0.7)], 0), Series("b", [(1, 0.5), (2, 0.6)], 1)]
    page = Outline(charts.lines("k", "T", runs, share=True))
    marks = Counter(each.attributes["class"] for each in page.all("path"))
    assert marks["mark s0"] == 3 and marks["lead"] == 1  # the last point's is that of the name
    assert marks["mark s1"] == 3  # a line that stops early keeps its last


def test_names_in_charts_are_whole_and_have_room() -> None:
    name = "transfer:runs/a-name-that-is-much-longer-than-a-line"
    page = Outline(charts.bars("k", "T", [(f"{name}\nl2 0.5", [Bar("1", 0.5, (0.4, 0.6), 0)])]))
    assert name in "".join("".join(each.text) for each in page.all("text"))
    for chart in (page, Outline(charts.lines("k", "T", [Series(n, [(1, 1), (2, 2)], 0) for n in ("ab", name)]))):
        (svg,) = chart.all("svg")
        width = float((svg.attributes["viewbox"] or "").split()[2])
        for each in chart.all("text"):
            x, size = float(each.attributes["x"] or ""), 6.5 * len(text(each))
            low = x - size if each.attributes["text-anchor"] == "end" else x
            assert low >= 0 and (each.attributes["text-anchor"] != "start" or x + size <= width), text(each)
    assert any(text(each) == name for each in chart.all("text"))


@settings(deadline=None, max_examples=100)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_cover_what_they_measure(low: float, width: float, about: int) -> None:
    found = charts.ticks(low, low + width, about)
    assert len(found) >= 2 and found == sorted(set(found)) and len(found) <= about + 3
    slack = 1e-6 * max(1.0, abs(low), width)
    assert found[0] <= low + slack and found[-1] >= low + width - slack


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_keep_apart_and_in_order(wanted: list[float]) -> None:
    placed = charts._apart(wanted, 15, 0, 100)
    assert all(-1e-6 <= each <= 100 + 1e-6 for each in placed)
    gap = min(15, 100 / max(1, len(wanted) - 1))
    ranked = sorted(placed)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ranked))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert [placed[i] for i in order] == ranked


def test_thirty_lines_differ_without_colour() -> None:
    looks = set()
    for style in range(30):
        page = Outline(charts.swatch(style))
        line, mark = page.all("path")
        shape = re.sub(r"[\d.-]+", "0", mark.attributes["d"] or "") + str(style % charts.MARKERS)
        looks.add((line.attributes.get("stroke-dasharray"), shape))
    assert len(looks) == 30
    shapes = {Outline(charts.swatch(style)).all("path")[1].attributes["d"] for style in range(charts.MARKERS)}
    assert len(shapes) == charts.MARKERS


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5
    style = Path(charts.__file__).with_name("page.css").read_text()
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    light, dark = (scheme for scheme in schemes if scheme)
    assert light.keys() == dark.keys() and {f"s{i}" for i in range(charts.COLOURS)} < light.keys()
    for scheme in (light, dark):
        for name in scheme.keys() - {"paper", "panel", "rule"}:
            for ground in ("paper", "panel"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)


def test_figures_of_a_checkpoint_that_is_the_best_no_more_are_marked_and_not_compared(runs: Path) -> None:
    """A run that was judged, went on and found a better epoch: its old figures are another net's."""
    rows = [json.loads(line) for line in (runs / "plain" / "metrics.jsonl").read_text().splitlines()]
    best = max(row["epoch"] for row in rows if row["best"])
    for name in ("plain", "cat"):
        judge(runs / name, "old", (CLEAN, []), (PGD, range(40)))
    judge(runs / "plain", "stale", (CLEAN, range(100)), (PGD, range(190)), epoch=best + 5, audit=AUDIT["checks"])
    judge(runs / "plain", "stopped", (CLEAN, range(100)), checkpoint="last", epoch=-1)
    put(runs / "plain", "audit.json", AUDIT | {"epoch": best + 5})
    page = page_of("plain", "cat")
    assert "raises alarms" not in text(page.id("comparison"))
    compared = text(page.id("comparison-accuracy"))
    assert "pgd-20, 1: 0.800" in compared and "0.500" not in compared and "0.050" not in compared
    why = f"of the best checkpoint of then, epoch {best + 6}; the best is now epoch {best + 1}."
    assert f"An evaluation of run 1 at n = 200 is left out: it is {why}" in compared
    assert f"it is of the last checkpoint of then, epoch 0; the run has gone on to epoch {len(rows)}." in compared
    own = text(page.id("run-1"))
    assert f"This evaluation is {why}" in own and f"This audit is {why}" in own


def test_what_was_copied_from_another_run_is_marked_and_not_compared(runs: Path) -> None:
    """The weights' hash tells, of evaluations, audits and analyses."""
    own = {name: of_run(runs / name, "best").record for name in ("plain", "cat")}
    other = own["cat"] | {"epoch": own["plain"]["epoch"]}
    for name in ("plain", "cat"):
        judge(runs / name, "own", (CLEAN, []), (PGD, range(40)), **own[name])
    judge(runs / "plain", "copied", (CLEAN, range(100)), (PGD, range(190)), audit=AUDIT["checks"], **other)
    put(runs / "plain", "audit.json", AUDIT | other)
    put(runs / "plain", "analysis/margin.json", other | {"checkpoint": None, "analysis": "margin", "figures": {}})
    page = page_of("plain", "cat")
    why = "of other weights than the best checkpoint has: of another run, or of an older checkpoint."
    assert "raises alarms" not in text(page.id("comparison"))
    compared = text(page.id("comparison-accuracy"))
    assert "0.050" not in compared and f"An evaluation of run 1 at n = 200 is left out: it is {why}" in compared
    mine = text(page.id("run-1"))
    assert all(f"This {what} is {why}" in mine for what in ("evaluation", "audit", "analysis"))
    assert mine.count(why) == 3 and why not in text(page.id("run-2"))


def test_what_was_measured_in_another_net_is_marked_and_not_compared(runs: Path) -> None:
    """The same weights behind a quantiser, say: a better figure, which is none of the run's net."""
    apart = {"another_net": ["net.py has changed", "The code is another"]}
    for name in ("plain", "cat"):
        judge(runs / name, "own", (CLEAN, []), (PGD, range(40)), worst_case=half(160))
    judge(runs / "plain", "other", (CLEAN, []), (PGD, range(190)), n=300, audit=AUDIT["checks"], **apart)
    put(runs / "plain", "audit.json", AUDIT | apart)
    put(runs / "plain", "analysis/margin.json", apart | {"checkpoint": None, "analysis": "margin", "figures": {}})
    page = page_of("plain", "cat", samples=0)
    why = "of another net than the run's: net.py has changed; The code is another."
    assert "raises alarms" not in text(page.id("comparison"))
    compared = text(page.id("comparison-accuracy"))
    assert "0.367" not in compared and f"An evaluation of run 1 at n = 300 is left out: it is {why}" in compared
    mine = text(page.id("run-1"))
    assert all(f"This {what} is {why}" in mine for what in ("evaluation", "audit", "analysis"))
    _, verdict, *_ = page.within("run-1", "p")
    assert text(verdict).startswith(
        "Worst case 0.800 (0.739 to 0.850) within linf 0.15 under pgd-20 (test split, n = 200)"
    )
    # Where two sets of test images were judged, the sentence says which one it is of.
    for name, sha256, right in (("own", "a", 160), ("two", "b", 150)):
        broken = range(right, 200)
        judge(runs / "plain", name, (PGD, broken), worst_case=half(right), sha256_of_split=64 * sha256)
    _, verdict, *_ = page_of("plain", samples=0).within("run-1", "p")
    assert "Worst case 0.750" in text(verdict) and "(test split, n = 200, images bbbbbbbb)" in text(verdict)


def test_only_an_older_report_is_replaced(runs: Path) -> None:
    mine, run_file = runs / "thesis.html", runs / "plain" / "run.toml"
    mine.write_text("<!doctype html>\n<html><body>Mine</body></html>")
    for file in (mine, run_file):
        before = file.read_bytes()
        ran = advkit("report", "plain", "--samples", 0, "--out", file)
        assert (ran.code, ran.err) == (
            2,
            f"Error: --out {file} is there and is no report of advkit; name another file.\n",
        )
        assert file.read_bytes() == before
    for _ in range(2):
        assert advkit("report", "plain", "--samples", 0, "--out", runs / "page.html").code == 0


@pytest.mark.parametrize("disk", ["ENOSPC", "EDQUOT", "EFBIG", "EIO"])
def test_a_full_disk_is_no_fault_of_what_was_typed(runs: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(getattr(errno, disk), "It is full")

    monkeypatch.setattr("advkit.storage.files.write_new", full)
    for command in (("report", "plain"), ("analyze", "landscape", "plain", "--n", 2, "--points", 3, "--out", "here")):
        ran = advkit(*command)
        assert ran.code == 4 and "can not be written (It is full); free some space." in ran.err, ran


def test_an_integer_beyond_all_floats_is_no_figure(runs: Path) -> None:
    file = runs / "plain" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["loss"] = 10**400
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert advkit("report", "plain").code == 0
    rows[0]["epoch"] = 10**400
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = advkit("report", "plain")
    assert ran.code == 4 and "metrics.jsonl is damaged" in ran.err
