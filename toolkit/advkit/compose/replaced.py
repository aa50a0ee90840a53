"""Settings that play no part, because a plugin's answer stands in for them."""

from __future__ import annotations

from .composition import Composition

REPLACES = {"train_transform": ("data.transform",), "attack_start": ("attack.init",)}
"""Settings that are what the core answers on a hook."""


def replaced(composition: Composition) -> dict[str, str]:
    """Each such setting of a run, and the plugin that answers in its place in every epoch."""
    return {
        key: answer.plugin.name
        for hook, answers in composition.answers.items()
        for answer in answers
        for key in (*REPLACES.get(hook, ()), *answer.plugin.replaces.get(hook, ()))
        if composition.always(hook)
    }
