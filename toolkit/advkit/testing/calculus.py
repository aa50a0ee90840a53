"""Checks of what calculus knows: where in a ball the best point lies, and how steep a loss is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..compose.declarations import declared
from ..errors import HookConflict, OptionError
from ..hookspec import hookimpl
from ..plugin import Plugin
from ..training.own_loop import Step
from ..types import AttackResult, Batch, Budget
from .small import batches, tiny_net
from .steps import LOOP, attacks_as_the_core
from .subject import Came, NotRun, Subject, check, told

REACH = 0.99
"""Of the way to the best point. In L2 short steps turn slowly towards it."""
STEPS = 12
"""Of the attack, each as long as eps."""
ACROSS = {"linf": 2, "l2": 6}
"""Radii that the steps of an attack must add up to for it to get there from anywhere: in L2 they turn."""
STEEP = 1e-5
"""Relative difference that a slope may have from the central difference, in float64."""
WIDTH = 1e-6
"""How far apart the two points of a central difference are from theirs."""


# ---------------------------------------------------------------------- the best point of a ball


def _goes_on_to_the_end(subject: Subject) -> str:
    if reason := attacks_as_the_core(subject):
        return reason
    if "attack_step" in subject.hooks:
        return "it may stop an attack before its end"
    return subject.falls_short and f"it declares that its attack falls short: {subject.falls_short}"


@check(_goes_on_to_the_end)
def check_optimum(subject: Subject) -> None:
    """On a linear net of two classes an attack ends at its ball's least margin, or by a goal of its own an extreme."""
    subject.run_plainly()
    subject.presuppose("ball")
    refusals = [_refusal(subject, norm, init) for norm, init in (("linf", "uniform"), ("l2", "normal"))]
    if all(refusals):
        raise NotRun(refusals[0])


def _refusal(subject: Subject, norm: str, init: str) -> str:
    """Why the attack is none of this norm, "" where it is. Came where it ends elsewhere than at a best point."""
    net, weight = _linear()
    attacks: list[tuple[Batch, Budget, AttackResult, Tensor]] = []
    begun: list[Step] = []

    class Beside(Plugin):
        """Sees what was attacked."""

        name = "advkit-testing-beside"

        @hookimpl
        def observe_update(self, batch: Batch, budget: Budget, attack: AttackResult, radius: Tensor) -> None:
            attacks.append((batch, budget, attack, radius))

    def begin(step: Step) -> None:
        begun.append(step)
        for answer in step.composition.answers["budget_scale"]:
            if declared(answer.plugin, "largest_scale", step.attack) > 1:
                raise NotRun("its radius is a bound that no attack has to reach")

    settings = {"attack.norm": norm, "attack.init": init, "attack.mode": "eval"}
    try:
        subject.trained(
            (*subject.company, Beside),
            net=net,
            given=[(0.4 + 0.2 * x, y % 2, index) for x, y, index in batches(torch.float64)[:1]],  # off black and white
            lr=0.0,
            settings={**settings, "attack.steps": STEPS, "attack.step_size": "eps"},
            num_classes=2,
            before=begin,
        )
    except (OptionError, HookConflict) as refusal:
        if begun:
            raise Came(f"with attack.norm={norm}: {told(refusal)}") from None
        return str(refusal)
    company = begun[0].composition.company
    own_goal = any(company.owners(hook) for hook in ("attack_objective", "target_label", "inner_attack"))
    for batch, budget, attack, radius in attacks:
        reach = _reach(weight, attack.x_adv - batch.x, batch.y, norm) / radius
        reach = torch.where(radius > 0, reach.abs() if own_goal else reach, 1.0)
        if budget.steps is not None:  # which may be few and short
            size = begun[0].attack.step_size if budget.step_size is None else budget.step_size
            reach = torch.where(budget.steps * size < ACROSS[norm] * radius, 1.0, reach)
        if bool((reach < REACH).any()):
            raise Came(
                f"with attack.norm={norm} an attack goes {float(reach.min()):.0%} of the way to the best point within "
                "its radius; where it is meant to, say why in words: falls_short = ..."
            )
    return ""


def _linear() -> tuple[nn.Module, Tensor]:
    """(B, 2, 4, 4) to (B, 2), and its weight (2, 32), the same always."""
    last = nn.Linear(32, 2, dtype=torch.float64)
    weight = 0.3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.zero_()
    return nn.Sequential(nn.Flatten(), last), weight


def _reach(weight: Tensor, shift: Tensor, y: Tensor, norm: str) -> Tensor:
    """How far shifts (B, ...) lower the margin, as the radius (B,) from which the best shift lowers it as far."""
    lowers = (weight[1] - weight[0]) * (1 - 2 * y).unsqueeze(1)
    steepest = lowers.abs().sum(1) if norm == "linf" else lowers.norm(dim=1)
    return (lowers * shift.flatten(1)).sum(1) / steepest


# ---------------------------------------------------------------------- the slope of a loss


def _adds_no_loss(subject: Subject) -> str:
    if subject.by_the_loop:
        return LOOP
    if not {"base_loss", "extra_regularizer"} & {*subject.hooks}:
        return "it answers neither base_loss nor extra_regularizer"
    return subject.held_constant and f"it holds constant: {subject.held_constant}"


@check(_adds_no_loss)
def check_gradient(subject: Subject) -> None:
    """The gradient of a step is the slope of its loss, by central differences along a line in the weights."""
    subject.run_plainly()
    net = tiny_net(True, 0.0, torch.float64)
    weights = [*net.parameters()]
    generator = torch.Generator().manual_seed(4)
    way = [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]

    def compared(step: Step) -> None:
        for epoch in (0, 1):
            x, y, index = batches(torch.float64)[0]
            loss = step.loss(x, y, index, epoch=epoch)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            slope = sum(float((gradient * line).sum()) for gradient, line in zip(gradients, way, strict=True))
            ahead, behind = (_loss_at(step, weights, way, side * WIDTH) for side in (1, -1))
            expected = (ahead - behind) / (2 * WIDTH)
            if not abs(slope - expected) <= STEEP * max(abs(slope), abs(expected)):
                raise Came(f"in epoch {epoch} the gradient says {slope:.6g}, the loss changes by {expected:.6g}")

    try:
        # Companions move weights of the net and weigh terms, which are constants of the gradient.
        subject.trained(
            net=net, epochs=(), before=compared, settings={"attack.mode": "eval"},
            no_companion=[*subject.plugin.companions],
        )  # fmt: skip
    except HookConflict as refusal:
        raise NotRun(str(refusal)) from None


def _loss_at(step: Step, weights: list[nn.Parameter], way: list[Tensor], length: float) -> float:
    """The loss of the last step's images under its attack, so far along a line from the weights."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, line in zip(weights, way, strict=True):
            weight.add_(line, alpha=length)
    try:
        return float(step.again())
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
