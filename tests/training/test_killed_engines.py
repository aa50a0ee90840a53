"""Killed in one of several processes, or compiled, a run goes on to the very bits that it would have reached."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from in_processes import start
from test_resume import LINE, command, ended, survive

pytestmark = pytest.mark.soak

KILLS = 20


def test_twenty_kills_of_a_compiled_run(tmp_path: Path) -> None:
    line = [*LINE, "--set=run.compile=default"]
    assert command(*line, "--out", tmp_path / "whole").code == 0
    survive(KILLS, random.Random(3), tmp_path / "whole", tmp_path, line)


def together(folder: Path, kill: tuple[float, int] | None = None) -> list[int]:
    """Two processes begin a run or go on with it; the exit codes. One of them may be killed after some seconds."""
    line = ["train", "--resume", folder] if (folder / "run.toml").exists() else [*LINE, "--out", folder]
    processes = start(2, "-m", "advkit", *line, "--set=run.timeout=20")
    if kill is not None:
        time.sleep(kill[0])
        processes[kill[1]].kill()
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert not [text for text in told if "Traceback" in text], told
    codes = [process.returncode for process in processes]
    assert kill is None or -9 in codes or codes == [0, 0], (codes, told)
    return codes


def test_twenty_kills_of_one_of_two_processes(tmp_path: Path) -> None:
    """The other ends by itself, with 1 where it could not end the run."""
    began = time.monotonic()
    assert together(tmp_path / "whole") == [0, 0]
    seconds, chance = time.monotonic() - began, random.Random(4)
    done = survived = 0
    while done < KILLS or not survived:
        folder = tmp_path / f"run-{survived}"
        while True:
            kill = (chance.uniform(0.3, 1) * seconds, chance.randrange(2)) if done < KILLS else None
            codes = together(folder, kill)
            if codes == [0, 0]:
                break
            assert set(codes) <= {-9, 0, 1}, codes
            done += 1
        assert ended(folder) == ended(tmp_path / "whole")
        survived += 1
    assert done == KILLS
