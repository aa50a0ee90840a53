"""Checks of single steps: what is answered, what is left alone, what it costs, how far an attack goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.declarations import declared
from ..errors import AdvkitError, HookConflict, OptionError
from ..training.own_loop import Step
from .drawn import for_drawn
from .small import SAMPLES, Images, Trained, batches, copies, same, tiny_net
from .subject import Came, Subject, check, told
from .witness import Witness


@check()
def check_step(subject: Subject) -> None:
    """Two epochs of steps on ordinary images run, and every answer is what its hook says."""
    subject.run_plainly("step")


@check()
def check_borrowed(subject: Subject) -> None:
    """It leaves the net, what it is given and what is global in torch, numpy and Python as they were."""
    subject.run_plainly("borrowed")


def _counts_more(subject: Subject) -> str:
    if isinstance(subject.plain, Exception):  # which may be about passes
        return ""
    return LOOP if subject.by_the_loop else ""


LOOP = "only advkit.train can ask it, which makes the batches itself"


@check(_counts_more)
def check_passes(subject: Subject) -> None:
    """The model itself counts the passes that the plan announced, in every phase and epoch."""
    subject.run_plainly("passes")
    count_passes(subject, subject.company, epochs=(0, 1, 2))


def count_passes(subject: Subject, chosen: tuple[Any, ...], epochs: Sequence[int]) -> None:
    """Came where the model counts other passes in the steps of a set than the ledger and the plan."""
    net = tiny_net(True, 0.0, torch.float32)
    witness = Witness(net)

    def counted(step: Step) -> None:
        witness.beside(step.state)
        for epoch in epochs:
            report = step(*batches()[0], epoch=epoch)
            seen, planned = witness.take(), step.composition.at(epoch).passes
            for whose, passes in (("advkit's ledger has", report.passes), ("the plan says", planned)):
                if seen != passes:
                    raise Came(f"in epoch {epoch} the model counted {_said(seen)}, {whose} {_said(passes)}")

    # In eval mode, whatever a method prefers: by that the witness tells the phases apart.
    subject.trained(chosen, net=net, epochs=(), before=counted, settings={"attack.mode": "eval"})


def _said(passes: Mapping[str, Any]) -> str:
    return ", ".join(f"{phase} {count.as_dict()}" for phase, count in passes.items())


def _keeps_nothing(subject: Subject) -> str:
    if isinstance(subject.plain, Exception):  # which may be about state
        return ""
    kept = any(name.startswith(f"samples/{subject.name}/") for name in subject.plain.state)
    return "" if kept else "it keeps no state per sample"


@check(_keeps_nothing)
def check_state(subject: Subject) -> None:
    """State per sample changes at the samples of the batch alone, in every step, and stays where it was claimed."""
    subject.run_plainly("state")
    if subject.by_the_loop:
        return
    kept: list[tuple[int, int, str]] = []

    def look(step: Step) -> None:
        for epoch in (0, 1):
            for number, (x, y, index) in enumerate(batches()):
                before = copies(step.state.samples)
                step(x, y, index, epoch=epoch)
                for name, was in before.items():
                    elsewhere = torch.ones(SAMPLES, dtype=torch.bool).index_fill(0, index, False)
                    if not same({name: step.state.samples[name][elsewhere]}, {name: was[elsewhere]}):
                        kept.append((epoch, number, name))

    subject.trained(epochs=(), before=look)
    for epoch, number, name in kept:
        raise Came(f"step {number} of epoch {epoch} wrote {name} of samples that it was not given")


# ---------------------------------------------------------------------- odd images and nets


def _net(scale: float, batch_norm: bool) -> nn.Sequential:
    """The tiny net with its logits scaled: 0 ties them all, 1e4 saturates them."""
    net = tiny_net(batch_norm, 0.0, torch.float32)
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter.mul_(scale)
    return net


def _images(labels: Sequence[int], index: Sequence[int], seed: int = 0, corners: bool = False) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(len(labels), 2, 4, 4, generator=generator)
    return x.round() if corners else x, torch.tensor(labels), torch.tensor(index)


FOUR: Images = _images([0, 1, 2, 0], [0, 1, 2, 3])

ODD: Mapping[str, Mapping[str, Any]] = {
    "a batch of one image": {"given": [_images([1], [3])], "batch_norm": False},
    "a batch of one class": {"given": [_images([2] * 4, [0, 1, 2, 3])]},
    "black and white pixels": {"given": [_images([0, 1, 2, 0], [0, 1, 2, 3], corners=True)]},
    "logits that are all equal": {"scale": 0.0},
    "saturated logits": {"scale": 1e4},
    "eps 0": {"eps": 0.0},
}
"""Where methods divide by zero, take logarithms of it, or compare what is equal."""


@check()
def check_extremes(subject: Subject) -> None:
    """Odd batches, nets and budgets train, or are refused before the first step."""
    subject.run_plainly()
    for what, how in ODD.items():
        if "given" not in how or not subject.by_the_loop:
            _withstood(subject, what, **how)

    def strategy(st: Any) -> Any:
        rows = st.lists(st.integers(0, SAMPLES - 1), min_size=2, max_size=5, unique=True)
        return st.tuples(rows, st.lists(st.integers(0, 2), min_size=5, max_size=5), st.sampled_from([1e-6, 1, 30, 1e6]),
                         st.sampled_from([1e-3, 0.03, 1.0]), st.integers(0, 99), st.booleans())  # fmt: skip

    def holds(drawn: tuple[list[int], list[int], float, float, int, bool]) -> None:
        rows, labels, scale, eps, seed, corners = drawn
        given = [_images(labels[: len(rows)], rows, seed, corners)]
        _withstood(subject, f"samples {rows} of classes {labels[: len(rows)]}, logits x {scale:g}, eps {eps:g}",
                   given=given, scale=scale, eps=eps)  # fmt: skip

    if not subject.by_the_loop:
        for_drawn(strategy, holds, examples=2)


def _withstood(
    subject: Subject,
    what: str,
    scale: float = 1.0,
    batch_norm: bool = True,
    eps: float = 0.1,
    given: Sequence[Images] = (FOUR,),
) -> None:
    """Came where a training under odd circumstances fails in a step. Weights stay, so that none of them diverges."""
    begun: list[Step] = []
    how: dict[str, Any] = {"net": _net(scale, batch_norm), "given": given, "eps": eps, "lr": 0.0}
    if subject.by_the_loop:
        how["lr"] = 1e-9  # which has no 0
    try:
        subject.trained(epochs=(1,), settings={"run.check_hooks": True}, before=begun.append, **how)
    except (OptionError, HookConflict) as refusal:
        if begun:
            raise Came(f"with {what}: {told(refusal)}") from None
    except Exception as error:
        raise Came(f"with {what}: {told(error)}") from None


class Broken(nn.Module):
    """A net whose logits of one image are NaN in training; its gradients are numbers all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(False, 0.0, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if not self.training or len(x) == 1:
            return logits
        broken = torch.zeros_like(logits)
        broken[0] = torch.nan
        return logits + broken


def _reads_no_logits(subject: Subject) -> str:
    if subject.by_the_loop:
        return LOOP
    return "" if subject.answers("update") else "it answers no hook of the update"


@check(_reads_no_logits)
def check_nan(subject: Subject) -> None:
    """Logits that are NaN end the step before it is applied, with a sentence; nobody turns them into numbers."""
    subject.run_plainly()
    net = Broken()
    before = copies(net.state_dict())
    try:
        subject.trained(net=net, epochs=(1,), given=batches()[:1], settings={"attack.mode": "eval"})
    except AdvkitError:
        if not same(copies(net.state_dict()), before):
            raise Came("the step was refused, but weights have changed") from None
        return
    raise Came("the step was applied")


# ---------------------------------------------------------------------- how far an attack goes


def attacks_as_the_core(subject: Subject) -> str:
    """Why the images that its attack leaves can not be compared with those given, "" where they can."""
    if subject.by_the_loop or "mix_batch" in subject.hooks:
        return "the images that it attacks are not those that were given"
    return "" if subject.answers("attack") else "it answers no hook of the attack"


@check(attacks_as_the_core)
def check_ball(subject: Subject) -> None:
    """Images to train on lie in [0, 1] and within the largest radius that the plan announced, by the run's norm."""
    subject.run_plainly()
    for norm, init in (("linf", "uniform"), ("l2", "normal"), ("l2", "zero")):
        settings = {"attack.norm": norm, "attack.init": init, "attack.mode": "eval"}
        steps: list[Step] = []
        try:
            ran = subject.trained(settings=settings, eps=0.2, given=batches()[:1], before=steps.append)
        except (OptionError, HookConflict) as refusal:
            if steps:
                raise Came(f"with attack.norm={norm}: {told(refusal)}") from None
            continue
        _within(ran, _largest(steps[0]), norm)


def _largest(step: Step) -> float:
    company = step.composition.company
    scale = 1.0
    for answer in step.composition.answers["budget_scale"]:
        scale *= declared(answer.plugin, "largest_scale", company.attack)
    return company.largest_budget.attack * max(scale, 1.0)


def _within(ran: Trained, largest: float, norm: str) -> None:
    for report, (x, _, index) in zip(ran.reports, ran.seen, strict=True):
        shift = (report.x_train - x).flatten(1)
        reach = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
        outside = (report.x_train < 0) | (report.x_train > 1)
        if bool(outside.any()):
            raise Came(f"with attack.norm={norm} images leave [0, 1] in epoch {report.epoch}, step {report.step}")
        if bool((reach > largest * (1 + 1e-5) + 1e-6).any()):
            sample = int(index[reach.argmax()])
            raise Came(
                f"with attack.norm={norm} sample {sample} was moved by {float(reach.max()):.4g} in epoch "
                f"{report.epoch}, step {report.step}; the plan says {largest:.4g} at most"
            )
