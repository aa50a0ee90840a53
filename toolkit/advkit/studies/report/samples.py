"""Sample pictures: the first test images, what PGD makes of them, and what it added."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.base import Splits
from ...data.transforms import to_float
from ...errors import CheckpointError, DataError
from ...evaluation.attacks.base import Victim, attacked, others
from ...evaluation.attacks.gradient import Pgd
from ...explained import calling
from ...judging import judged
from ...rng import derive_seed
from ...storage.weights import EVALUATED, put_weights
from ...training.code_told import changes
from ...training.parts import build_model
from ..inputs import at_once, of_training
from .sources import Source

STEPS, PACE = 20, 0.2
SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """A test image before and after the attack; pictures are PNG."""

    index: int
    label: str
    before: tuple[str, float]
    """Prediction and its probability."""
    after: tuple[str, float]
    clean: bytes
    adversarial: bytes
    difference: bytes


@dataclass(frozen=True)
class Samples:
    """`magnified`: by how much the differences are, around mid-grey; `checkpoint`: whose weights are attacked."""

    checkpoint: str
    averaged: bool
    norm: str
    eps: float
    magnified: float
    rows: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """Sentences on code that has changed since the run."""


def draw(source: Source, splits: Splits, count: int) -> Samples:
    """The first `count` test images under PGD-20 on the cross-entropy, from x, step eps/5.

    At the checkpoint that is judged where none is named, on the CPU. Raises AdvkitError where
    weights or images are missing or do not fit.
    """
    checkpoint = "last" if source.standard else "best"
    resolved, tensors, state = source.resolved, *source.folder.load(checkpoint)
    if resolved is None:
        raise CheckpointError(source.unresolved)
    source.fingerprint = state.get("data")
    if source.fingerprint not in (None, splits.train.fingerprint()):
        raise DataError(f"The training images of {splits.train.name} are not those of this run; restore them.")
    model = build_model(resolved, splits.train)
    put_weights(model, tensors, source.path, averaged=True)
    test, (norm, eps) = splits.test, (resolved.attack.norm, resolved.attack.eps)
    if test.shape[0] not in (1, 3):
        raise DataError(f"Images of {test.shape[0]} channels can not be shown; only grey and colour can.")
    x, y = to_float(test.images[:count]), test.labels[:count]
    with judged(model) as seed:
        seed(derive_seed(0, "core", "report"))  # for a model that draws in eval mode
        net = Victim(
            model,
            classes=len(test.classes),
            norm=norm,
            batch_size=at_once(None, of_training(source.folder, resolved.run)),
            beside=others(model, test),
        )
        radius = torch.full((len(x),), float(eps))
        with calling(x.shape):
            x_adv = attacked(Pgd(f"pgd-{STEPS}", STEPS, pace=PACE), net, x, y, radius, torch.arange(len(x)))
        with torch.no_grad():
            before, after = net(x).softmax(1), net(x_adv).softmax(1)
    change = x_adv - x
    largest = float(change.abs().max())
    scale = 0.5 / largest if largest else 1.0
    rows = []
    for index in range(len(x)):
        rows.append(
            Sample(
                index=index,
                label=test.classes[int(y[index])],
                before=_told(before[index], test.classes),
                after=_told(after[index], test.classes),
                clean=png(x[index]),
                adversarial=png(x_adv[index]),
                difference=png(0.5 + scale * change[index]),
            )
        )
    averaged = any(name.startswith(EVALUATED) for name in tensors)
    return Samples(checkpoint, averaged, norm, eps, scale, tuple(rows), tuple(changes(source.folder, resolved, model)))


def _told(probabilities: Tensor, classes: tuple[str, ...]) -> tuple[str, float]:
    best = int(probabilities.argmax())
    return classes[best], float(probabilities[best])


def png(image: Tensor) -> bytes:
    """An image (1 or 3, H, W) in [0, 1] as PNG."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[2] == 1 else levels)).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
