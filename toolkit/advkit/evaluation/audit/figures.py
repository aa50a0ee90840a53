"""What the checks measure: one function a figure, the higher the worse; or the reason why there is none."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn

from ... import judging
from ...ascent import NORMS, Ball
from ...data.base import Dataset
from ...errors import NonFinite, OptionError
from ...losses import cross_entropy, margin
from ...rng import Draws
from ..attacks.base import EvaluationAttack, Victim
from ..attacks.libraries import ApgdT
from ..attacks.square import Square
from ..figure import Figure, gap, jackknife, share
from ..soundness import one_by_one
from .bench import EARLY, RUNGS, SHORT, Attached, Bench
from .surrogate import IMAGES, Imitated, imitator

QUERIES, POINTS = 1000, 200
"""Of Square; of random search."""
NEIGHBOURS, DIRECTIONS, TAIL = 20, 8, 10
"""Points around the end of PGD; random steps beside the gradient's; last steps of PGD."""
EPS_LADDER = (0.5, 1.0, 2.0, 4.0)
"""Multiples of eps."""
FEW, UNFIT = 32, 0.05
"""Images whose gradient is held against differences; how far the two may be apart, relatively."""

Answer = Figure | str
"""A figure, or why there is none."""


def blind(bench: Bench) -> Answer:
    return share(int(bench.pgd.blind[:EARLY].any(0).sum()), len(bench.x))


