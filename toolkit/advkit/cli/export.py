"""`advkit export`: a run's weights for people who have no advkit."""

from __future__ import annotations

from pathlib import Path

import click

from .evaluate import CHECKPOINT, DATA_ROOT, own_options
from .main import PLACE, echo, print_json


@click.command("export")
@click.argument("run", metavar="RUN", type=PLACE)
@click.option("--out", required=True, type=PLACE, metavar="DIR", help="A new folder.")
@click.option("--hub", is_flag=True, help="As a repository of the Hugging Face Hub, with a model card.")
@CHECKPOINT
@own_options
@DATA_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run: str,
    out: str,
    hub: bool,
    checkpoint: str | None,
    model: str | None,
    dataset: str | None,
    data_root: str | None,
    as_json: bool,
) -> None:
    """Write the weights of RUN as plain state dicts, with and without the normalisation layer.

    \b
    advkit export runs/lsiw-1 --out net

    model.pt2 runs with nothing but torch. model.safetensors and model.pt hold the same weights; so do the two without
    normalisation. README.txt shows the lines that load them, example.safetensors has images and their logits to check
    against, export.json the mean, standard deviation, classes and settings.

    With --hub: model.safetensors, config.json and README.md, a card with accuracies, RobustBench's fields, audit and
    settings, for `hf upload USER/NAME DIR`. A net of timm is then timm.create_model("hf-hub:USER/NAME").
    """
    from ..studies.export import export
    from .display import say

    record = export(run, out, checkpoint, model=model, dataset=dataset, data_root=data_root, hub=hub)
    if as_json:
        print_json(record.as_dict() | {"out": out})
        return
    if record.without_graph:
        say(f"No model.pt2: torch.export can not trace this net ({record.without_graph}).")
    for note in record.notes:
        say(f"{note}.")
    echo(f"{out}: {', '.join(sorted(path.name for path in Path(out).iterdir()))}")
