"""Settings that somebody has just given and that play no part in the run, because of what else is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from ..compose.composition import Composition
from ..compose.replaced import replaced
from ..errors import OptionError, named
from ..optimizers import OptimizerSettings
from ..options import OptionModel, Schedule, idle
from ..settings import AttackSettings, RunSettings, ValidationSettings, known_setting
from ..torchrun import processes
from .layer import Layer

TYPED = ("command line", "python")
"""Origins of layers that hold what somebody has just said, and nothing that was resolved before."""

OF_JUDGING: Mapping[str, tuple[str, ...]] = {
    "attack": ("norm", "eps"),
    "checkpoint": ("max_bytes",),
    "data": ("name", "root", "limit", "balance", "size", "max_pixels"),
    "run": ("batch_size", "device", "threads", "timeout"),
}
"""What settings say of a file of weights that is judged, beside those of its net."""

OF_SEVERAL = ("run.batchnorm", "run.timeout")
"""Settings of several processes."""


def unused(layers: Sequence[Layer], composition: Composition, sections: Mapping[str, OptionModel]) -> list[str]:
    """A caution for each setting and option that was typed in vain, in the order of the alphabet; and for schedules."""
    typed = {key for layer in layers if layer.origin in TYPED for key in layer.values}
    why = {key: f"under {owner}" for key, owner in replaced(composition).items()}
    for plugin in composition.plugins:
        why |= {f"{plugin.name}.{key}": f"under {plugin.name}.{it}" for key, it in idle(plugin.options).items()}
    why |= dict(_of_settings(composition, sections))
    return [*(f"{key} plays no part {why[key]}" for key in sorted(typed & why.keys())), *_beyond(composition)]


def refuse_of_training(settings: Iterable[str], weights: str) -> None:
    """OptionError for a setting of training, where the file `weights` is only judged."""
    for key in settings:
        known_setting(key)
        section, _, name = key.partition(".")
        if section != "model" and name not in OF_JUDGING.get(section, ()):
            other = f", or give {named('--seed')}" if key == "run.seed" else ""
            raise OptionError(
                f"{key} is of training, and {weights} is a file of weights, which is only judged; leave it out{other}."
            )


def _beyond(composition: Composition) -> list[str]:
    """A caution for each schedule of a plugin that changes after the last epoch, as it may do from 0."""
    epochs, said = composition.setting.epochs, []
    schedules = {
        f"{plugin.name}.{key}": value.points
        for plugin in composition.plugins
        for key, value in vars(plugin.options).items()
        if isinstance(value, Schedule) and composition.setting.epochs_known
    }
    for key, points in schedules.items():
        late = [str(start) for start, _ in points if start >= epochs]
        never = any(value for _, value in points) and not any(value for start, value in points if start < epochs)
        if late:
            until = ", and is 0 in all of them" if never else ""
            said.append(f"{key} changes at {', '.join(late)}, beyond the {epochs} epochs of the run{until}")
    return said


def _of_settings(composition: Composition, sections: Mapping[str, OptionModel]) -> Iterator[tuple[str, str]]:
    attack = cast(AttackSettings, sections["attack"])
    validation = cast(ValidationSettings, sections["validation"])
    rates, epochs = cast(OptimizerSettings, sections["optimizer"]), cast(RunSettings, sections["run"]).epochs
    never = rates.schedule == "piecewise" and all(decay >= epochs for decay in rates.decays(epochs))
    if never and composition.setting.epochs_known:
        yield "optimizer.decay", f"before a milestone, and {epochs} epochs have none"
        if all(isinstance(one, float) for one in rates.milestones):  # of epochs `RateSettings` tells
            yield "optimizer.milestones", f"before a milestone, and {epochs} epochs have none"
    if not composition.owners("inner_attack"):
        if not attack.steps:
            yield from ((f"attack.{key}", "under attack.steps=0") for key in ("step_size", "init", "mode"))
        elif not attack.eps:
            yield from ((f"attack.{key}", "under attack.eps=0") for key in ("step_size", "init"))
        if attack.norm == "l2" and not (attack.steps and attack.eps):
            yield "attack.l2_projection", f"under attack.{'eps' if attack.steps else 'steps'}=0"
    if not validation.fraction and validation.split == "validation":
        yield from ((f"validation.{key}", "under validation.fraction=0") for key in ("steps", "every_epochs"))
    if processes() == 1:
        yield from ((key, "in one process") for key in OF_SEVERAL)
