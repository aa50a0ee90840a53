"""`advkit report`: runs as one HTML page."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from ..errors import CheckpointError, OptionError
from .main import print_json


@click.command("report")
@click.argument("runs", metavar="DIR...", nargs=-1, required=True)
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="The page; it is replaced.")
@click.option(
    "--samples", default=8, show_default=True, type=click.IntRange(0, 64), metavar="N", help="Test images shown a run."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(runs: tuple[str, ...], out: str, samples: int, as_json: bool) -> None:
    """Write what is known of the runs in DIR... as one page that needs no network.

    Settings and plan, curves, evaluations, audit, analyses and sample pictures; of several runs a comparison
    first. What has not been made yet is named with the command that makes it.
    """
    begin = time.perf_counter()
    from ..storage import files
    from ..studies.report import build

    path = Path(out)
    folder = os.path.isdir(path)  # unlike Path's, false for what no disk could hold
    if folder or not os.path.isdir(path.absolute().parent):
        reason = "it is a folder" if folder else "its folder does not exist"
        raise OptionError(f"--out {out} can not be written ({reason}); name another file.")
    page = build(runs, samples)
    content = page.html.encode("utf-8")
    try:
        files.write_atomic(path, content)
    except CheckpointError as error:
        reason = getattr(error.__cause__, "strerror", None) or "the disk refuses"
        raise OptionError(f"--out {out} can not be written ({reason}); name another file.") from None
    seconds = round(time.perf_counter() - begin, 2)
    if as_json:
        print_json(
            {
                "out": out,
                "bytes": len(content),
                "seconds": seconds,
                "runs": list(runs),
                "sections": list(page.sections),
            }
        )
    else:
        click.echo(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}, {len(content) / 1024:.0f} KiB, {seconds} s")
