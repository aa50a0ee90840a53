"""Checks of whole trainings against each other: repeated, permuted, in parts, resumed, renamed, in company."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compose.registration import HOOKS
from ..errors import HookConflict, OptionError, Stopped
from ..hookspec import Rule
from ..training.own_loop import Step
from .company import crowd, resolved
from .drawn import for_drawn
from .small import SETTINGS, Images, Trained, Watch, batches, close, copies, needs_the_loop, same
from .steps import LOOP, count_passes
from .subject import Came, NotRun, Subject, check, told

ROUNDING = {"rtol": 1e-7, "atol": 1e-9}
"""Of sums in another order, in float64, over two steps."""


@check()
def check_draws(subject: Subject) -> None:
    """Random numbers come from run.draws alone: a repeated run has the same bits, whatever was drawn elsewhere."""
    once = subject.reference
    if strange := [said for said in once.cautions if "draws from a generator of its own" in said]:
        raise Came(strange[0])
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global ones are what this is about
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99), random.seed(99), np.random.seed(99)  # noqa: NPY002
        try:
            again = subject.trained()
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    if different := differing(once, again):
        raise Came(f"two runs of one seed differ in {different}")


def differing(one: Trained, other: Trained) -> str:
    """The first tensor that differs in a bit, "" where none does."""
    first, second = one.everything, other.everything
    if first.keys() != second.keys():
        return min(first.keys() ^ second.keys())
    return next((name for name in first if not same({name: first[name]}, {name: second[name]})), "")


# ---------------------------------------------------------------------- batches


def _needs_the_loop(subject: Subject) -> str:
    subject.run_plainly()
    return LOOP if subject.by_the_loop else ""


def exact(subject: Subject, given: Sequence[Images], epochs: Sequence[int] = (1,), **settings: object) -> Trained:
    """In float64, by a net that keeps samples apart."""
    how: dict[str, Any] = {"dtype": torch.float64, "batch_norm": False, "dropout": 0.0, "given": given}
    how["epochs"] = epochs
    return subject.trained(**how, settings={"attack.mode": "eval", **settings})


def _reordered(images: Images, order: Sequence[int]) -> Images:
    x, y, index = (part[list(order)] for part in images)
    return x, y, index


@check(_needs_the_loop)
def check_permutation(subject: Subject) -> None:
    """The order of a batch changes nothing but rounding, neither in the weights nor in the state."""
    subject.repeatable()
    given, twice = batches(torch.float64), (1, 2)  # at the second visit the state of samples is their own
    straight = exact(subject, given, twice)

    def holds(order: Sequence[int]) -> None:
        permuted = exact(subject, [_reordered(images, order) for images in given], twice)
        if name := close(permuted.everything, straight.everything, **ROUNDING):
            raise Came(f"with the batch in the order {list(order)} {name} differs")

    holds([3, 1, 0, 2])
    for_drawn(lambda st: st.permutations(range(4)), holds, examples=1)


def _needs_the_whole(subject: Subject) -> str:
    if isinstance(subject.plain, Exception):  # which may be about parts
        return ""
    if reason := _needs_the_loop(subject):
        return reason
    try:
        resolved(subject.company, subject.given(subject.company), {**SETTINGS, "run.accumulate": 2})
    except (HookConflict, OptionError):
        return "it does not declare by_sample, or is beside a plugin that does not"
    return ""


@check(_needs_the_whole)
def check_parts(subject: Subject) -> None:
    """In parts, by run.accumulate, a batch is the whole batch but for rounding, as `by_sample` declares."""
    subject.run_plainly("parts")
    subject.repeatable()
    given = batches(torch.float64)
    whole, halves = (exact(subject, given, (1,), **{"run.accumulate": parts}) for parts in (1, 2))
    if name := close(halves.everything, whole.everything, **ROUNDING):
        raise Came(f"with run.accumulate=2 {name} differs")


# ---------------------------------------------------------------------- resumed


class _StopAfter(Watch):
    """Stops a run after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def stop_requested(self) -> type[Stopped] | None:
        self.left -= 1
        return None if self.left else Stopped


