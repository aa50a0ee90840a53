"""Weights that other programs wrote brought to a model's names, and the normalisation beside them to its layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..bits import same_bits
from ..errors import CheckpointError
from ..models.base import Normalize
from .weights import MODEL, Placed, prefixed, put_weights

INSERTED = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names, at the start or within."""

PAIRS = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
"""Last parts of the names of means and of the deviations beside them."""

FLOATS = torch.float64, torch.float32, torch.float16, torch.bfloat16

Renaming = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""`ModelBuilder.renamed`."""


class Normalisation(NamedTuple):
    """Means and deviations, as many of each, by channel or one for all."""

    mean: Tensor
    std: Tensor
    names: tuple[str, str] = ("mean", "std")
    """Their names in a file."""
    own: bool = False
    """Whether those are the model's own names, so that no sentence is due but in training."""

    def __str__(self) -> str:
        return f"{' and '.join(self.names)} ({self.numbers})"

    @property
    def numbers(self) -> str:
        """As `model.normalise` takes them: the shortest that are the same numbers."""
        values = torch.cat([self.mean, self.std]).cpu()
        return ",".join(map(str, (values if values.dtype == torch.float64 else values.float()).numpy()))

    def same(self, other: Normalisation) -> bool:
        """But for how they are rounded; one number is that of all channels."""
        pairs = (self.mean, other.mean), (self.std, other.std)
        return all(bool(torch.isclose(a.cpu().double(), b.cpu().double(), rtol=1e-6).all()) for a, b in pairs)


class Matched(NamedTuple):
    """A file's weights for a model."""

    weights: dict[str, Tensor]
    """By the model's names, as far as they are explained."""
    names: dict[str, str]
    """By the model's names, those in the file."""
    inside: Normalisation | None
    """What the file has beside the net, for `normalised`."""


def put_named(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    renamed: Renaming = dict,
    how: str | None = None,
    anew: bool = False,
    partial_head: bool = False,
    beside: Normalisation | None = None,
) -> Placed:
    """Copy a file's weights into `model`, by whatever names, and their normalisation into its layer, as `put_weights`.

    `how` and `anew` are those of `normalised`; `beside` is a normalisation that is known of the net and that they do
    not hold. Raises CheckpointError; `where` says whose weights they are.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Normalize)]
    before = [Normalisation(layer.mean.flatten().clone(), layer.std.flatten().clone()) for layer in layers]
    try:
        own, names, inside = matched(weights, model, renamed)
        placed = put_weights(model, prefixed(MODEL, own), where, partial_head=partial_head, names=names)
        taken = normalised(layers, before, inside, how, anew) if (inside := inside or beside) else ""
    except CheckpointError as error:
        known = f"The weights of {where} "
        raise CheckpointError(f"{'' if str(error).startswith(known) else f'{where}: '}{error}") from None
    return placed._replace(said="; ".join(filter(None, (placed.said, taken and f"{where}: {taken}"))))


def matched(weights: Mapping[str, Tensor], model: nn.Module, renamed: Renaming = dict) -> Matched:
    """`fitted`, without the second copy of the net that MadryLab's files have, and with the normalisation apart.

    Raises CheckpointError where a file holds more than a net and what it is normalised by.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Normalize)}
    own, widest = model.state_dict(), max([4, *(layer.mean.numel() for layer in layers.values())])
    weights = {name: value.detach() for name, value in weights.items()}  # a tensor that has two names becomes two
    called = {id(value): name for name, value in weights.items()}
    named, inside = fitted(weights, own, renamed), None
    if named.keys() - own.keys():
        weights = _once(weights, widest)
        named = fitted(weights, own, renamed)

    def without(one: Normalisation) -> dict[str, Tensor]:
        return fitted({name: value for name, value in weights.items() if name not in one.names}, own, renamed)

    here = {called[id(value)]: name for name, value in named.items() if name in own and id(value) in called}
    means = {f"{name}.mean".removeprefix(".") for name in layers}
    found = _normalisations(weights, widest)
    mine = next((one for one in found if here.get(one.names[0]) in means), None)
    others = [one for one in found if one is mine or not here.keys() >= {*one.names}]
    if mine and (not named.keys() - own.keys() or _known(without(mine), own) < _known(named, own)):
        inside = mine._replace(own=True)
    elif others:
        if len(others) > 1:
            raise CheckpointError(
                f"it holds two normalisations, {others[0]} and {others[1]}; save alone what is meant."
            )
        inside, named = others[0], without(others[0])
        weights = {name: value for name, value in weights.items() if name not in inside.names}
        for name, layer in layers.items() if len(layers) == 1 else ():  # `normalised` puts theirs in
            named |= {f"{name}.{part}".removeprefix("."): value for part, value in layer.state_dict().items()}
    if named.keys() - own.keys():
        _refuse_beside(weights, named, own, renamed)
    return Matched(named, {name: called.get(id(value), name) for name, value in named.items()}, inside)


