"""Whether what a step has computed is finite, before it is applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFinite
from ..run import RunState
from .objective import Outcome, Update
from .sums import finite, told

ATTACK, GRADIENT = "an input gradient of the attack", "a parameter gradient"


def stop_if_not_finite(
    state: RunState,
    known: Mapping[str, Any],
    updates: Sequence[Update],
    shift: Mapping[str, Tensor],
    outcome: Outcome,
) -> None:
    """NonFinite with what to do, and whose it is: `known` to the hooks of the step, `shift` is v.

    One synchronisation a step.
    """
    what = _not_finite(updates[0].network.params, updates[0].shares.whole(known["attack"].finite), outcome)
    if what is not None:
        what += _whose(what, known, updates, shift, outcome)
        where = f"{what} at epoch {state.epoch}, step {state.step}"
        raise NonFinite(f"NaN or Inf in {where}. The step was not applied; {_advice(known['target'], outcome)}")


def _whose(
    what: str, known: Mapping[str, Any], updates: Sequence[Update], shift: Mapping[str, Tensor], outcome: Outcome
) -> str:
    """The hook whose answer is the first that is not finite, with its plugins, in brackets; "" where it is nobody's."""
    stage, budget, x_adv = updates[0].stage, known["budget"], known["attack"].x_adv
    # In L2 a broken gradient makes broken images too; the sign of NaN is 0.
    made = [x_adv] if what != ATTACK or updates[0].panel.state.attack.norm == "linf" else []
    answers = {
        "mix_batch": [known["batch"].x],
        "perturbation_budget": [value for value in vars(budget).values() if value is not None],
        "budget_scale": [known["radius"]],
        "target_label": [known["target"]],
        "attack_start": made,
        "attack_move": made,
        "attack_objective": [torch.tensor(torch.nan)] if what == ATTACK else [],
        "inner_attack": [x_adv] if what != ATTACK else [],
        "commit_attack": [known["x_train"]] if what != ATTACK else [],
        "weight_perturbation": [*shift.values()] if what != ATTACK else [],
    }
    for hook, values in answers.items():
        if stage.answers[hook] and not all(bool(value.isfinite().all()) for value in values):
            names = " and ".join(answer.plugin.name for answer in stage.answers[hook])
            return f" (objective of {names})" if hook == "attack_objective" else f" ({hook} of {names})"
    for name, value in outcome.weighted.items() if what != ATTACK else ():
        if bool(outcome.raw[name].isfinite()) and not bool(value.isfinite()):
            return f" (instance_weight of {' and '.join(answer.plugin.name for answer in stage.weights_of(name))})"
    if what.startswith(GRADIENT):
        with suppress(Exception):  # of a plugin that is asked once more
            return next((f" (gradient of {hook} of {name})" for hook, name in _steep(updates, outcome.logits)), "")
    return ""


def _steep(updates: Sequence[Update], logits: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(hook, plugin) of loss terms whose gradient at the logits (B, K), by view, is not finite."""
    first = 0
    for update in updates:
        rows = slice(first, first := first + len(update.known["batch"].y))
        views = {name: value[rows].detach().requires_grad_() for name, value in logits.items()}
        asked = (*update.stage.answers["base_loss"], *update.stage.answers["extra_regularizer"])
        for answer in asked:
            term = "base_loss" if answer.hook == "base_loss" else answer.plugin.name
            with torch.enable_grad():
                total = update.terms(views, [term], {})[term].sum()
                gradients = torch.autograd.grad(total, [*views.values()], allow_unused=True)
            if not all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients):
                yield answer.hook, answer.plugin.name


def _not_finite(params: Mapping[str, Tensor], attacked: Tensor | None, outcome: Outcome) -> str | None:
    """What is not finite, the earliest cause first: an input gradient, the loss, a parameter gradient; or None."""
    gradients = [p.grad for p in params.values() if p.grad is not None]
    flags = {ATTACK: attacked, "the loss": outcome.loss.isfinite()}
    if sums := told(gradients):
        flags[GRADIENT] = torch.stack([fine.all().to(outcome.loss.device) for _, fine in sums.values()]).all()
    known = {name: flag for name, flag in flags.items() if flag is not None}
    good = torch.stack(list(known.values())).tolist()  # the step's one synchronisation
    what = next((name for name, fine in zip(known, good, strict=True) if not fine), None)
    if what == "the loss":
        terms = [name for name, value in outcome.raw.items() if not bool(value.isfinite())]
        return what + (f" (term {', '.join(terms)})" if terms else "")
    if what == GRADIENT:
        broken = next((n for n, p in params.items() if p.grad is not None and not finite(p.grad)), None)
        return None if broken is None else f"{what} ({broken})"
    return what


def _advice(target: Tensor, outcome: Outcome) -> str:
    """What to do where something is not finite, trained with labels `target` (B, K)."""
    if any(bool(((rows == -torch.inf) & (target > 0)).any()) for rows in outcome.logits.values()):
        return (
            "the model masks classes with -Inf that have a share of the target label, whose cross-entropy is infinite: "
            "leave out the plugin that softens labels, or mask with a finite number, such as -100."
        )
    return "lower optimizer.lr or look at the options of the plugins in this run."