@check()
def check_resume(subject: Subject) -> None:
    """A run that is stopped within an epoch and resumed ends in the bits of one that was not."""
    whole = subject.repeatable()
    resumed = _by_the_loop(subject) if subject.by_the_loop else _by_steps(subject)
    for name, tensor in whole.everything.items():
        if name not in resumed or not same({name: tensor}, {name: resumed[name]}):
            raise Came(f"{name} differs: something is kept between steps that no checkpoint has; run.sample_state and "
                       "run.tensor_state are for that")  # fmt: skip


def _by_the_loop(subject: Subject) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="advkit-testing-") as folder:
        out = Path(folder) / "run"
        try:
            subject.trained(out=out, progress=_StopAfter(4))
        except Stopped:
            return subject.trained(resume_from=out).everything
    raise NotRun("its run ends before it could be stopped")


def _by_steps(subject: Subject) -> dict[str, Tensor]:
    """Three steps, and the fourth by a net, an optimizer and plugins of its own, which got what is saved."""
    x, left = batches(), copies({})
    saved: dict[str, Any] = {}

    def first(step: Step) -> None:
        for epoch, images in ((0, x[0]), (0, x[1]), (1, x[0])):
            step(*images, epoch=epoch)
        saved.update(net=copies(step.model.state_dict()), optimizer=deepcopy(step.optimizer.state_dict()))
        saved.update(plugins=copies(step.state_dict()))

    def last(step: Step) -> None:
        step.model.load_state_dict(saved["net"])
        step.optimizer.load_state_dict(saved["optimizer"])
        step.load_state_dict(saved["plugins"])
        step(*x[1], epoch=1)
        left.update(copies(step.model.state_dict()), **copies(step.state.stored()))

    for act in (first, last):
        subject.trained(epochs=(), before=act)
    return left


# ---------------------------------------------------------------------- in company


@check()
def check_order(subject: Subject) -> None:
    """Beside all that fit, the order in which plugins are named changes no bit."""
    subject.repeatable()
    subject.among_the_sound(lambda: _order(subject))


def _order(subject: Subject) -> None:
    chosen = crowd(subject.company, subject.others, subject.refused)
    if len(chosen) == 1:
        raise NotRun("nobody fits beside it")
    one, other = (subject.trained(order) for order in (chosen, chosen[::-1]))
    if different := differing(one, other):
        raise Came(f"{','.join(plugin.name for plugin in chosen)} named backwards differs in {different}")


def _without_neutral(subject: Subject) -> str:
    return "" if subject.neutral is not None else "no options are named under which it does nothing"


@check(_without_neutral)
def check_neutral(subject: Subject) -> None:
    """Under its neutral options a run has the bits of one without it; under its example options it has others."""
    acting = subject.repeatable()
    without = subject.trained(subject.company[1:], by_the_loop=subject.by_the_loop)
    neutral = Subject(subject.plugin, subject.neutral or {}).trained(subject.company)
    if not same(neutral.weights, without.weights):
        raise Came(f"with {subject.neutral} the run is not the run without it")
    answering = any(HOOKS[hook].rule is not Rule.NOTIFY for hook in subject.hooks)
    if answering and same(acting.weights, without.weights):
        raise Came("with its example options the run is the run without it, too")


@check()
def check_pairs(subject: Subject) -> None:
    """Beside any other installed plugin it trains as planned, or both are refused in a sentence that names it."""
    subject.run_plainly()
    subject.presuppose("passes")
    subject.among_the_sound(lambda: _pairs(subject))


def _pairs(subject: Subject) -> None:
    refused_alone = subject.refused((subject.plugin,))
    for other in subject.others:
        pair = (subject.plugin, other)
        if refusal := subject.refused(pair):
            if subject.name not in refusal and other.name not in refusal and refusal != refused_alone:
                raise Came(f"{other.name} is refused beside it, which names neither: {refusal}")
            continue
        if needs_the_loop(pair):
            continue
        try:
            count_passes(subject, pair, epochs=(0,))
        except Exception as error:
            raise Came(f"beside {other.name}: {told(error)}") from None
