"""`advkit export`: a run's weights for people who have no advkit."""

from __future__ import annotations

from pathlib import Path

import click

from .main import print_json


@click.command("export")
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="DIR", help="A new folder.")
@click.option("--checkpoint", "which", default="best", show_default=True, type=click.Choice(["best", "last"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, out: str, which: str, as_json: bool) -> None:
    """Write the weights of RUN as plain state dicts, with and without the normalisation layer.

    \b
    advkit export runs/lsiw-1 --out net

    model.safetensors and model.pt hold the same; so do the two without normalisation. README.txt shows the three
    lines that load them, export.json the mean, standard deviation, classes and settings.
    """
    from ..export import export
    from ..subject import of_run

    record = export(of_run(Path(run), which), Path(out))
    if as_json:
        print_json(record | {"out": out})
    else:
        click.echo(f"{out}: model.safetensors, model.pt, both also without normalisation, export.json, README.txt")
