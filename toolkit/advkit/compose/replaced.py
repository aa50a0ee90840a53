"""Settings that play no part, because a plugin's answer stands in for them."""

from __future__ import annotations

from collections.abc import Mapping

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


def standard(values: Mapping[str, object], composition: Composition | None = None) -> bool:
    """Whether training attacks nothing, by the settings in force, so that no epoch is the best under attack.

    Of a run with plugins their `composition` has a say: one may own an attack that has steps or a radius of its own.
    """
    answers = composition.answers if composition else {}
    own = {key for hook, held in answers.items() for one in held for key in one.plugin.replaces.get(hook, ())}
    return any(values.get(key) == 0 and key not in own for key in ("attack.eps", "attack.steps"))


def without_plugins(values: Mapping[str, object]) -> str:
    """What training without a plugin is called, by the settings in force."""
    return "standard training" if standard(values) else "PGD-AT"
