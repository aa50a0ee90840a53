"""Labels that a run's net gives images, as robust self-training needs them: `advkit data pseudo-label`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..data.convert import Labeller, convert
from ..data.mapped import Manifest, mapped_images
from ..data.repeats import among_extra
from ..data.transforms import to_float
from ..errors import NonFinite
from ..evaluation.results import BATCH
from ..evaluation.soundness import doubt, sound
from ..explained import calling
from ..global_state import one_at_a_time
from ..judging import checked_logits, judged
from ..modules import placement
from ..own_file import staying
from ..rng import derive_seed
from .inputs import at_once
from .subject import subject_of

RECORDED = ("checkpoint", "weights", "epoch", "sha256_of_weights")


@one_at_a_time
def pseudo_label(
    given: str,
    run: str | Path,
    folder: Path,
    *,
    checkpoint: str | None = None,
    data_root: str | Path | None = None,
    model: str | nn.Module | None = None,
    dataset: Any = None,
    batch_size: int | str | None = None,
    tell: Callable[[str], None] = print,
) -> Manifest:
    """The new folder `folder` of mapped images: those of `given`, each in the class that the net of `run` puts it in.

    `given` is an npz, a folder of several, a pickle of RST, a folder of mapped images or the name of a data set; labels
    that it has are not looked at. The manifest says whose labels they are.
    `checkpoint`, `data_root`, `model`, `dataset` and `batch_size` are as those of `evaluate`. Raises AdvkitError's
    subclasses.
    """
    at_once(batch_size)
    net = subject_of(run, checkpoint, model=model, dataset=dataset, data_root=data_root)
    size = at_once(batch_size, net.at_once) or BATCH
    seen = net.splits.train
    device, dtype = placement(net.model)
    first = True

    def ask(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        nonlocal first
        rows = []
        for part in torch.from_numpy(images).split(size):  # type: ignore[no-untyped-call]
            with torch.no_grad(), staying(), calling(part.shape, f"The net of {run}"):
                logits = checked_logits(net.model(to_float(part.to(device), dtype)), len(part), len(seen.classes))
            if not bool(sound(logits).all()):
                raise NonFinite(f"The net of {run} has logits of NaN or Inf on these images, so it gives no labels.")
            rows.append(logits.argmax(1).cpu())
            if first and (said := doubt(net.model, to_float(part.to(device), dtype), "labels")):
                record["doubt"] = said
            first = False
        return torch.cat(rows).numpy()

    record = {"run": net.name, **{key: net.record[key] for key in RECORDED}}
    if notes := net.record.get("notes"):
        record["notes"] = notes
    with judged(net.model) as reseed:
        reseed(derive_seed(0, "core", "pseudo-labels"))
        labeller = Labeller(ask, seen.shape, seen.classes, seen.counted, record)
        manifest = convert(given, folder, tell=tell, labeller=labeller)
    held_out = net.parts[1] if net.parts and net.own_images else torch.arange(0)
    extra, split = mapped_images(folder).images, net.resolved.validation.split
    for sentence in among_extra(extra, seen.images, net.splits.test.images, held_out, f"in {folder}", split):
        tell(f"As extra images beside those of {run}: {sentence}.")
    return manifest
