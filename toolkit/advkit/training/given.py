"""What a step is given: models, optimizers and batches that would train something else than was meant are refused."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import a_whole_number
from ..errors import NonFinite, OptionError, says
from ..explained import TRAIN_ANOTHER, reraise
from ..global_state import products
from ..hidden import without_trace
from ..inventory import Inventory
from ..judging import Shapes, checked_logits, refuse_place, untouched
from ..modules import mode, own_generator, placement
from ..precision import HalfPrecision, named
from ..run import RunState
from ..types import Batch
from .compiled import eagerly
from .unfit import differentiates_again, refuse_rates, wants_closure


def idle(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Those of a model's parameters, by name, that are trainable and that the optimizer lacks."""
    has = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in parameters.items() if p.requires_grad and id(p) not in has}


def refuse_strangers(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, known: Mapping[str, nn.Parameter]
) -> None:
    """OptionError for trainable parameters that the optimizer lacks, beside those `known` to be such."""
    for name, parameter in idle(parameters, optimizer).items():
        if parameter is not known.get(name):
            raise OptionError(
                f"The optimizer does not have {name} of the model, which has come or become trainable since, so it "
                "would never change; build the optimizer and the step when the model is as it shall be."
            )


def at_rest(known: Mapping[str, nn.Parameter]) -> str:
    """A sentence where trainable parameters, by name, are not the optimizer's, "" where there are none."""
    if not known:
        return ""
    first, more = next(iter(known)), f" and {len(known) - 1} more" if len(known) > 1 else ""
    return (
        f"The optimizer lacks trainable parameters of the model ({first}{more}), which never change; give it all of "
        "model.parameters(), or say by requires_grad_(False) that you mean it."
    )


