"""How good a net is on images it is not trained on: what chooses the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config.resolve import Resolved
from ..data.base import Dataset
from ..data.transforms import to_float
from ..errors import HookContract, NonFinite, OptionError, named
from ..evaluation.attacks.names import parse_attacks
from ..evaluation.results import BATCH, UNSOUND, Verdicts
from ..evaluation.verdicts import verdicts
from ..explained import TRAIN_ANOTHER
from ..hidden import without_trace
from ..judging import BEFORE, checked_logits
from ..modules import mode, own_generator, placement
from ..substituted import replaced
from .compiled import eagerly
from .stored import place
from .undo import became_broken
from .values import REMEDY

if TYPE_CHECKING:
    from .loop import Trainer

PACE = 0.25
"""The step size of both attacks, in eps."""


def validated(trainer: Trainer, epoch: int, evaluated: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The figures on the images that choose `best`, with `evaluated` in place of weights; None where none are due."""
    chosen, split = trainer.resolved.validation, trainer.selecting_split()
    last = epoch == trainer.resolved.run.epochs - 1
    if split is None or ((epoch + 1) % chosen.every_epochs and not last):
        return None
    dataset = trainer.splits.test if split == "test" else trainer.splits.train.take(trainer.feed.validation)
    try:
        judged = validate(trainer.model, evaluated, dataset, trainer.resolved, trainer.ranks.size)
    except NonFinite as error:
        what = str(error)[:1].lower() + str(error)[1:].removesuffix(BEFORE).rstrip(".")
        given = trainer.panel.stage.owner("evaluation_weights") if evaluated else None
        whose = f", on the weights that {given.plugin.name} gives" if given else ""
        raise NonFinite(f"Validation of epoch {epoch + 1}{whose}: {what}. {not_stored(trainer)}") from error
    accuracy = {name: float(one.robust.double().mean()) for name, one in judged.items()}
    if unsound := judged["clean"].unsound:
        trainer.progress.warn(f"Validation of epoch {epoch + 1}: {UNSOUND.format(unsound, len(dataset))}.")
    trainer.chance.tell(trainer.progress, judged["clean"].robust, dataset.labels)
    # Cross-entropy PGD alone would pick epochs whose gradients are masked.
    return {"split": split, "n": len(dataset), **accuracy, "selected": min([*accuracy.values()][1:])}


def refuse_unattackable(trainer: Trainer) -> None:
    """OptionError where validations would attack a net that has no gradient at its input, before the first epoch."""
    if trainer.selecting_split() is None or trainer.finished:
        return
    model, (device, dtype) = trainer.model, placement(trainer.model)
    if device.type == "meta":  # which holds no values to put back
        return
    x = to_float(trainer.splits.train.images[:2].to(device), dtype).requires_grad_()
    unseen = without_trace(model, hooks=True)
    with own_generator(device), mode(model, training=False), eagerly(model), unseen, torch.enable_grad():
        try:
            logits = checked_logits(model(x), len(x))
            found = torch.autograd.grad(logits.sum(), x, allow_unused=True) if logits.requires_grad else (None,)
        except Exception:  # told in the first step, with all that is looked at there
            return
    if found[0] is None:
        raise OptionError(TRAIN_ANOTHER)


def not_stored(trainer: Trainer) -> str:
    """What to do where an epoch ends in a net that computes no numbers: what is stored before it leads there again."""
    then = f"The epoch was not stored; {REMEDY}, and start anew"
    if trainer.folder is None:
        return f"{then}."
    if trainer.best is not None:
        start = named("--init-from", str(trainer.folder.path))
        then += f", or from the weights of epoch {trainer.best['epoch'] + 1}, the best, with {start}"
    return f"{then}: a resume goes on from before this and computes the same again."


def judged_on(split: str, n: int, fraction: float) -> str:
    """The images of a validation, as tables and sentences say it; `fraction` is validation.fraction."""
    if split == "test":
        return f"all {n} images of the test split"
    return f"{n} images, {fraction:.3g} of the training split, held out at random by run.seed"


def validate(
    model: nn.Module, weights: Mapping[str, Tensor], dataset: Dataset, resolved: Resolved, processes: int = 1
) -> dict[str, Verdicts]:
    """Under no attack and under two, by the names of the attacks, with `weights` in place of the model's."""
    attack, steps = resolved.attack, resolved.validation.steps
    attacks = parse_attacks(("clean", f"pgd-{steps}", f"cw-{steps}"), pace=PACE)
    with replaced(model, weights):
        size = min(BATCH, resolved.run.at_once(processes))
        return verdicts(model, dataset, attacks, eps=attack.eps, norm=attack.norm, chunk=size)


def weights_of(plugin: str, answer: object, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What `evaluation_weights` answered, for a model that has `own` by name."""
    hook = "evaluation_weights"
    if not isinstance(answer, Mapping) or not all(isinstance(value, Tensor) for value in answer.values()):
        raise HookContract.broken(plugin, hook, "tensors by name are expected")
    for name, value in answer.items():
        if name not in own or value.shape != own[name].shape:
            what = f"it has {name}, which is no parameter or buffer of the model, or of another shape"
            raise HookContract.broken(plugin, hook, what)
        if became_broken(own[name].to(value), value):
            raise NonFinite(f"Plugin {plugin}: {hook} has NaN or Inf in {name}, which the model has not.")
    # A tensor of several names, such as that of tied layers, has its value under all of them.
    values = {place(own[name]): value for name, value in answer.items()}
    return {**answer, **{name: values[place(value)] for name, value in own.items() if place(value) in values}}
