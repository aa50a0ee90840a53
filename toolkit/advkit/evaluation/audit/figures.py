"""What the checks measure: one function a figure, the higher the worse; or the reason why there is none."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from ...ascent import NORMS, Ball
from ...errors import NonFinite, OptionError
from ...losses import cross_entropy, margin
from ..attacks.base import EvaluationAttack
from ..attacks.libraries import ApgdT
from ..attacks.square import Square
from .bench import RUNGS, SHORT, Bench

QUERIES, POINTS = 1000, 200
"""Of Square; of random search."""
NEIGHBOURS, DIRECTIONS, TAIL = 20, 8, 10
"""Points around the end of PGD; random steps beside the gradient's; last steps of PGD."""
EPS_LADDER = (0.5, 1.0, 2.0, 4.0)
"""Multiples of eps."""

Figure = float | str
"""A figure, or why there is none."""

NONE_RIGHT = "no image is classified correctly as it is"


def blind(bench: Bench) -> Figure:
    return float(bench.pgd.blind.any(0).float().mean())


def steps_accuracy(bench: Bench) -> Figure:
    return largest_rise([bench.share(bench.pgd.right[rung]) for rung in RUNGS])


def steps_loss(bench: Bench) -> Figure:
    return relative_fall([float(bench.pgd.loss[rung].mean()) for rung in (0, *RUNGS)])


def eps_accuracy(bench: Bench) -> Figure:
    return largest_rise([accuracy for accuracy, _ in bench.over_eps(EPS_LADDER)])


def eps_loss(bench: Bench) -> Figure:
    return relative_fall([float(bench.pgd.loss[0].mean()), *(loss for _, loss in bench.over_eps(EPS_LADDER))])


def largest_rise(values: list[float]) -> float:
    """From one value to the next; 0 where none rises."""
    return max(0.0, *(after - before for before, after in pairwise(values)))


def relative_fall(losses: list[float]) -> float:
    """The largest fall from one loss to the next, as a share of their range; 1 where they never move."""
    spread = max(losses) - min(losses)
    return largest_rise([-loss for loss in losses]) / spread if spread > 0 else 1.0


def large_eps(bench: Bench, steps: int = 50) -> Figure:
    """The ball that holds every image: radius 1 in Linf, sqrt(C H W) in L2. Any iterate counts."""
    radius = 1.0 if bench.norm == "linf" else sqrt(bench.x[0].numel())
    return bench.share(bench.ascend("large eps", steps=steps, radius=radius, pace=5 / steps).right.all(0))


def restarts(bench: Bench) -> Figure:
    return bench.share(bench.pgd.right[SHORT] & ~bench.restarted)


def square(bench: Bench) -> Figure:
    if bench.norm != "linf":
        return "Square is for Linf"
    return bench.newly_broken(Square(queries=QUERIES), bench.unbroken)


def random_search(bench: Bench) -> Figure:
    """Points inside the ball and, every other time, corners of it."""
    left = bench.unbroken
    bench.seed("random search")
    for point in range(POINTS):
        if not len(left):
            break
        ball, draws = bench.ball(bench.eps, left), bench.net.draws("random search", bench.index[left], point)
        way = draws.normal(*ball.x.shape[1:], dtype=ball.x.dtype)
        tried = moved(ball, way, 1.0) if point % 2 else ball.uniform(draws)
        left = left[bench.net.correct(tried, bench.y[left])]
    return (len(bench.unbroken) - len(left)) / bench.n


def transfer(bench: Bench, attack: EvaluationAttack | None) -> Figure:
    if attack is None:
        return "no other run was given to make the examples with (--transfer RUN)"
    return bench.newly_broken(attack, bench.unbroken)


def losses(bench: Bench) -> Figure:
    return abs(bench.share(bench.pgd.right[-1]) - bench.share(bench.margin.right[-1]))


def apgd_t(bench: Bench) -> Figure:
    try:
        return bench.newly_broken(ApgdT(), torch.nonzero(bench.pgd.right[-1]).squeeze(1))
    except (OptionError, NonFinite) as error:
        return str(error).rstrip(".")


def incomplete(bench: Bench) -> Figure:
    """Mean over the images that withstand: how much of its whole gain the loss made in the last steps (Pintor)."""
    best = bench.pgd.loss[:, bench.pgd.right[-1]].cummax(0).values
    if not best.numel():
        return 0.0
    gain = best[-1] - best[0]
    late = best[-1] - best[-1 - TAIL]
    return float(torch.where(gain > 0, late / gain, torch.zeros_like(gain)).mean())


def silent(bench: Bench) -> Figure:
    return bench.share(~bench.pgd.right.all(0) & bench.pgd.right[-1])


def unstable(bench: Bench) -> Figure:
    """Mean relative change of the loss at random points around where PGD ended, at most 1 each (Pintor)."""
    loss, ends, here = cross_entropy(bench.y), bench.pgd.x_adv, bench.pgd.loss[-1]
    around, total = NORMS[bench.norm](ends, bench.ball(bench.eps / 2).radius), torch.zeros_like(here)
    for point in range(NEIGHBOURS):
        draws = bench.net.draws("neighbourhood", bench.index, point)
        there = loss(bench.logits(f"neighbour {point}", around.uniform(draws)))
        total += ((there - here).abs() / here.clamp(min=torch.finfo(here.dtype).tiny)).clamp(max=1)
    return float(total.mean()) / NEIGHBOURS


def one_step(bench: Bench) -> Figure:
    once = bench.ascend("fgsm", steps=1, radius=bench.eps, pace=1.0)
    return bench.share(~once.right[-1] & bench.pgd.right[-1])


def useless(bench: Bench) -> Figure:
    """Share of images where some random step of eps/2 gains more margin than the gradient's step of that length."""
    ball, value = bench.ball(bench.eps), margin(bench.y)
    base = value(bench.logits("base", bench.x))
    guided = bench.ascend("half a step", steps=1, radius=bench.eps / 2, pace=1.0).x_adv
    gain = value(bench.logits("guided", guided)) - base
    beaten = torch.zeros_like(gain, dtype=torch.bool)
    for number in range(DIRECTIONS):
        way = bench.net.draws("direction", bench.index, number).normal(*ball.x.shape[1:], dtype=ball.x.dtype)
        tried = value(bench.logits(f"direction {number}", moved(ball, way, 0.5))) - base
        beaten |= tried > gain + 0.01 * gain.abs()  # more than rounding, where both found the same corner
    return float(beaten.float().mean())


def moved(ball: Ball, way: Tensor, share: float) -> Tensor:
    """The ball's centre, moved along `way` (overwritten) by a share of its radius."""
    return ball.move_(ball.x.clone(), way, share * ball.radius)


def varying(bench: Bench) -> Figure:
    """The largest difference between two forwards, relative to the largest logit."""
    once, again = (bench.logits(f"forward {turn}", bench.x) for turn in (1, 2))
    return float((once - again).abs().max() / once.abs().max().clamp(min=torch.finfo(once.dtype).tiny))


def probabilities(bench: Bench) -> Figure:
    rows = bench.logits("forward 1", bench.x)
    return float(((rows.amin(1) >= 0) & ((rows.sum(1) - 1).abs() < 1e-4)).float().mean())
