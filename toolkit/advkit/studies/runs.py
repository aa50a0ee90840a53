"""A run as plain data: what `advkit.load_run` gives a notebook, and the runs below a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import checked
from ..errors import AdvkitError, CheckpointError
from ..storage.files import entries, there
from ..training.notes import noted
from .documents import number
from .kept import validated_on
from .report.sources import Source

FIGURES = ("lr", "loss", "train_adversarial_accuracy", "attack_success", "mean_radius")
"""Of an epoch, as far as it has them."""

DEPTH = 3
"""Folders below the one that is searched: an ablation has its runs in OUT/runs."""


@dataclass(frozen=True)
class LoadedRun:
    """A run's folder, read; nothing in it is changed.

    `history` has a line an epoch, as metrics.jsonl: epoch from 0, lr, loss, validation, seconds, ... `best` is that of
    the best epoch, its number alone where its line is lost, None where none is done. `settings` are all that are in
    force, {"attack.eps": 0.15, "cat-eps.eta": 0.0239}; `given` those that are neither a default nor what plugins, data
    or machine bring along.
    """

    folder: Path
    plugins: tuple[str, ...]
    settings: Mapping[str, object] = field(repr=False)
    given: Mapping[str, object]
    history: list[dict[str, Any]] = field(repr=False)
    best: Mapping[str, Any] | None = field(repr=False)
    finished: bool
    environment: Mapping[str, Any] = field(repr=False)
    """environment.json; {} where it is absent or damaged."""
    notes: tuple[str, ...] = ()
    """That `best` was chosen on the test split, and what is lost or is otherwise than the newest checkpoint says,
    for it may be another run's; and those of environment.json, which every result repeats."""
    validated_on: str = ""
    """The images of its validations, in words."""
    weights: str | None = None
    """"raw" or "averaged": by which `best` was chosen and is judged; None where nothing tells."""

    @property
    def epochs(self) -> int:
        """How many the run is to have."""
        return int(str(self.settings["run.epochs"]))

    @property
    def init_from(self) -> str:
        """Whose weights it began with, as it was told then; "" for those that its net has from its seed."""
        return str(self.environment.get("init_from") or "")

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {"folder": str(self.folder), "plugins": list(self.plugins), "notes": list(self.notes)}
        return {**vars(self), **plain, "epochs": self.epochs, "init_from": self.init_from}


@checked()
def load_run(run: str | Path) -> LoadedRun:
    """The run in a folder, from run.toml, metrics.jsonl and environment.json; weights are not read.

    Of one whose plugin, model or data set can not be loaded here, `settings` are those of run.toml, and `given` is
    empty. Raises CheckpointError where there is none, or where it is damaged.
    """
    source = Source(1, str(run))
    known, epochs = source.resolved, source.values.get("run.epochs")
    if known is None and not (source.absent and isinstance(epochs, int)):
        raise CheckpointError(source.unresolved)
    if odd := [row["epoch"] + 1 for row in source.history if not _is_shown(row)]:
        raise CheckpointError(
            f"{run}/metrics.jsonl is damaged in the line of epoch {odd[0]}; restore it, or remove it to go on without."
        )
    values, doubts = source.values, (*source.doubts, source.lost, source.optimistic)
    return LoadedRun(
        folder=Path(run),
        plugins=tuple(plugin.name for plugin in known.composition.plugins) if known else source.file.names,
        settings=values,
        given={key: values[key] for key, origin in source.origins.items() if origin == "given"},
        history=source.history,
        best=source.best,
        finished=source.finished,
        environment=source.environment if isinstance(source.environment, dict) else {},
        validated_on=validated_on(source.history, values),
        weights=source.weights,
        notes=(*filter(None, [source.unresolved.removesuffix("."), *doubts]), *noted(source.folder)),
    )


def _is_shown(row: Mapping[str, Any]) -> bool:
    """Whether the figures of an epoch are such, and not what somebody made of them."""
    parts = [row.get("validation") or {}, row.get("seconds") or {}]
    if not all(isinstance(part, dict) for part in parts):
        return False
    nested = [value for part in parts for key, value in part.items() if key != "split"]
    return all(value is None or number(value) is not None for value in (*map(row.get, FIGURES), *nested))


def runs_below(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, LoadedRun | str]]:
    """Every run in a folder or below it, in order, or why it, or what may hold some, can not be read."""
    try:
        is_run, below = there(folder / "run.toml"), entries(folder) if depth else []
    except CheckpointError as error:
        yield folder, str(error)
        return
    if is_run:
        try:
            yield folder, load_run(folder)
        except AdvkitError as error:
            yield folder, str(error)
    for path in below:
        yield from runs_below(path, depth - 1)
