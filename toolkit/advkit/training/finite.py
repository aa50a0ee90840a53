"""Whether what a step has computed, before its update, is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFinite
from ..run import RunState
from .objective import Outcome, Update
from .sums import finite, told
from .values import ATTACK, GRADIENT, LOSS, masked, remedy


@dataclass(frozen=True)
class Judged:
    """Whether what a step has computed is finite: the device knows, and nobody has waited for it yet."""

    flags: Tensor
    """(n,) bool: of the attack's input gradients where they were looked at, the loss, each gradient of `names`."""
    names: Sequence[str]
    known: Mapping[str, Any]
    updates: Sequence[Update]
    shift: Mapping[str, Tensor]
    outcome: Outcome

    @classmethod
    def of(
        cls, known: Mapping[str, Any], updates: Sequence[Update], shift: Mapping[str, Tensor], outcome: Outcome
    ) -> Judged:
        """`known` to the hooks of the step, whose gradients are in `.grad`; `shift` is v."""
        attacked, device = updates[0].shares.whole(known["attack"].finite), outcome.loss.device
        flags = [flag.reshape(1) for flag in (attacked, outcome.loss.isfinite()) if flag is not None]
        gradients = {name: p.grad for name, p in updates[0].network.params.items() if p.grad is not None}
        every, names = [*gradients], list[str]()
        for places, fine in told([*gradients.values()]).values():
            names += [every[place] for place in places]
            flags.append(fine.to(device))
        return cls(torch.cat(flags), names, known, updates, shift, outcome)

    def refuse(self, state: RunState, fine: Sequence[bool]) -> None:
        """NonFinite where the values of `flags` say so: the earliest cause, whose it is, and what to do."""
        params, first = self.updates[0].network.params, len(fine) - len(self.names)
        broken = (
            f"{GRADIENT} ({name})"
            for name, good in zip(self.names, fine[first:], strict=True)
            if not good and ((gradient := params[name].grad) is None or not finite(gradient))  # sums can overflow
        )
        early = (name for name, good in zip((ATTACK, LOSS)[-first:], fine, strict=False) if not good)
        if (what := next(early, None) or next(broken, None)) is None:
            return
        if what == LOSS and (terms := [name for name, value in self.outcome.raw.items() if not finite(value)]):
            what += f" (term {', '.join(terms)})"
        what += _whose(what, self.updates, self.outcome.logits)
        where = f"{what} at {state.place}"
        advice = _advice(self.known["target"], self.outcome, remedy(state))
        raise NonFinite(f"NaN or Inf in {where}. The step was not applied; {advice}")


def _whose(what: str, updates: Sequence[Update], logits: Mapping[str, Tensor]) -> str:
    """The hook whose answer is the first that is not finite, with its plugin, in brackets; "" where it is nobody's."""
    if (first := updates[0].network.ledger.values.first()) is not None:
        return first.whose
    if what.startswith(GRADIENT):
        with suppress(Exception):  # of a plugin that is asked once more
            return next((f" (gradient of {hook} of {name})" for hook, name in _steep(updates, logits)), "")
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


def _advice(target: Tensor, outcome: Outcome, otherwise: str) -> str:
    """What to do where something is not finite, trained with labels `target` (B, K)."""
    shares = [target[masked(rows)] for rows in outcome.logits.values()]
    if any(bool(((share > 0) & (share < 1)).any()) for share in shares):
        return (
            "the model masks classes with -Inf that have a share of the target label, whose cross-entropy is infinite: "
            "leave out the plugin that softens labels, or mask with a finite number, such as -100."
        )
    if any(bool((share == 1).any()) for share in shares):
        return "the model masks classes with -Inf to which images of this batch belong; mask those without images."
    return f"{otherwise}."
