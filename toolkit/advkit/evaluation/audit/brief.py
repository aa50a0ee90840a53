"""The short form, after every evaluation: its verdicts, and some forty forwards and twenty backwards an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil

import torch
from torch import Tensor, nn

from ...data.base import Dataset
from ..figure import gap, share
from ..results import Verdicts, reach, widest_gap
from . import figures
from .bench import EARLY, Bench, bench
from .checks import RULES, Check, told
from .figures import Answer

IMAGES = 200
"""Of the data set: those that the full form takes unless another number is asked for."""

_MEASURED: dict[str, Callable[[Bench], Answer]] = {
    "zero-gradient": figures.blind,
    "false-gradient": figures.false_gradient,
    "grad-mode": figures.grad_mode,
    "batch": figures.by_batch,
    "large-eps": figures.large_eps,
    "silent-success": figures.silent,
    "useless-gradient": figures.useless,
    "non-determinism": figures.varying,
    "probabilities": figures.probabilities,
}


def short(
    model: nn.Module,
    dataset: Dataset,
    verdicts: Mapping[str, Verdicts],
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
) -> list[Check]:
    """The checks of `RULES` that cost little, from the verdicts and some forty forwards and twenty backwards an image.

    They attack 200 of the images and change neither model nor verdicts. A check whose attacks are not among the
    verdicts has alarm None.
    """
    return judged(measured(model, dataset, eps=eps, norm=norm, seed=seed), verdicts.values(), norm)


def measured(
    model: nn.Module, dataset: Dataset, *, eps: float, norm: str, seed: int, batch_size: int | None = None
) -> dict[str, Answer]:
    """What the short form asks the net itself, by check."""
    few = dataset.sample(IMAGES)
    with bench(model, few, eps=eps, norm=norm, seed=seed, steps=EARLY, batch_size=batch_size) as table:
        return {name: table.answer(name, measure) for name, measure in _MEASURED.items()}


def judged(answers: Mapping[str, Answer], verdicts: Iterable[Verdicts], norm: str) -> list[Check]:
    """Those figures and what the verdicts in `norm` say, in the order of `RULES`."""
    inside = [one for one in verdicts if one.settings["norm"] == norm]
    known = {**answers, **from_verdicts(inside)}
    withstood = {one.settings["name"]: float(one.robust.double().mean()) for one in inside}
    withstood.pop("clean", None)
    return told([rule.judge(known[name]) for name, rule in RULES.items() if name in known], withstood)


def from_verdicts(verdicts: Sequence[Verdicts]) -> dict[str, Answer]:
    """What verdicts of one norm say about each other, by check."""
    # Attacks that can cross the ball twice; shorter ones say little about the net.
    ours = [one for one in verdicts if "code" not in one.settings]  # what others say of theirs may mean anything
    walked = [one for one in ours if isinstance(one.settings.get("loss"), str) and reach(one) >= 2]
    entropy = _standing(one for one in walked if one.settings["loss"] == "cross-entropy")
    # PGD on one loss is no proof that gradients mislead: the other loss may lead there.
    both = len({one.settings["loss"] for one in walked}) == 2
    alone = [one for one in ours if one.settings.get("parts") == ["apgd-t"]]
    gradient = _standing([*walked, *alone]) if both else None
    once = [one for one in ours if one.settings.get("loss") == "cross-entropy" and one.settings.get("steps") == 1]
    fgsm = _standing(one for one in once if 1 <= reach(one) < 2)
    square = _standing(one for one in verdicts if one.access == "scores" and one.settings["name"] != "clean")
    transferred = _standing(one for one in verdicts if one.access == "transfer")
    apgd_t = _standing(one for one in ours if "apgd-t" in one.settings.get("parts", ()))

    def broken(needs: str, standing: Tensor | None, by: Tensor | None) -> Answer:
        if standing is None or by is None:
            return f"this evaluation has not all of {needs}{_too_short(ours, needs, 2)}"
        return share(int((standing & ~by).sum()), len(by))

    pair = widest_gap(verdicts)
    unpaired = "this evaluation has not both pgd-K and cw-K of the same steps"
    apart = unpaired + _too_short(ours, unpaired, 1) if pair is None else gap(*pair, len(pair[0]))
    return {
        "black-box": broken("pgd-K, cw-K and square", gradient, square),
        "transfer": broken("pgd-K, cw-K and transfer:RUN", gradient, transferred),
        "loss-gap": apart,
        "apgd-t-gap": broken("pgd-K and apgd-t", entropy, apgd_t),
        "one-step": broken("pgd-K and fgsm", entropy, fgsm),
    }


def _too_short(ours: Iterable[Verdicts], needs: str, eps: int) -> str:
    """Those of the missing ones whose steps do not add up to so many eps, and how many would; "" without any."""
    walks = [(one.settings, reach(one)) for one in ours if one.settings["name"] != "fgsm"]
    there = {settings.get("loss") for settings, far in walks if far >= eps}
    missing = {"cross-entropy": "pgd-K" in needs, "margin": "cw-K" in needs} | dict.fromkeys(there, False)
    return "".join(
        f"; {settings['name']} takes too few steps, {ceil(eps * settings['steps'] / far - 1e-6)} would do"
        for settings, far in walks
        if 0 < far < eps and missing.get(settings.get("loss"))
    )


def _standing(chosen: Iterable[Verdicts]) -> Tensor | None:
    """(n,) bool: the images that withstand all of these; None where there are none."""
    rows = [one.robust for one in chosen]
    return torch.stack(rows).all(0) if rows else None
