"""A loss whose gradients are known: what is lent to a loop that calls `backward` and steps by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import OptionError
from ..gradients import set_aside


class _Lent(torch.autograd.Function):
    """The value (), with gradients by the parameters that are given beside it; they are let go as a graph is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        try:
            gradients = ctx.saved_tensors
        except RuntimeError as error:
            raise OptionError(
                "backward() was called a second time on one loss, whose gradients would be added twice; call "
                "step.loss(...) again, or scale the loss. Where it is meant: backward(retain_graph=True) before."
            ) from error
        return None, None, *(value * scale.to(value) for value in gradients)


def lent(value: Tensor, gradients: dict[nn.Parameter, Tensor]) -> Tensor:
    """A loss () whose `backward` adds `gradients`, scaled as the loss is, to the `.grad` of their parameters."""
    loss: Tensor = _Lent.apply(value, list(gradients.values()), *gradients)
    return loss


def refuse_no_grad() -> None:
    """OptionError where a loss that is taken now would have no `backward`."""
    if not torch.is_grad_enabled():
        raise OptionError("step.loss(...) is a loss to call backward() on; take it outside of torch.no_grad().")


@contextmanager
def gradients_apart(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[nn.Parameter, Tensor]]:
    """A scope that begins without `.grad`; what it leaves there is in the mapping, and `.grad` is as it was before.

    OptionError for a hook on a gradient of the model: it would run here and again in the loop's backward.
    """
    _refuse_hooks(model)
    every = {*model.parameters(), *(p for group in optimizer.param_groups for p in group["params"])}
    made: dict[nn.Parameter, Tensor] = {}
    with set_aside(every):
        yield made
        made.update({p: p.grad for p in model.parameters() if p.grad is not None})


def _refuse_hooks(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        kinds = {
            "register_hook": parameter._backward_hooks,
            "register_post_accumulate_grad_hook": parameter._post_accumulate_grad_hooks,
        }
        if hooked := next((kind for kind, hooks in kinds.items() if hooks), None):
            raise OptionError(
                f"{name} of the model has a gradient hook ({hooked}), which would run twice, in step.loss(...) and in "
                "its backward; do in the loop after backward() what it does, or call step(...), where it runs once."
            )


def standing_in(model: object) -> torch.optim.Optimizer | None:
    """For a step that only lends its loss: an optimizer of all that is trained, which never steps."""
    trained = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    return Never(trained, lr=0.0) if trained else None


class Never(torch.optim.SGD):
    """An optimizer that stands in for one of the caller's."""
