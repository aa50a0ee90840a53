"""`advkit report` in a real headless Chromium: no error, no request, everything visible, on every kind of screen.

Chromium is the system's, driven by the package `playwright`; where one of them is absent the tests are skipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advkit.cli.main import run
from advkit.evaluation.statistics import wilson

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
NAMES = ("pgd-at", "cat", "a-name-that-is-much-longer-than-any-label-of-a-chart-and-has-no-blank")
WIDE, NARROW, PAPER = ({"width": w, "height": 900} for w in (1200, 400, 700))


def advkit(*arguments: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run([str(each) for each in arguments]) == 0


def accuracy(right: int) -> dict[str, Any]:
    return {"accuracy": right / 50, "interval": wilson(right, 50)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three runs, one with everything a run can have; figures of evaluation and audit are made up here."""
    folder = tmp_path_factory.mktemp("browser")
    tiny = ["--limit", 60, "--batch-size", 30, "--epochs", 2, "--set", "model.width=2", "--set", "attack.steps=2"]
    for name, plugins in zip(NAMES, ("", "cat-eps", "lsiw"), strict=True):
        advkit("train", "--plugins", plugins, *tiny, "--progress", "none", "--out", folder / name)
    attacks = [{"name": "clean", **accuracy(40)}, {"name": "pgd-20", "eps": 0.15, "steps": 20, **accuracy(25)}]
    evaluation = {"split": "test", "n": 50, "norm": "linf", "eps": 0.15, "attacks": attacks, "suspect": True}
    evaluation["checkpoint"] = "best"
    robust = [(i, 0, int(i < 40), int(i < 25)) for i in range(50)]
    verdicts = "".join(f"{','.join(map(str, row))}\n" for row in [("index", "label", "clean", "pgd-20"), *robust])
    check = {"name": "large-eps", "figure": 0.1, "threshold": 0.0, "alarm": True, "sentence": "Something is left. " * 9}
    for path, value in (
        ("audit.json", {"checks": [check, {**check, "alarm": False}], "alarms": ["large-eps"]}),
        ("analysis/margin.json", {"figures": {"q50": 1.25}, "long": "word" * 100}),
    ):
        (folder / NAMES[1] / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / NAMES[1] / path).write_text(json.dumps(value))
    for name in NAMES[1:]:
        home = folder / name / "evaluations/one/n-50"
        home.mkdir(parents=True)
        (home / "evaluation.json").write_text(json.dumps({**evaluation, "worst_case": accuracy(25)}))
        (home / "verdicts.csv").write_text(verdicts)
    Image.new("L", (900, 300), 200).save(folder / NAMES[1] / "analysis" / "margin.png")
    advkit("report", *(folder / name for name in NAMES), "--out", folder / "report.html", "--samples", 4)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page with all that went wrong in it: console messages, errors, and requests for anything but the file."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        self.page = browser.new_page(**how)
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url[:99]}"))
        self.page.on("request", lambda request: self._asked(request.url, file.as_uri()))
        self.page.goto(file.as_uri())

    def _asked(self, url: str, own: str) -> None:
        if url != own and not url.startswith("data:"):
            self.faults.append(f"asked for {url}")

    def seen(self) -> dict[str, list[float]]:
        """Width and height of every section by id, (0, 0) where it or its heading is not visible."""
        found: dict[str, list[float]] = self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll('section')].map(section => {
                const heading = document.getElementById(section.getAttribute('aria-labelledby'))
                const box = section.getBoundingClientRect()
                const visible = heading.checkVisibility({opacityProperty: true, visibilityProperty: true})
                return [section.id, visible ? [box.width, box.height] : [0, 0]]
            }))"""
        )
        return found

    def overflow(self) -> float:
        """By how many pixels the page is wider than the screen."""
        return float(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_opens_without_a_fault_and_shows_every_section(
    chromium: Any, report: Path, scheme: str, screen: dict[str, int]
) -> None:
    watched = Watched(chromium, report, color_scheme=scheme, viewport=screen)
    seen = watched.seen()
    assert len(seen) == 6 + 3 * 8 + 3 and all(width > 300 and height > 20 for width, height in seen.values()), seen
    assert watched.overflow() == 0
    assert watched.faults == []
    pictures = watched.page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(pictures) == 3 * 4 * 3 + 1 and all(pictures)


def test_faults_are_noticed(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    file.write_text(
        "<!doctype html><script>console.error('e')</script><img src='b.png'><div style='width:3000px'>a</div>"
        "<section aria-labelledby='h'><h2 id='h' style='display:none'>b</h2></section>"
    )
    watched = Watched(chromium, file, viewport=WIDE)
    assert {fault.split(":")[0] for fault in watched.faults} >= {"error", "failed", "asked for file"}
    assert watched.overflow() > 1000 and list(watched.seen().values()) == [[0, 0]]


def test_wide_tables_keep_their_first_column_and_intervals_have_a_line(chromium: Any, report: Path) -> None:
    watched = Watched(chromium, report, viewport=NARROW)
    scrolled: list[list[float]] = watched.page.evaluate(
        """() => [...document.querySelectorAll('#comparison .scroll')].map(box => {
            box.scrollLeft = 10000
            const edge = box.getBoundingClientRect().left
            const lefts = [...box.querySelectorAll('tr')].map(row => row.cells[0].getBoundingClientRect().left - edge)
            return [box.scrollLeft, ...lefts]
        })"""
    )
    assert any(first > 50 for first, *_ in scrolled)
    assert all(abs(left) < 1 for _, *lefts in scrolled for left in lefts), scrolled
    below = """[...document.querySelectorAll('#comparison td small')].map(small =>
        small.getBoundingClientRect().top - small.parentElement.getBoundingClientRect().top)"""
    for screen in (WIDE, NARROW):
        tops = Watched(chromium, report, viewport=screen).page.evaluate(below)
        assert len(tops) > 10 and min(tops) > 15, tops


def test_light_and_dark_differ_and_charts_follow(chromium: Any, report: Path) -> None:
    def colours(scheme: str) -> list[str]:
        page = Watched(chromium, report, color_scheme=scheme, viewport=WIDE).page
        found: list[str] = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector('.chart text')).fill,
                getComputedStyle(document.querySelector('.chart .line')).stroke]"""
        )
        return found

    light, dark = colours("light"), colours("dark")
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert light[0] == "rgb(255, 255, 255)" and light[2] == light[1] and dark[2] == dark[1]


