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


def same(value: Tensor, slope: Tensor) -> Tensor:
    """The value of one, the gradient of the other."""
    return slope + (value - slope).detach()


class Borrowed(nn.Module):
    """The logits of one net and the input gradient of another."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        return same(self.net(x), self.other(x))


def straight_through(net: nn.Module, levels: int) -> nn.Module:
    """Pixels rounded to multiples of 1 / levels, with the gradient of not rounding."""
    return Masked(net, before=lambda x: same((x * levels).round() / levels, x))


def smoothed(x: Tensor, size: int) -> Tensor:
    """By a median filter."""
    around = F.pad(x, (size // 2,) * 4, mode="reflect").unfold(2, size, 1).unfold(3, size, 1)
    return around.flatten(-2).median(-1).values


def median(net: nn.Module, size: int) -> nn.Module:
    """A median filter, with the gradient of none."""
    return Masked(net, before=lambda x: same(smoothed(x, size), x))


def purified(net: nn.Module, radius: float, steps: int = 4) -> nn.Module:
    """Before it is classified an image is moved to where the net is surer, with the gradient of not moving it."""

    def clean(x: Tensor) -> Tensor:
        moved = x.detach()
        with torch.enable_grad():
            for _ in range(steps):
                moved.requires_grad_()
                (way,) = torch.autograd.grad(net(moved).logsumexp(1).sum(), moved)
                moved = (moved + radius / steps * way.sign()).clamp(0, 1).detach()
        return same(moved, x)

    return Masked(net, before=clean)


def reversed_gradient(net: nn.Module, share: float) -> nn.Module:
    """The gradient of some pixels, a checked pattern, has the wrong sign."""

    def turn(x: Tensor) -> Tensor:
        places = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
        wrong = (places * 7) % 100 < 100 * share
        return same(x, torch.where(wrong, -x, x))

    return Masked(net, before=turn)


def sparse_gradient(net: nn.Module, kept: int) -> nn.Module:
    """Only every so-many-th pixel has a gradient."""

    def cut(x: Tensor) -> Tensor:
        places = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
        return torch.where(places % kept == 0, x, x.detach())

    return Masked(net, before=cut)


def rounded_logits(net: nn.Module, step: float) -> nn.Module:
    """Logits rounded to multiples of `step`, which has no gradient."""
    return Masked(net, after=lambda logits: (logits / step).round() * step)


def squashed_logits(net: nn.Module, factor: float) -> nn.Module:
    """tanh of large logits: flat, and ties where it is 1 in float32."""
    return Masked(net, after=lambda logits: 10 * torch.tanh(factor * logits / 10))


class Switching(nn.Module):
    """Where a gradient is asked for, a smoother net answers, whose logits are pulled towards their mean image's."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.other(x) if torch.is_grad_enabled() and x.requires_grad else self.net(x)
        return logits


class Coupled(nn.Module):
    """Logits less the mean of the batch's, times `share`: an image in a batch of its class looks like no class."""

    def __init__(self, net: nn.Module, share: float) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits - self.share * logits.mean(0, keepdim=True)


class OneOfTwo(nn.Module):
    """One of two nets answers, drawn anew at every forward."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.net if float(torch.rand(())) < 0.5 else self.other)(x)
        return logits
