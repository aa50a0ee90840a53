"""`advkit report`: runs as one HTML page."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .evaluate import DATA_ROOT, own_options
from .main import PLACE, echo, is_typed, print_json


@click.command("report")
@click.argument("runs", metavar="DIR...", type=PLACE, nargs=-1, required=True)
@click.option(
    "--out", default="report.html", type=PLACE, show_default=True, metavar="FILE", help="The page; it is replaced."
)
@click.option(
    "--samples", default=8, show_default=True, type=click.IntRange(0, 64), metavar="N", help="Test images shown a run."
)
@own_options
@DATA_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(runs: tuple[str, ...], out: str, samples: int, as_json: bool, **where: str | None) -> None:
    """Write what is known of the runs in DIR... as one page that needs no network.

    Settings and plan, curves, evaluations, audit, analyses and sample pictures; of several runs a comparison
    first. What has not been made yet is named with the command that makes it.
    """
    begin = time.perf_counter()
    from ..studies.report.page import report, written
    from .display import say

    page = written(Path(out), lambda: report(runs, None, samples, **where), is_typed("out"))
    seconds, size = round(time.perf_counter() - begin, 2), len(page.html.encode("utf-8"))
    if as_json:
        known = {"out": out, "bytes": size, "seconds": seconds, "runs": list(runs), "sections": list(page.sections)}
        print_json(known | {"doubts": list(page.doubts), "without_pictures": list(page.without_pictures)})
        return
    echo(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}, {size / 1024:.0f} KiB, {seconds} s")
    for sentence in (*page.doubts, *page.without_pictures):
        say(sentence)
