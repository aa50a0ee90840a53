"""Images that are mixed: who judges them by a label that is of one part alone."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import HookConflict
from .stage import Answer

PLACES = ("mix_batch", "attack_start", "attack_move")
"""Hooks that say where an image lies, whatever its label."""


def of_one_label(answers: Mapping[str, tuple[Answer, ...]]) -> list[str]:
    """A caution on whom `batch.y` misleads; HookConflict for who asks whether an attack succeeded, by that label."""
    told = set[str]()
    for mixer in answers["mix_batch"]:
        for answer in (answer for of_hook in answers.values() for answer in of_hook):
            if "success" in answer.arguments:
                raise HookConflict(
                    f"Plugin {answer.plugin.name} asks whether an attack succeeds, which is judged by one label, but "
                    f"{mixer.plugin.name} gives images two; leave one of them out."
                )
            if answer.spec.phase in ("attack", "update") and "batch" in answer.arguments and answer.hook not in PLACES:
                told.add(answer.plugin.name)
    return [
        f"{mixer.plugin.name} mixes images of two labels, and batch.y, which {', '.join(sorted(names))} "
        f"{'is' if len(names) == 1 else 'are'} given, is that of one part"
        for mixer in answers["mix_batch"]
        if (names := told - {mixer.plugin.name})
    ]
