"""A net that imitates the one under audit, to make examples on: Papernot et al. (AsiaCCS 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ascent import NORMS
from ..attacks.base import EvaluationAttack, Victim, attacked
from ..attacks.gradient import Cw, Pgd

IMAGES, EPOCHS, WIDTH = 1000, 20, 16
"""At most so many images, so often: below a minute on one core for images of 32 x 32."""


def imitator(images: Tensor, labels: Tensor, classes: int, *, norm: str, eps: float) -> nn.Module:
    """A small net trained on the labels (n,) that another gives images (n, C, H, W): no score, no gradient of it.

    Against one step of eps, since a net that is robust is imitated by one that is. Draws from the global generator,
    which the caller has forked and seeded.
    """
    _, channels, height, width = images.shape
    model = nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * WIDTH * ((height + 1) // 2) * ((width + 1) // 2), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    ).to(images)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(images)).to(images.device).split(64):  # type: ignore[no-untyped-call]
                x, y = images[rows], labels[rows]
                ball = NORMS[norm](x, x.new_full((len(x),), eps))
                begin = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(begin), y), begin)
                x_adv = ball.move_(begin.detach(), gradient, ball.radius)
                optimizer.zero_grad()
                F.cross_entropy(model(torch.cat([x, x_adv])), y.repeat(2)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model.eval().requires_grad_(False)


class Imitated(EvaluationAttack):
    """pgd-20 and cw-20 against an imitator; an image is broken by either."""

    name = "imitator"
    access = "transfer"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def perturb(self, net: Victim, x: Tensor, y: Tensor, radius: Tensor, index: Tensor) -> Tensor:
        source = net.of(self.model)
        best = attacked(Pgd("pgd-20", 20), source, x, y, radius, index)
        left = torch.nonzero(net.correct(best, y)).squeeze(1)
        if len(left):
            best[left] = attacked(Cw("cw-20", 20), source, x[left], y[left], radius[left], index[left])
        net.forwards += source.forwards
        net.backwards += source.backwards
        return best
