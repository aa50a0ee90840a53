"""Who can be asked about a part of a batch."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import HookConflict
from .composition import Composition
from .declarations import declared

WHOLE = ("weight_perturbation", "observe_update", "after_update")
"""Hooks of a step that are asked once for all parts of a batch."""


def refuse_parts(composition: Composition, why: str, whole: Collection[str] = WHOLE) -> None:
    """HookConflict for a plugin that would be asked about parts of a batch, `why`, and may need the whole."""
    for answer in (answer for answers in composition.answers.values() for answer in answers):
        of_a_part = answer.spec.phase in ("attack", "update") or answer.hook in ("mix_batch", "train_transform")
        if of_a_part and answer.hook not in whole and not declared(answer.plugin, "by_sample"):
            raise HookConflict(
                f"Plugin {answer.plugin.name} may need the whole batch (it does not declare by_sample), and "
                f"{why} asks it about parts; leave one of them out."
            )
