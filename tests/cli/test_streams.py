"""stdout and stderr as they may be, and terminals that obey what a folder is called."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from advkit.cli import display
from advkit.cli.display import stdout, table_of, text
from advkit.cli.main import cli, echo, print_json, run
from advkit.escapes import escaped

TINY = ["--limit", "60", "--epochs", "2", "--set", "model.width=2", "--set", "attack.steps=1"]
TINY += ["--set", "validation.steps=1"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def rare(line: str) -> Any:
    """Its process takes two seconds: one line by each way of writing, without torch, is enough for `make test`."""
    return pytest.param(line, marks=pytest.mark.soak)


def shell(line: str, where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m advkit {line}"],
        cwd=where,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@needs_full
@pytest.mark.parametrize("stream", ["2>/dev/full", *map(rare, ("2>&-", ">&- 2>&-"))])
def test_a_run_goes_on_without_stderr(stream: str, tmp_path: Path) -> None:
    assert shell(f"train {' '.join(TINY)} --out run {stream}", tmp_path).returncode == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "lock").read_text().count("\n") <= 1, "nothing else was written to a file in its place"


@needs_full
@pytest.mark.parametrize(
    "line",
    ["recipes list", "plugins list --json", *map(rare, ("--help", "plan", "plan --json", "train --print-config"))],
)
def test_a_result_that_can_not_be_written(line: str, tmp_path: Path) -> None:
    ran = shell(f"{line} >/dev/full", tmp_path)
    assert (ran.returncode, ran.stderr) == (
        4,
        "Error: The result can not be written to stdout (No space left on device); send it elsewhere.\n",
    )


@pytest.mark.parametrize("line", ["plugins list --json", "train --help", *map(rare, ("plan", "recipes list"))])
def test_a_closed_stdout_is_one_that_can_not_be_written(line: str, tmp_path: Path) -> None:
    ran = shell(f"{line} >&-", tmp_path)
    sentence = "Error: The result can not be written to stdout (not writable); send it elsewhere.\n"
    assert (ran.returncode, ran.stderr) == (4, sentence)


@pytest.mark.parametrize("line", ["recipes list", *map(rare, ("plan", "plan --json", "train --help"))])
def test_a_reader_that_goes_away_is_no_failure(line: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["/bin/bash", "-c", f"{sys.executable} -m advkit {line} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_ascii_is_enough(tmp_path: Path) -> None:
    ran = shell("recipes show grün", tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 2 and "gr\\" in ran.stderr and ran.stderr.isascii() and ran.stderr.count("\n") == 1


def leaves() -> Iterator[click.Command]:
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield from command.commands.values() if isinstance(command, click.Group) else [command]


def test_what_is_printed_in_a_command_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def callback(**_: object) -> None:
        print("loud")
        echo("one")
        print_json(2)
        stdout().print("three")
        sys.stdout.write("loud")

    commands = list(leaves())
    assert {"train", "check", "vulnerability"} <= {command.name for command in commands}
    for command in commands:
        monkeypatch.setattr(command, "callback", callback)
        command.invoke(command.make_context(command.name, [], resilient_parsing=True))
        assert capsys.readouterr() == ("one\n2\nthree\n", "loud\nloud"), command.name
    print("after")
    assert capsys.readouterr() == ("after\n", ""), "the control"


def test_a_plugin_that_prints_is_no_part_of_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "loud-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[advkit.plugins]\nloud = loud:Loud\n")
    lines = ["import advkit", "print('import')", "class Loud(advkit.Plugin):", "    name = 'loud'"]
    lines += ["    @advkit.hookimpl", "    def setup(self, run):", "        print('setup')"]
    (tmp_path / "loud.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud", raising=False)
    assert run(["plan", "--plugins", "loud", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["plugins"] == ["loud"] and err.splitlines()[:2] == ["import", "setup"]
    sys.modules.pop("loud")


def test_escapes_are_shown() -> None:
    assert escaped("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\nc\\u202e"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        table = table_of("na\x1b[2Jme", ">[bold]n[/bold]")
        table.add_row("x\x1b]0;title\x07y", "[red]1[/red]")
        stdout().print(table)
        stdout().print(text("z\r\x9b31m"))
    shown = out.getvalue()
    assert not set(shown) & set("\x1b\x07\r\x9b")
    assert "na\\x1b[2Jme" in shown and "x\\x1b]0;title\\x07y" in shown and "z\\r\\x9b31m" in shown
    assert "[red]1[/red]" in shown and "[bold]n[/bold]" in shown, "no markup either"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("where", ["a terminal", "a narrow one", "a file"])
def test_a_table_never_cuts_a_figure(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("COLUMNS", "40" if where == "a narrow one" else "80")
    monkeypatch.setenv("TERM", "xterm")
    table = table_of("attack", ">accuracy", "95 % interval", "", "what it says", wrap=("what it says",))
    cells = ["pgd-20", "0.123", "0.1011 to 0.1213", "7" * (170 if where == "a file" else 5), "many words " * 9]
    table.add_row(*cells)
    table.add_row("clean", "0.5", "", "", "")
    out = io.StringIO() if where == "a file" else Terminal()
    with contextlib.redirect_stdout(out):
        stdout().print(table)
    shown = " ".join(out.getvalue().split())
    assert all(cell in shown for cell in cells[:-1]) and shown.count("many words") == 9
    assert ("accuracy 0.5" in shown) == (where == "a narrow one"), "rows that have no room are a list"


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_runs_are_whole(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Folded on a terminal, in one piece elsewhere: names may differ only in their ends."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    table, long = table_of("run", "attack", wrap=("run",)), "sweep/runs/" + 150 * "0"
    for seed in "01":
        table.add_row(f"{long}-seed-{seed}", "pgd-20")
    with contextlib.redirect_stdout(Terminal() if terminal else io.StringIO()) as out:
        stdout().print(table)
    shown = out.getvalue() if not terminal else "".join(out.getvalue().replace("pgd-20", "").split())
    assert all(f"{long}-seed-{seed}" in shown for seed in "01") and "…" not in shown


@pytest.mark.usefixtures("quick_audit")
def test_a_run_that_is_called_an_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "e\x1b[31mvil"
    commands = [
        ["train", *TINY, "--out", name],
        ["evaluate", name, "--attacks", "clean", "--n", "9"],
        ["audit", name, "--n", "2"],
        ["analyze", "vulnerability", name, "--attack", "pgd-1", "--n", "2"],
        ["compare", name, "absent\x1b[2J"],
        ["export", name, "--out", "x\x1b[31m"],
        ["report", name, "--out", "page\x1b.html", "--samples", "0"],
        ["evaluate", "absent\x1b[2J"],
        ["train", "--resume", name],
    ]
    for line in commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(line)
        assert code in (0, 3, 4), (line, err.getvalue())
        assert "\x1b" not in out.getvalue() + err.getvalue(), line
        assert "\\x1b" in out.getvalue() + err.getvalue(), line
    environment = json.loads((Path(name) / "environment.json").read_text())
    (Path(name) / "environment.json").write_text(json.dumps(environment | {"torch": "\x1b[31m2"}))
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert run(["train", "--resume", name]) == 0
    assert "torch: \\x1b[31m2 then" in err.getvalue() and "\x1b" not in err.getvalue()


def test_lines_of_progress_say_something_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = count(0, 11)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with display.bar() as watch:
        for done, what in (
            (1, "apgd-t, 9 attacked"),
            (1, "apgd-t, 9 attacked"),
            (1, "fab-t, 9 attacked"),
            (2, "fab-t"),
        ):
            watch(done, 3, what)
    assert capsys.readouterr().err.splitlines() == [
        "apgd-t, 9 attacked: 1 of 3", "fab-t, 9 attacked: 1 of 3", "fab-t: 2 of 3",
    ]  # fmt: skip
