"""Whether what a step has computed is finite, before it is applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..compose.stage import Stage
from ..errors import NonFinite
from ..run import RunState
from .objective import Outcome

ATTACK = "an input gradient of the attack"


def stop_if_not_finite(
    model: nn.Module, state: RunState, finite: Tensor | None, target: Tensor, outcome: Outcome, stage: Stage
) -> None:
    """NonFinite with what to do. One synchronisation a step. `finite` () is whether the input gradients all were."""
    what = _not_finite(model, finite, outcome)
    if what is not None:
        if what == ATTACK and (owner := stage.owner("attack_objective")):
            what += f" (objective of {owner.plugin.name})"
        where = f"{what} at epoch {state.epoch}, step {state.step}"
        raise NonFinite(f"NaN or Inf in {where}. The step was not applied; {_advice(target, outcome)}")


def _not_finite(model: nn.Module, finite: Tensor | None, outcome: Outcome) -> str | None:
    """What is not finite, the earliest cause first: an input gradient, the loss, a parameter gradient; or None."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flags = {ATTACK: finite, "the loss": outcome.loss.isfinite()}
    if gradients:
        flags["a parameter gradient"] = nn.utils.get_total_norm(gradients, torch.inf).isfinite()
    known = {name: flag for name, flag in flags.items() if flag is not None}
    good = torch.stack(list(known.values())).tolist()  # the step's one synchronisation
    what = next((name for name, fine in zip(known, good, strict=True) if not fine), None)
    if what == "the loss":
        terms = [name for name, value in outcome.raw.items() if not bool(value.isfinite())]
        return what + (f" (term {', '.join(terms)})" if terms else "")
    if what == "a parameter gradient":
        broken = (n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all()))
        return f"{what} ({next(broken)})"
    return what


def _advice(target: Tensor, outcome: Outcome) -> str:
    """What to do where something is not finite, trained with labels `target` (B, K)."""
    if any(bool(((rows == -torch.inf) & (target > 0)).any()) for rows in outcome.logits.values()):
        return (
            "the model masks classes with -Inf that have a share of the target label, whose cross-entropy is infinite: "
            "leave out the plugin that softens labels, or mask with a finite number, such as -100."
        )
    return "lower optimizer.lr or look at the options of the plugins in this run."
