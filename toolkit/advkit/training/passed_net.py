"""A net that is passed as an object: what tells it from another one whose weights have the same names and shapes.

Its owner builds it again for a resume or an evaluation, and nothing but the owner knows how: GELU in place of ReLU,
another dropout, a layer that was frozen. So checkpoints record how it is built and what it answers. Of nets that have
names or files, these and the code's digest tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..code_digest import code
from ..config.request import PASSED
from ..errors import ResumeMismatch
from ..generators import generators, put_back
from ..global_state import products
from ..hidden import HOOKS, TORCHS_OWN, fixed, without_trace
from ..judging import far_apart
from ..modules import mode, own_generator, placement
from ..plugin import CORE
from ..rng import Draws, derive_key
from ..storage import schema
from ..storage.machine import processor
from ..storage.weights import put_weights
from .by_itself import by_itself
from .compiled import eagerly

Hook = Callable[..., object]
AGAIN = "Pass it as it was, or start a new run."


class PassedNet:
    """The net of one run, as it is before plugins put hooks on it."""

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        self.model, self.shape, self.hooks = model, tuple(shape), _hooks_of(model)
        self.built, self.code = _built(model), code_of_net(model)

    @classmethod
    def of(cls, name: str, model: nn.Module, shape: Sequence[int]) -> PassedNet | None:
        """That of a run whose model.name says that it was passed, for images of `shape` (C, H, W); else None."""
        return cls(model, shape) if name.startswith(PASSED) else None

    def record(self, remembers: bool) -> dict[str, Any]:
        """What a checkpoint holds of it, as `schema.Net`.

        No answer of a net that gives two, or that `remembers` what no state_dict holds: built anew it has another.
        """
        one, two = (None, None) if remembers else _answers(self.model, self.shape, self.hooks)
        kept = one if one is not None and two is not None and not far_apart(one, two) else None
        return {
            "built": self.built,
            "images": list(self.shape),
            "logits": None if kept is None else [[v if isfinite(v) else None for v in row] for row in kept.tolist()],
            "code": self.code,
            "torch": torch.__version__,
            "machine": _machine(self.model),
        }

    def refuse_other_form(self, known: schema.Net, warn: Callable[[str], None]) -> None:
        """ResumeMismatch where it is built otherwise than the run's net, so that it would train otherwise.

        Lines of torch's own layers are their settings, and equal where nothing has changed; another version of torch
        may have more of them. What classes of others say of themselves may be anything: a caution. So it is where code
        of the net was edited, which is told at every resume and then goes on.
        """
        sure, sentence = _difference(known.built, self.built)
        if sentence and sure and self._alike(known):
            raise ResumeMismatch(f"{sentence}. {AGAIN}")
        if sentence:
            warn(f"{sentence}; bits may differ too")

    def refuse_other_answer(self, known: schema.Net, warn: Callable[[str], None]) -> None:
        """ResumeMismatch where it computes something else with the run's weights, which it holds.

        A caution on another machine too: of a net that rounds inside, one rounding more moves all.
        """
        if sentence := _otherwise(self.model, known, self.hooks):
            if self._alike(known) and known.machine == _machine(self.model):
                lost = "What it keeps in plain attributes no checkpoint holds; keep that in buffers (register_buffer)."
                raise ResumeMismatch(f"{sentence}. {AGAIN} {lost}")
            warn(sentence)

    def _alike(self, known: schema.Net) -> bool:
        """Whether nothing but its owner can have made it another: neither torch nor an edit."""
        return (known.torch, known.code) == (torch.__version__, self.code)


def told_apart(model: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> str:
    """A sentence where a model with the weights of a run's checkpoint computes something else than the run's net did.

    It may be meant so, as with layers that smooth. "" where nothing is known of that net. The model has the weights
    afterwards, not averaged ones: with them no answer is known. Raises CheckpointError as `put_weights` does.
    """
    known = schema.state_of(state).net
    if known is None or known.logits is None:
        return ""
    put_weights(model, tensors, where)
    sentence = _otherwise(model, known, _hooks_of(model))
    form = _difference(known.built, _built(model))[1] if sentence else ""
    return "; ".join(filter(None, [sentence, form]))


def code_of_net(model: nn.Module) -> str:
    """A digest of the code of its modules that is neither advkit's nor torch's, "" where there is none."""
    strange = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}
    return "+".join(sorted({digest for kind in strange for digest in code(kind).values()}))


# ---------------------------------------------------------------------- how it is built


def _built(model: nn.Module) -> dict[str, str]:
    """A line for each submodule, by name, as a net is trained: in train mode but for what its owner holds in eval."""
    if getattr(model, "training", True):
        return {name: _line(module) for name, module in model.named_modules()}
    with without_trace(model), mode(model, training=True):  # a `train` of its own may merge weights
        return {name: _line(module) for name, module in model.named_modules()}


def _line(module: nn.Module) -> str:
    """Class and settings, and what is switched off: nn.Linear(in_features=4, out_features=2, bias=True), frozen."""
    kind, said = type(module), ""
    if kind.__module__.startswith("torch."):
        own = {name: value for name, value in vars(module).items() if name[0] != "_" and name not in TORCHS_OWN}
        said = f"nn.{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in own.items() if fixed(value))})"
    else:
        try:
            shown = re.sub("0x[0-9a-f]+", "0x", str(module.extra_repr()))
        except Exception:  # of somebody's class, for people
            shown = ""
        said = f"{kind.__name__}({shown})"
    resting = [name for name, parameter in module.named_parameters(recurse=False) if not parameter.requires_grad]
    held = "" if getattr(module, "training", True) else " in eval mode"
    return f"{said}{held}" + (f" with {', '.join(resting)} frozen" if resting else "")


def _difference(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[bool, str]:
    """A sentence on the first submodule that is built otherwise, one that is sure to compute otherwise before others.

    Those are settings of torch's layers, what is frozen, and what is held in eval mode.
    """
    pairs = [(name, then.get(name, "absent"), now.get(name, "absent")) for name in {**then, **now}]
    different = [(_sure(was, is_now), name, was, is_now) for name, was, is_now in pairs if was != is_now]
    if not different:
        return False, ""
    sure, name, was, is_now = max(different, key=lambda one: one[0])  # the first of the largest
    return sure, f"The net is built otherwise than the run's: {name or 'it'} is {is_now}, and was {was}"


def _sure(was: str, now: str) -> bool:
    return was.startswith("nn.") or now.startswith("nn.") or was.rpartition(")")[2] != now.rpartition(")")[2]


# ---------------------------------------------------------------------- what it computes


def _otherwise(model: nn.Module, known: schema.Net, hooks: Sequence[Hook]) -> str:
    """A sentence where its logits are far from those that are known; "" where it can not be asked."""
    one, two = _answers(model, known.images, hooks)
    if one is None or two is None or known.logits is None:
        return ""
    then = torch.tensor([[float("nan") if value is None else value for value in row] for row in known.logits])
    # JSON has no infinities: those of today are told from numbers, too, and from nothing else.
    one, two = (now.double().where(now.isfinite(), torch.nan) for now in (one, two))
    then = then.double()
    if then.shape == one.shape and not (far_apart(one, then) and far_apart(two, then)):
        return ""
    far = 0.0 if then.shape != one.shape else float((one - then).abs().nan_to_num(0, 0).max())
    apart = f", by {far:.2g} of {float(then.abs().nan_to_num(0).max()):.2g} at most" if far else ""
    return f"The net answers otherwise than the run's with the same weights: its logits of two images differ{apart}"


def _answers(
    model: nn.Module, shape: Sequence[int], hooks: Sequence[Hook]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Its logits (2, K) of two images of `shape` (C, H, W), twice, on the CPU: a net that draws gives two answers.

    Asked as it is judged, in eval mode and its own precision, without hooks but its own, and without a trace. None of
    a net that can not be asked so, which whoever asks next is told.
    """
    device, dtype = placement(model)
    draws, before, answers = Draws(derive_key(0, CORE, "answer"), torch.arange(2)), generators(), list[Tensor]()
    x = draws.uniform(*shape).to(device, dtype)
    try:
        with ExitStack() as scope:
            scope.enter_context(by_itself(model, hooks))
            scope.enter_context(eagerly(model))
            scope.enter_context(mode(model, training=False))
            scope.enter_context(torch.no_grad())
            scope.enter_context(torch.autocast(device.type, enabled=False))
            scope.enter_context(products("highest"))
            seed = scope.enter_context(own_generator(device))
            for number in range(2):
                seed(number)
                answers.append(cast(Tensor, model(x.clone())).detach().float().cpu())
    except Exception:
        return None, None
    finally:
        put_back(before)
    one, two = answers
    return (one, two) if one.dim() == 2 and one.shape == two.shape else (None, None)


def _hooks_of(model: nn.Module) -> list[Hook]:
    """All hooks on it: of a net that nobody else has yet, its own."""
    return [hook for module in model.modules() for kind in HOOKS for hook in vars(module).get(kind, {}).values()]


def _machine(model: nn.Module) -> str:
    """What decides how its sums are rounded, beside torch."""
    device = placement(model)[0]
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