def unlearnt(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> str:
    """After a backward a sentence where trainable parameters that the optimizer has, by name, got no gradient, else "".

    Some may be left out by a forward on purpose, as a layer of stochastic depth is. OptionError where none got one.
    """
    resting = idle(parameters, optimizer)
    asked = {name: p for name, p in parameters.items() if p.requires_grad and name not in resting}
    cut = [name for name, parameter in asked.items() if parameter.grad is None]
    if not cut:
        return ""
    copies = "copies of them (nn.Parameter(w.detach()), copy.deepcopy, torch.func.stack_module_state)"
    if len(cut) == len(asked):
        raise OptionError(
            f"None of the weights that the optimizer has gets a gradient, so nothing would be learnt: the model's "
            f"forward computes with {copies}. Let it take its own."
        )
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    return (
        f"Parameters of the model get no gradient in the first step: {', '.join(cut[:3])}{more}. That is right where "
        f"its forward leaves them out. Where it computes with {copies}, they never learn: let it take its own."
    )


def refuse_late(now: Inventory, before: Inventory) -> None:
    """OptionError for parameters and buffers that a forward has registered: no optimizer and no resume knows them."""
    if late := sorted({*now.parameters, *now.buffers} - {*before.parameters, *before.buffers}):
        raise OptionError(
            f"The model registers {late[0]} in a forward, where no optimizer and no resumed run finds it; call the "
            "model on a batch of images before, or register it in __init__."
        )


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Of an optimizer whose rates are numbers and in the range of the weights' type, which needs gradients alone.

    OptionError or, of that range, NonFinite where it is another.
    """
    refuse_rates(optimizer)
    try:
        optimizer.step()
    except Exception as error:
        own = not type(optimizer).__module__.startswith("torch.")  # SAM and its kin call what they are not given
        if "closure" in says(error) or (own and isinstance(error, AssertionError | TypeError)):
            raise OptionError(wants_closure(optimizer)) from error
        if any(frame.filename == torch.autograd.__file__ for frame in traceback.extract_tb(error.__traceback__)):
            raise OptionError(differentiates_again(optimizer)) from error
        if "without overflow" in says(error):
            what = "The learning rate is beyond the range of the weights' type; lower optimizer.lr."
            raise NonFinite(what) from error
        raise


def a_batch(
    x: Tensor,
    y: Tensor,
    index: Tensor,
    occurrence: Tensor | None,
    model: nn.Module,
    state: RunState,
    empty: bool,
) -> Batch:
    """Shapes and types of what a step is called with, which may be an `empty` share of a batch.

    `state` knows the type of the model when the run was set up.
    """
    refuse_place()
    dtype, now = state.dtype, placement(model)[1]
    if now != dtype:
        raise OptionError(
            f"The model is {named(now)} now, and was {named(dtype)} when this was set up; convert it back, or build a "
            "new optimizer and a new Step."
        )
    for name, value in (("x", x), ("y", y), ("index", index), ("occurrence", occurrence)):
        if not isinstance(value, Tensor) and not (name == "occurrence" and value is None):
            raise OptionError(f"{name} is a {type(value).__name__}; pass a tensor, as of torch.as_tensor.")
        if value is not None and value.is_nested:
            raise OptionError(f"{name} is a nested tensor; pass a dense one, as of torch.stack({name}.unbind()).")
        if value is not None and value.layout != torch.strided:
            raise OptionError(f"{name} is a sparse tensor; pass a dense one, as of {name}.to_dense().")
    rows = len(x) if x.dim() else 0
    if (
        not (rows or empty)
        or (y.shape, index.shape) != ((rows,), (rows,))
        or (y.dtype, index.dtype) != (torch.int64, torch.int64)
    ):
        raise OptionError(
            f"A step takes x (B, C, H, W), y (B,) and index (B,), the last two int64; got {tuple(x.shape)}, "
            f"{tuple(y.shape)} {y.dtype} and {tuple(index.shape)} {index.dtype}."
        )
    if occurrence is not None and (occurrence.shape, occurrence.dtype) != ((rows,), torch.int64):
        got = f"{tuple(occurrence.shape)} {occurrence.dtype}"
        raise OptionError(f"occurrence counts earlier visits of each index, ({rows},) int64; got {got}.")
    if x.dtype != dtype:
        raise OptionError(f"x is {x.dtype} and the model {dtype}; convert x.")
    if torch.is_autocast_enabled(x.device.type):
        raise OptionError(
            "A step sets its precision by itself; call it outside torch.autocast, with the setting run.precision=bf16."
        )
    visits = torch.zeros_like(index) if occurrence is None else occurrence.clone()
    return Batch(x, y.clone(), index.clone(), visits)  # the caller's own stay, whatever a plugin writes into


def an_epoch(epoch: object) -> int:
    """The number of an epoch, from 0."""
    if isinstance(epoch, int) and epoch < 0:
        raise OptionError(f"epoch = {epoch} must be 0 or more.")
    return a_whole_number("epoch", epoch, 0, 2**63 - 1)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """(B, K) int64 of labels y (B,). Raises OptionError where torch finds one that is no class, on a CPU."""
    try:
        return F.one_hot(y, classes)
    except RuntimeError as error:
        raise _no_class(classes) from error


def _no_class(classes: int) -> OptionError:
    return OptionError(
        f"y leaves 0..{classes - 1}, the classes of the model's {classes} logits when this training began."
    )


def refuse_stray_values(batch: Batch, classes: int, samples: int) -> None:
    """Values of a batch, where they are checked: mistakes that would train, but not what was meant."""
    x, index = batch.x, batch.index
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise OptionError("x leaves [0, 1]; pass images in [0, 1] and normalise them inside the model.")
    if not bool(((index >= 0) & (index < samples)).all()):
        raise OptionError(f"index leaves 0..{samples - 1}; pass each sample's place in the training set.")
    if not bool(((batch.y >= 0) & (batch.y < classes)).all()):
        raise _no_class(classes)
    if bool((batch.occurrence < 0).any()):
        raise OptionError("occurrence is negative; it counts earlier visits of an index, from 0.")
    visits = torch.stack([index, batch.occurrence], dim=1)
    if len(torch.unique(visits, dim=0)) != len(index):
        raise OptionError("index names a sample twice in a batch; number its visits with `occurrence`.")


def first_logits(model: nn.Module, batch: Batch, state: RunState) -> Tensor:
    """(1, K) of one eval forward before the first step, (2, K) where one image alone is none to the model.

    Raises OptionError where the data has another K.

    What the net does to its images and in which precision it computes is seen here, before anything is trained.
    """
    half, before, shapes = HalfPrecision(), Inventory.of(model), Shapes(model)
    with (
        products("highest"),
        own_generator(state.device),
        mode(model, training=False),
        eagerly(model),
        without_trace(model),
    ):
        logits, rows = _of_one(model, batch.x if len(batch.x) else standing_in(batch.x), half)
        if half.seen:
            half.refuse(_zeros(model, batch))
        refuse_late(Inventory.of(model), before)
        shapes.refuse()
    return checked_logits(logits, rows, state.num_classes or None)


def standing_in(x: Tensor) -> Tensor:
    """Two images for none, x (0, C, H, W), which keep its place in the graph: many nets fail at a tensor of no rows.

    Two, since one has no variance in a BatchNorm; not flat, since a norm has no slope there.
    """
    shades = torch.linspace(0, 1, 2 * x.shape[1:].numel(), device=x.device, dtype=x.dtype)
    return torch.cat([x, shades.view(2, *x.shape[1:])])


def _of_one(model: nn.Module, images: Tensor, half: HalfPrecision) -> tuple[object, int]:
    """What the model returns for one image, or for two where one alone is none to it (BatchNorm of the batch)."""
    failed: list[BaseException] = []

    for rows in (1, 2):
        x = images[:rows].clone()
        try:
            with torch.no_grad(), untouched(x, by_value=True), half:
                return model(x), len(x)
        except OptionError:
            raise
        except (Exception, SystemExit) as error:
            failed.append(error)
    return reraise(failed[0], images.shape)


def _zeros(model: nn.Module, batch: Batch) -> str:
    """How many entries of the input gradient are 0 on a batch, as far as that can be said."""
    x = batch.x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x).float(), batch.y, reduction="sum"), x)
    except Exception:  # what is wrong beside is not what is told
        return ""
    return f" ({float((gradient == 0).double().mean()):.0%} of the entries on this batch)"


def an_answer(logits: object, x: Tensor, phase: str, classes: int) -> Tensor:
    """What the model returned for images x, known to be logits (B, K) through which a gradient flows if one is asked.

    Raises OptionError.
    """
    checked = checked_logits(logits, len(x))
    if checked.shape[1] != classes:
        raise OptionError(
            f"The model returns {checked.shape[1]} logits for each image here, and had {classes} classes when this "
            "training began, asked in eval mode; let it return the same in both modes, and build a new Step for a new "
            "head."
        )
    if torch.is_grad_enabled() and not checked.requires_grad:
        if x.requires_grad:
            raise OptionError(TRAIN_ANOTHER)
        if phase == "update":
            raise OptionError(
                "The model's logits have no gradient, so nothing would be learnt; take detach, no_grad and "
                "inference_mode out of its forward."
            )
    return checked
