"""Cautions on attacks of a run whose steps end before the edge of the ball."""

from __future__ import annotations

from math import ceil

from ..compose.composition import Composition
from ..config.resolve import Resolved
from ..reach import short_of
from .validation import PACE


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
    short, _, _ = short_of(chosen.steps, PACE, "").partition(";")
    return [f"validation: {short}; choose validation.steps={ceil(1 / PACE)} or more"] if short else []