def false_gradient(bench: Bench) -> Answer:
    """Images where most differences of a margin, in float64, are not what the gradient says (within UNFIT).

    Off the borders of the box and off the data, where clamps, thresholds and ties of equal pixels have their kinks: a
    max-pool, a median or a minimum of pixels has many gradients at a tie. In four directions: a normal one, one of
    signs, the gradient and its signs.
    """
    net, dtype = _exact(bench.model, bench.x[:1])
    ball = bench.ball(bench.eps / 2, slice(FEW))
    x = 0.05 + 0.9 * untied(ball, bench.net.draws("differences", bench.index[:FEW])).to(dtype)
    y = bench.y[:FEW]

    def values(points: Tensor) -> Tensor:
        bench.seed("differences")
        return torch.cat([net(part) for part in torch.split(points, bench.net.batch_size or FEW)])

    with torch.no_grad():
        own = torch.nn.functional.one_hot(y, bench.net.classes).bool()
        rival = values(x).masked_fill(own, -torch.inf).argmax(1)

    def height(points: Tensor) -> Tensor:
        logits = values(points)
        return (logits.gather(1, rival[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

    point = x.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(height(point).sum(), point)
    draws = bench.net.draws("directions", bench.index[:FEW])
    noise = draws.normal(*x.shape[1:], dtype=x.dtype)
    size = 1e-6 if dtype == torch.float64 else 1e-4
    wrong = torch.zeros(len(x), device=x.device)
    for way in (noise, draws.normal(*x.shape[1:], draw=1, dtype=x.dtype).sign(), gradient, gradient.sign()):
        peak = way.flatten(1).abs().amax(1).clamp(min=torch.finfo(dtype).tiny)
        step = size * way / peak.view(-1, 1, 1, 1)
        with torch.no_grad():
            seen = (height(x + step) - height(x - step)) / 2
        said = (gradient * step).flatten(1).sum(1)
        noise_floor = 64 * torch.finfo(dtype).eps * values(x).abs().amax(1).detach()
        wrong += (seen - said).abs() > UNFIT * (seen.abs() + said.abs()) + noise_floor
    return share(int((wrong >= 2).sum()), len(x))


def untied(ball: Ball, draws: Draws) -> Tensor:
    """A random point of the ball. What would leave the box goes the other way: pixels that are cut off at 0 tie."""
    grey = torch.full_like(ball.x, 0.5)
    move = type(ball)(grey, ball.radius).uniform(draws) - grey
    there = ball.x + move
    return torch.where((there < 0) | (there > 1), ball.x - move, there)


def _exact(model: nn.Module, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    """A copy in float64, and float64; the net itself, and its type, where it computes in no other."""
    try:
        copy = deepcopy(model).double()
        with torch.no_grad():
            if copy(x.double()).dtype == torch.float64:
                return Attached(copy), torch.float64
    except Exception:  # whatever a stranger's module raises in another type or on being copied
        pass
    return Attached(model), x.dtype


def grad_mode(bench: Bench) -> Answer:
    """Images whose logits differ between a forward that could be differentiated and one that could not."""
    bench.seed("grad mode")
    with torch.enable_grad():
        followed = bench.net(bench.x[:FEW].clone().requires_grad_()).detach()
    bench.seed("grad mode")
    with torch.no_grad():
        plain = bench.net(bench.x[:FEW])
    return share(int(judging.apart(followed, plain).sum()), len(plain))


def by_batch(bench: Bench) -> Answer:
    """Images, spread over all, whose logits by themselves differ from those among as many as are attacked together."""
    count = len(bench.x)
    if count < 2:
        return "two images are needed"
    together, again = (bench.logits(f"forward {turn}", bench.x) for turn in (1, 2))
    rows = torch.linspace(0, count - 1, min(FEW, count)).round().long()

    def alone(purpose: str) -> Tensor:
        bench.seed(purpose)
        return one_by_one(bench.net, bench.x, rows)

    found = judging.apart(together[rows], once := alone("forward 1"))
    if judging.far_apart(together, again) or (bool(found.any()) and judging.far_apart(once, alone("forward 2"))):
        return "the net draws in eval mode"
    return share(int(found.sum()), len(rows))


def steps_accuracy(bench: Bench) -> Answer:
    return _rise([int(bench.pgd.right[rung].sum()) for rung in RUNGS], bench.n)


def steps_loss(bench: Bench) -> Answer:
    return jackknife(relative_fall, bench.pgd.loss[[0, *RUNGS]])


def eps_accuracy(bench: Bench) -> Answer:
    return _rise([int(trace.right[-1].sum()) for trace in bench.over_eps(EPS_LADDER)], bench.n)


def eps_loss(bench: Bench) -> Answer:
    rows = [bench.pgd.loss[0], *(trace.loss[-1] for trace in bench.over_eps(EPS_LADDER))]
    return jackknife(relative_fall, torch.stack(rows))


def _rise(counts: list[int], of: int) -> Figure:
    """The largest from one count to the next; 0 where none rises."""
    return share(max(0, *(after - before for before, after in pairwise(counts))), of)


def relative_fall(loss: Tensor) -> Tensor:
    """The largest fall of the mean from one row (m,) to the next, as a share of their range; 1 where none moves."""
    means = loss.mean(1)
    spread = means.max() - means.min()
    fall = (means[:-1] - means[1:]).max().clamp(min=0)
    return torch.where(spread > 0, fall / spread, torch.ones_like(spread))


def large_eps(bench: Bench) -> Answer:
    """The ball that holds every image: radius 1 in Linf, sqrt(C H W) in L2. Any iterate counts.

    A net that answers one class everywhere withstands it.
    """
    if len(bench.answers) == 1:
        return f"the net answers {bench.answers[0]!r} to all images, and may do so everywhere"
    radius = 1.0 if bench.norm == "linf" else sqrt(bench.x[0].numel())
    return bench.share(bench.ascend("large eps", steps=EARLY, radius=radius, pace=5 / EARLY).right.all(0))


def restarts(bench: Bench) -> Answer:
    return bench.share(bench.pgd.right[SHORT] & ~bench.restarted)


def square(bench: Bench) -> Answer:
    if bench.norm != "linf":
        return "Square is for Linf"
    return bench.newly_broken(Square(queries=QUERIES), bench.unbroken)


def random_search(bench: Bench) -> Answer:
    """Points inside the ball and, every other time, corners of it."""

    def search(net: Victim, left: Tensor) -> list[Tensor]:
        for point in range(POINTS):
            if not len(left):
                break
            ball, draws = bench.ball(bench.eps, left), net.draws("random search", bench.index[left], point)
            way = draws.normal(*ball.x.shape[1:], dtype=ball.x.dtype)
            tried = moved(ball, way, 1.0) if point % 2 else ball.uniform(draws)
            left = left[net.correct(tried, bench.y[left])]
        return [left]

    standing = sum(len(left) for (left,) in bench.over("random search", bench.unbroken, search))
    return bench.broken("random search", bench.unbroken, len(bench.unbroken) - standing)


def transfer(bench: Bench, attack: EvaluationAttack | None, examples: Dataset | None) -> Answer:
    """On the run that was given, or on a net that is trained to imitate this one."""
    if attack is None:
        images = bench.pictures(examples)[:IMAGES]
        labels = bench.logits("imitated", images).argmax(1)
        bench.seed("imitator")
        model = imitator(images, labels, bench.net.classes, norm=bench.norm, eps=bench.eps)
        bench.team.as_first([*model.parameters()])
        attack = Imitated(model)
    try:
        return bench.newly_broken(attack, bench.unbroken)
    except NonFinite as error:
        return str(error).rstrip(".")


def losses(bench: Bench) -> Answer:
    return gap(bench.pgd.right[SHORT], bench.margin.right[SHORT], bench.n)


def apgd_t(bench: Bench) -> Answer:
    try:
        return bench.newly_broken(ApgdT(), torch.nonzero(bench.pgd.right[SHORT]).squeeze(1))
    except (OptionError, NonFinite) as error:
        return str(error).rstrip(".")


def incomplete(bench: Bench) -> Answer:
    """Mean over the images that withstand: how much of its whole gain the loss made in the last steps (Pintor)."""
    best = bench.pgd.loss[:, bench.pgd.right[-1]].cummax(0).values
    gain = best[-1] - best[0]
    late = best[-1] - best[-1 - TAIL]
    return jackknife(_mean, torch.where(gain > 0, late / gain, torch.zeros_like(gain)))


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.new_zeros(())


def silent(bench: Bench) -> Answer:
    right = bench.pgd.right[: EARLY + 1]
    return bench.share(~right.all(0) & right[-1])


def unstable(bench: Bench) -> Answer:
    """Mean relative change of the loss at random points around where PGD ended, at most 1 each (Pintor)."""
    loss, ends, here = cross_entropy(bench.y), bench.pgd.x_adv, bench.pgd.loss[-1]
    around, total = NORMS[bench.norm](ends, bench.ball(bench.eps / 2).radius), torch.zeros_like(here)
    for point in range(NEIGHBOURS):
        draws = bench.net.draws("neighbourhood", bench.index, point)
        there = loss(bench.logits(f"neighbour {point}", around.uniform(draws)))
        total += ((there - here).abs() / here.clamp(min=torch.finfo(here.dtype).tiny)).clamp(max=1)
    return jackknife(_mean, total / NEIGHBOURS)


def one_step(bench: Bench) -> Answer:
    once = bench.ascend("fgsm", steps=1, radius=bench.eps, pace=1.0)
    return bench.broken("fgsm", slice(None), int((~once.right[-1] & bench.pgd.right[SHORT]).sum()))


def useless(bench: Bench) -> Answer:
    """Share of images where some random step of eps/2 does more than the gradient's step of that length.

    It gains more margin, and either more of the loss, too, whose gradient it is, or twice the margin: where several
    classes are as likely, a step that raises the loss need not raise the margin most.
    """
    ball, values = bench.ball(bench.eps), (margin(bench.y), cross_entropy(bench.y))
    start = bench.logits("base", bench.x)

    def gains(purpose: str, x: Tensor) -> list[Tensor]:
        logits = bench.logits(purpose, x)
        return [value(logits) - value(start) for value in values]

    step = bench.ascend("half a step", steps=1, radius=bench.eps / 2, pace=1.0)
    guided, beaten = gains("guided", step.x_adv), torch.zeros_like(step.blind[0])
    for number in range(DIRECTIONS):
        way = bench.net.draws("direction", bench.index, number).normal(*ball.x.shape[1:], dtype=ball.x.dtype)
        tried = gains(f"direction {number}", moved(ball, way, 0.5))
        # More than rounding, where both found the same corner.
        margins, losses = (one > other + 0.01 * other.abs() for one, other in zip(tried, guided, strict=True))
        beaten |= margins & (losses | step.blind[0] | (tried[0] > 2 * guided[0].clamp(min=0)))
    return share(int(beaten.sum()), len(beaten))


def moved(ball: Ball, way: Tensor, part: float) -> Tensor:
    """The ball's centre, moved along `way` (overwritten) by a part of its radius."""
    return ball.move_(ball.x.clone(), way, part * ball.radius)


def varying(bench: Bench) -> Answer:
    """Images whose logits differ between two forwards that draw differently."""
    once, again = (bench.logits(f"forward {turn}", bench.x) for turn in (1, 2))
    return share(int(judging.apart(once, again).sum()), len(once))


def probabilities(bench: Bench) -> Answer:
    rows = bench.logits("forward 1", bench.x)
    return share(int(judging.probabilities(rows).sum()), len(rows))