def test_paper_is_white_and_has_what_is_folded_on_the_screen(chromium: Any, report: Path) -> None:
    watched = Watched(chromium, report, color_scheme="dark", viewport=PAPER)
    tables = "[...document.querySelectorAll('details:not(.defaults) table')]"
    rows = f"{tables}.map(t => t.getBoundingClientRect().height)"
    shut = f"{tables}.map(t => t.checkVisibility({{contentVisibilityAuto: true}}))"
    assert not any(watched.page.evaluate(shut))
    watched.page.emulate_media(media="print", color_scheme="dark")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(watched.page.evaluate(shut)) and all(height > 20 for height in watched.page.evaluate(rows))
    assert not watched.page.locator("details.defaults").first.is_visible()  # the rest of the settings is the run's file
    assert not watched.page.locator("nav").is_visible() and not watched.page.locator("summary").first.is_visible()
    assert watched.overflow() == 0
    assert all(width > 300 and height > 20 for width, height in watched.seen().values())
    pages = len(re.findall(rb"/Type\s*/Page\b", watched.page.pdf(format="A4")))
    assert 6 <= pages <= 40
    assert watched.faults == []


def test_paper_breaks_no_head_of_a_column_and_leaves_no_page_for_a_title(
    chromium: Any, report: Path, tmp_path: Path
) -> None:
    page = tmp_path / "one.html"
    advkit("report", report.parent / NAMES[1], "--out", page, "--samples", 0)
    watched = Watched(chromium, page, viewport=PAPER)
    watched.page.emulate_media(media="print")
    breaks = "getComputedStyle(document.querySelector('section[id^=run-]')).breakBefore"
    assert watched.page.evaluate(breaks) == "auto"
    several = Watched(chromium, report, viewport=PAPER)
    several.page.emulate_media(media="print")
    assert several.page.evaluate(breaks) == "page"  # a comparison stands before them
    wraps = "[...document.querySelectorAll('thead th')].map(head => getComputedStyle(head).overflowWrap)"
    assert {*watched.page.evaluate(wraps)} == {"normal"}


def test_the_keyboard_reaches_everything_first_the_skip_link(chromium: Any, report: Path) -> None:
    page = Watched(chromium, report, viewport=WIDE).page
    page.keyboard.press("Tab")
    focused = "[document.activeElement.textContent, document.activeElement.getBoundingClientRect().x]"
    assert page.evaluate(focused) == ["Skip to the report", 8]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    page.keyboard.press("Tab")  # the first link or table after it
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0)")
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_a_screen_reader_is_told_what_charts_and_tables_are(chromium: Any, report: Path) -> None:
    page = Watched(chromium, report, viewport=WIDE).page
    assert page.get_by_role("main").count() == page.get_by_role("navigation").count() == 1
    charts = page.get_by_role("img").filter(has=page.locator("desc"))
    assert charts.count() == 7 + 1 + 3 * 4 + 2
    assert page.get_by_role("img", name="Validation, PGD on the margin").count() == 1
    assert page.get_by_role("table", name="Checks for masked gradients").count() == 1
    assert page.get_by_role("region", name="Sample pictures").count() == 3
