"""What a run file or recipe says for an eps or a length of the run that are others now, and that stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import AdvkitError
from .idle import TYPED
from .layer import Layer

SCALES = ("attack.eps", "run.epochs", "optimizer.schedule", "optimizer.milestones")
"""What other defaults are fractions of."""

NAMES = ("data.name", "data.root", "model.name")
"""On which defaults depend, too."""


def outgrown(
    layers: Sequence[Layer],
    values: Mapping[str, object],
    defaults: Callable[[Mapping[str, object]], Mapping[str, object]],
) -> list[str]:
    """A caution for each of `layers`, lowest first, whose numbers are of another eps or length than `values` has.

    `defaults` are all values of the run where somebody gives these settings and no others.
    """
    said = []
    for place, layer in enumerate(layers):
        own, above = layer.values, {key for one in layers[place + 1 :] for key in one.values}
        then = {key: layer.settings[key] for key in SCALES if key in layer.settings}
        if layer.origin in TYPED or not then.keys() & above:
            continue
        named = {key: values[key] for key in NAMES if values[key]}
        try:
            before = defaults({**named, **then})
            if not (changed := [key for key in then if before[key] != values[key]]):
                continue
            now = defaults({**named, **{key: values[key] for key in SCALES}})
        except AdvkitError:
            continue  # where only what else is given makes a run of it
        longer = {*changed} - {"attack.eps"}
        kept = [
            key
            for key in own
            if key in values and key not in {*above, *SCALES} and values[key] != now.get(key)
            if values[key] == before.get(key) or (longer and key not in layer.settings and _by_epoch(own[key]))
        ]
        if kept:
            scales = " and ".join(f"{key} = {_said(values[key])} is {_said(before[key])}" for key in changed)
            stay = ", ".join(f"{key} = {_said(values[key])}" for key in kept)
            said.append(f"{scales} in {layer.origin}, whose values for that stay: {stay}; set them too")
    return said


def _by_epoch(option: object) -> bool:
    """Whether it is a schedule that counts epochs, [[0, 0.0], [2, 0.1]]."""
    return isinstance(option, list) and len(option) > 1 and all(isinstance(each, list) for each in option)


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
