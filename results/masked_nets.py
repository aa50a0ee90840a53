"""Nets whose gradients lie, for the study of the audit and for its tests: a net inside a wrapper, or trained so."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit


class Masked(nn.Module):
    """`after(net(before(x)))`."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


def scaled(net: nn.Module, factor: float) -> nn.Module:
    """Logits times `factor`: the softmax saturates, and the gradient of cross-entropy underflows to 0."""
    return Masked(net, after=lambda logits: factor * logits)


def quantised(net: nn.Module, levels: int) -> nn.Module:
    """Pixels rounded to multiples of 1 / levels, which has no gradient."""
    return Masked(net, before=lambda x: (x * levels).round() / levels)


def thermometer(net: nn.Module, levels: int) -> nn.Module:
    """Each pixel as the number of thresholds it exceeds (Buckman et al. 2018), read back as a grey value."""

    def code(x: Tensor) -> Tensor:
        thresholds = torch.arange(levels, dtype=x.dtype, device=x.device) / levels
        return (x[..., None] > thresholds).to(x.dtype).mean(-1)

    return Masked(net, before=code)


def dropping(net: nn.Module, p: float) -> nn.Module:
    """Dropout of pixels, left on at test time."""
    return Masked(net, before=lambda x: F.dropout(x, p, training=True))


def noisy(net: nn.Module, sigma: float) -> nn.Module:
    """Normal noise on the pixels at every forward."""
    return Masked(net, before=lambda x: x + sigma * torch.randn_like(x))


def shifted(net: nn.Module, by: int) -> nn.Module:
    """Rolled by up to `by` pixels at random, an image at a time: random resizing and padding (Xie et al. 2018)."""

    def roll(x: Tensor) -> Tensor:
        moves = torch.randint(-by, by + 1, (len(x), 2)).tolist()
        return torch.stack([image.roll(move, (1, 2)) for image, move in zip(x, moves, strict=True)])

    return Masked(net, before=roll)


def cosine_rounded(net: nn.Module, step: float) -> nn.Module:
    """Rounded in the cosine basis of the whole image, as JPEG rounds blocks."""

    def code(x: Tensor) -> Tensor:
        rows, columns = (_cosines(side).to(x) for side in x.shape[-2:])
        spectrum = ((rows @ x @ columns.T) / step).round() * step
        return rows.T @ spectrum @ columns

    return Masked(net, before=code)


def _cosines(side: int) -> Tensor:
    """(side, side): the orthonormal DCT-II."""
    place = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(torch.pi * (place + 0.5) * place[:, None] / side) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    return basis


def shattered(net: nn.Module, frequency: float, height: float = 0.02) -> nn.Module:
    """A fast small wave on the pixels: harmless to the net, and all that its gradient sees."""
    return Masked(net, before=lambda x: x + height * torch.sin(frequency * x))


def softened(net: nn.Module, temperature: float) -> nn.Module:
    """Probabilities instead of logits."""
    return Masked(net, after=lambda logits: F.softmax(logits / temperature, 1))


class LabelSmoothing(advkit.Plugin):
    """Labels smoothed by `alpha`: with a one-step attack the loss turns flat and bent around the images."""

    name = "label-smoothing"

    class Options(advkit.PluginOptions):
        alpha: advkit.Real = advkit.option(0.5, ge=0, lt=1, help="share of the label that is spread evenly")

    options: Options

    @advkit.hookimpl
    def target_label(self, target: Tensor) -> Tensor:
        return (1 - self.options.alpha) * target + self.options.alpha / target.shape[1]


def smoothed_one_step(alpha: float, seed: int, epochs: int) -> nn.Module:
    """small-cnn on the digits, trained with smoothed labels against one step of eps."""
    return advkit.train(
        plugins=[LabelSmoothing],
        options={"label-smoothing": {"alpha": alpha}},
        eps=0.15,
        epochs=epochs,
        seed=seed,
        settings={"attack.steps": 1, "attack.step_size": "eps"},
    ).model


def distilled(teacher: nn.Module, images: Tensor, temperature: float, seed: int, epochs: int) -> nn.Module:
    """Defensive distillation (Papernot et al. 2016): a copy learns at a high temperature and is asked at 1."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student = deepcopy(teacher)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        with torch.no_grad():
            labels = F.softmax(teacher.eval()(images), 1)
        student.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                loss = F.cross_entropy(student(images[rows]) / temperature, labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
    return student.eval()
