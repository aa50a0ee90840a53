"""Cautions that the settings of a run alone give, such as on attacks whose steps end before the edge of the ball."""

from __future__ import annotations

from math import ceil

from ..compose.composition import Composition
from ..config.request import registered
from ..config.resolve import Resolved
from ..errors import OptionError
from ..models.elsewhere import Elsewhere
from ..reach import misfit
from .parts import builder_of
from .validation import PACE


def cautions(resolved: Resolved) -> list[str]:
    """What a plan and a run from Python say of the settings."""
    attacks = (*short_attack(resolved.composition), *short_validation(resolved))
    return [*resolved.cautions, *normalisation(resolved), *_balance(resolved), *attacks, *_autotuned(resolved)]


def normalisation(resolved: Resolved) -> list[str]:
    """A caution where nobody knows which published weights a library's net is normalised for."""
    if not registered(resolved.model_name) or not isinstance(builder := builder_of(resolved), Elsewhere):
        return []
    try:
        return [*filter(None, [builder.doubt()])]
    except OptionError:  # that the library is not here is said where the net is built
        return []


def short_attack(composition: Composition) -> list[str]:
    """A caution where the core's steps end before the edge of the ball; their size may be a plugin's answer."""
    attack, always = composition.setting.attack, composition.always("attack_start")
    own = any("attack.step_size" in keys for plugin in composition.plugins for keys in plugin.replaces.values())
    if own or composition.owners("inner_attack"):
        return []
    random = "a random start" if attack.init == "uniform" else "the image"
    start = f"the start of {composition.owners('attack_start')[0]}" if always else random
    return attack.short(attack.steps, attack.step_size, "attack.step_size", start)


def short_validation(resolved: Resolved) -> list[str]:
    """A caution where the attacks that choose the best epoch end before the edge of the ball."""
    chosen = resolved.validation
    if not resolved.attack.eps or not (chosen.fraction or chosen.split == "test"):
        return []
    short, _, _ = misfit(chosen.steps, PACE, "").partition(";")
    return [f"validation: {short}; choose validation.steps={ceil(1 / PACE)} or more"] if short else []


def _balance(resolved: Resolved) -> list[str]:
    """A caution where the classes of the images are made even."""
    if not resolved.data.balance:
        return []
    return ["data.balance: where a data set's classes are uneven, accuracies on its images are of another population"]


def _autotuned(resolved: Resolved) -> list[str]:
    """A caution where kernels are chosen by the clock."""
    if resolved.run.compile != "max-autotune":
        return []
    return [
        "run.compile=max-autotune chooses kernels by their time: another run or a resume may differ in the last bits"
    ]