def _known(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    return len(named.keys() & own.keys())


def normalised(
    layers: list[Normalize], before: list[Normalisation], inside: Normalisation, how: str | None, anew: bool
) -> str:
    """Put a file's normalisation into a model's layer; a sentence where that had another before, "" elsewhere.

    `how` is the setting model.normalise of a registered net; `anew`, whether the net will be built anew from settings,
    as that of a run. Raises CheckpointError where the numbers can not be kept, or are not those that were given.
    """
    mean, std, here = inside.mean, inside.std, f"it holds a normalisation, {inside}"
    advice = f"set model.normalise={inside.numbers}" if anew else "leave model.normalise out"
    if len(layers) != 1:
        if not mean.any() and std.eq(1).all():
            return ""
        if how not in (None, "data"):
            raise CheckpointError(f"{here}, and model.normalise = {how} is another; {advice}.")
        many = len(layers) or "no"
        raise CheckpointError(f"{here}, and the net has {many} advkit.Normalize; give it one, of those numbers.")
    layer, built = layers[0], before[0]
    channels = layer.mean.numel()
    fits = ((mean >= 0) & (mean <= 1) & (std > 0) & (std <= 1)).all()
    if not inside.own and (not fits or len(mean) not in (1, channels)):
        raise CheckpointError(
            f"{here}, which is not for images of {channels} channels in [0, 1]; save the net alone, and give its "
            "numbers, model.normalise=MEANS,DEVIATIONS."
        )
    same, lost = built.same(inside), anew and not layer.state_dict()
    if not same and how not in (None, "data"):
        given = f"{how} ({built.numbers})" if how == "weights" else how
        raise CheckpointError(f"{here}, and model.normalise = {given} is another; {advice}.")
    if not same and lost:
        advice = advice if how else "build it with those numbers"
        raise CheckpointError(f"{here}, and no run stores that of this net, which has {built.numbers}; {advice}.")
    if not inside.own and not lost:
        layer.mean.copy_(mean.view(1, -1, 1, 1))
        layer.std.copy_(std.view(1, -1, 1, 1))
    if same or (inside.own and not anew):
        return ""
    return f"its normalisation, {inside}, is taken, not the net's ({built.numbers})"


def fitted(
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    renamed: Renaming = dict,
    back: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Weights under the names of a model's state dict `own`, as far as wrappers and published names explain theirs.

    Wrappers put `module.`, `_orig_mod.` or a name of their own, such as `model.`, before all names or within them;
    what nothing explains keeps its name, and is refused by `put_weights`. `back` is `_plainly(own)`, for many calls.
    """
    if weights.keys() <= own.keys():
        return dict(weights)
    plain = {_plain(name): value for name, value in weights.items()}
    if len(plain) < len(weights):
        return dict(weights)
    back = _plainly(own) if back is None else back
    while True:
        names = renamed(plain)
        if names.keys() & back.keys() or not (inner := _without_head(plain)):
            return {back.get(name, name): value for name, value in names.items()}
        plain = inner


def _plainly(own: Mapping[str, Tensor]) -> dict[str, str]:
    """A model's names by what they are without wrappers, where that is one name's alone."""
    known = Counter(map(_plain, own))
    return {_plain(name): name for name in own if known[_plain(name)] == 1}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def _without_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the part that all names begin with; {} where there is no such part."""
    below = _below(weights)
    return next(iter(below.values())) if len(below) == 1 and all("." in name for name in weights) else {}


def _below(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By the part that names begin with, sorted: those of names that go on, without it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        head, dot, rest = name.partition(".")
        if dot:
            found.setdefault(head, {})[rest] = value
    return dict(sorted(found.items()))


def _short(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the same order, without what DataParallel, torch.compile and wrappers put before all names."""
    plain = {_plain(name): value for name, value in weights.items()}
    while inner := _without_head(plain):
        plain = inner
    return plain if len(plain) == len(weights) else dict(weights)


def _once(weights: dict[str, Tensor], widest: int) -> dict[str, Tensor]:
    """Without a second copy of the net, such as MadryLab's robustness has below `attacker.`, for its attacks.

    Raises CheckpointError where that is another net.
    """
    short = _short(weights)
    for head, copy in _below(short).items():
        there = {name: short[name] for name in copy if name in short and not name.startswith(f"{head}.")}
        twice = {name for name, value in there.items() if value.shape == copy[name].shape}
        theirs = {name for one in _normalisations(copy, widest) for name in one.names} - twice
        if not twice or copy.keys() - twice - theirs:
            continue
        others = {name: value for name, value in short.items() if not name.startswith(f"{head}.")}
        pairs = _normalisations(others, widest)
        differing = {name for name in twice if not same_bits(copy[name], others[name])}
        for one in _normalisations(copy, widest):
            if not any(same_bits(one.mean, two.mean) and same_bits(one.std, two.std) for two in pairs):
                differing |= {*one.names} & theirs
        if differing:
            raise CheckpointError(
                f"it holds a net twice, and {head}.{min(differing)} has no equal outside {head}.; save alone what is "
                "meant."
            )
        return {name: weights[name] for name, other in zip(weights, short, strict=True) if other in others}
    return weights


def _normalisations(weights: Mapping[str, Tensor], widest: int) -> list[Normalisation]:
    """What may be means and deviations by channel, of `widest` channels at most."""

    def values(name: str) -> Tensor:
        value = weights.get(name, torch.zeros(0))
        fits = value.dtype in FLOATS and 0 < value.numel() == max(value.shape, default=1) <= widest
        return value.to(torch.promote_types(value.dtype, torch.float32)).flatten() if fits else torch.zeros(0)

    found = []
    for name in weights:
        head, dot, last = name.rpartition(".")
        pair = name, f"{head}{dot}{PAIRS.get(last)}"
        mean, std = map(values, pair)
        if len(mean) and len(std) and len({len(mean), len(std)} - {1}) < 2:
            many = max(len(mean), len(std))
            found.append(Normalisation(mean.expand(many), std.expand(many), pair))
    return found


def _refuse_beside(
    weights: Mapping[str, Tensor], named: Mapping[str, Tensor], own: Mapping[str, Tensor], renamed: Renaming
) -> None:
    """CheckpointError where the model's names stand below one part of a file's, and others stand beside them."""
    short = _short(weights)
    back = _plainly(own)
    known = {head: fitted(part, own, renamed, back).keys() & own.keys() for head, part in _below(short).items()}
    every = set().union(*known.values())  # where other parts have more of them, the net is not below one
    most = max(len(own) // 2, _known(named, own))
    heads = [head for head, names in known.items() if names == every and len(names) > most]
    if not heads:
        return
    below, inside = " and below ".join(f"{head}." for head in heads), tuple(f"{head}." for head in heads)
    first = next((name for name, other in zip(weights, short, strict=True) if not other.startswith(inside)), "")
    beside = first and f", and {first} stands beside them"
    raise CheckpointError(f"the net's names stand below {below}{beside}; save alone what is meant.")
