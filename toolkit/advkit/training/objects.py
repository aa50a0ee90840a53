"""Objects in the place of names: what settings can not do to them, and nets that no run can train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config.resolve import Resolved
from ..data.transforms import to_float
from ..errors import OptionError
from ..explained import calling
from ..hidden import without_trace
from ..judging import refuse_unjudgeable
from ..modules import frozen, mode, own_generator, placement
from ..run import RunState
from ..types import Batch
from .engine import Engine, refuse_compiled
from .given import an_answer, first_logits
from .short import cautions
from .unfit import refuse_unfit_net


def refuse_undone(resolved: Resolved, given: Mapping[str, object], own: object, model: object) -> None:
    """OptionError for settings that make data or a net of a name, where an object is passed: nobody would do them."""
    data = resolved.data
    undone = {"limit": data.limit, "balance": data.balance, "size": data.size, "root": data.root}
    undone["max_pixels"] = data.max_pixels if data.max_pixels != type(data)().max_pixels else 0
    for key, value in undone.items() if own else ():
        if value:
            raise OptionError(
                f"data.{key} = {value} is of a data set that is named, and images were passed; leave it out, and pass "
                "those that you mean."
            )
    for key in sorted(given) if isinstance(model, nn.Module) else ():
        if key.startswith("model.") and key != "model.name":
            raise OptionError(f"{key} is of a net that is named, and one was passed; leave it out, and build that so.")


def tell_undone(
    tell: Callable[[str], None], shown_by_nobody: Resolved | None, given: Mapping[str, object], out: object
) -> None:
    """What is said of checkpoints, where none is written; and what a plan says of the settings, which nobody shows."""
    for caution in cautions(shown_by_nobody) if shown_by_nobody else ():
        tell(caution)
    for key in sorted(given) if out is None else ():
        if key.startswith("checkpoint.") and key != "checkpoint.max_bytes":  # which is of files that are read
            tell(f"{key} plays no part without out, since no checkpoint is written")


def refuse_net(resolved: Resolved, model: nn.Module, images: Tensor | None, classes: int) -> None:
    """OptionError or NonFinite for a net that a run refuses before its first update, as a call on `images` tells.

    Those are some of the training images (n, C, H, W) uint8, None where nobody knows them; `classes` is 0 then.
    """
    refuse_unfit_net(model, loaded=True)
    refuse_unjudgeable(model)
    refuse_compiled(model)
    Engine(resolved.run, model)
    if images is None:
        return
    device, dtype = placement(model)
    x, places = to_float(images.to(device), dtype), torch.arange(len(images), device=device)
    state = RunState(resolved.run.seed, len(images), resolved.attack, device, dtype)
    state.num_classes = classes
    logits = first_logits(model, Batch(x, torch.zeros_like(places), places, torch.zeros_like(places)), state)
    if resolved.attack.steps and len(x) > 1:
        with (
            own_generator(device),
            without_trace(model),
            mode(model, training=False),
            frozen(model),
            torch.enable_grad(),
            calling(x.shape),
        ):
            an_answer(model(x.requires_grad_()), x, "the attack", logits.shape[1])


@contextmanager
def unchanged_if_refused(resolved: Resolved, model: nn.Module, loads: bool) -> Iterator[None]:
    """What is passed to a run that is refused stays its owner's: weights, device, and plugin objects, free again.

    `loads`: whether other weights are put into the model before all that can be refused is.
    """
    if loads:
        refuse_unfit_net(model, loaded=True)  # else its weights could not be put back either
    device = placement(model)[0]
    weights = {name: value.clone() for name, value in model.state_dict().items()} if loads else {}
    free = [plugin for plugin in resolved.composition.plugins if not plugin.taken]
    try:
        yield
    except BaseException:
        if placement(model)[0] != device:  # a net that is refused may have parts which nothing can move
            model.to(device)
        if weights:
            model.load_state_dict(weights)
        for plugin in free:
            plugin.taken = False
        raise
