"""Whether a plugin answers for each sample by itself, as it declares: what a step in parts relies on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..compose.declarations import declared
from ..compose.parts import WHOLE
from ..compose.stage import Answer
from ..errors import HookContract
from ..generators import generators, put_back
from ..global_state import switch_back, switches
from ..plugin import Plugin
from ..run import RunState
from .visits import all_differ

BESIDE = (*WHOLE, "inner_attack", "attack_step", "attack_move")
"""Hooks that are not asked twice: those of all parts, and of an attack, whose steps may keep something for the next."""

CLOSE = 1e-3, 1e-5
"""How far an answer may move by rounding, relative and absolute."""


class Halved:
    """An answer on the first half of a batch, given before it is asked about all, in a plugin and a run as they were.

    None is there of plugins that do not declare `by_sample`, run passes of their own, or fail on a half: they may keep
    something of the batch that belongs to all of it. Nor where a sample is twice in the batch: what a plugin keeps of
    it may be the second one's by the time it answers for the first.
    """

    def __init__(self, answer: Answer, known: Mapping[str, Any], state: RunState) -> None:
        self._answer, self._state, self._rows = answer, state, 0
        self._half: list[Tensor] | None = None
        batch = known.get("batch")
        once = batch is not None and batch.mix is None and all_differ(batch.index)
        rows = len(batch.y) if batch is not None and once else 0
        plain = answer.spec.phase in ("attack", "update") and answer.hook not in BESIDE
        if rows < 4 or not plain or type(answer.plugin).passes is not Plugin.passes:
            return
        if not declared(answer.plugin, "by_sample"):
            return
        self._rows = rows
        held, drawn, switched = dict(vars(answer.plugin)), generators(), switches()
        kept = [(values, values.clone()) for values in (*state.samples.values(), *state.tensors.values())]
        try:
            half = answer({name: _half(known[name], rows) for name in (*answer.arguments, "run")})
            self._half = [value.clone() for value in self._values(half, rows // 2)]
        except Exception:  # of a plugin that was given a half
            self._half = None
        finally:
            for values, before in kept:
                values.copy_(before)
            vars(answer.plugin).clear()
            vars(answer.plugin).update(held)
            put_back(drawn)
            switch_back(switched)

    def check(self, whole: Any) -> None:
        """HookContract where the answer on the `whole` batch says something else of the first half."""
        if self._half is None:
            return
        values, half = list(self._values(whole, self._rows)), self._rows // 2
        if len(values) != len(self._half) or not all(map(self._alike, values, self._half)):
            raise HookContract.broken(
                self._answer.plugin.name,
                self._answer.hook,
                f"it declares by_sample, but its answer on the first {half} of {self._rows} samples is not that part "
                "of its answer on all; declare it only where every sample is answered for by itself",
                "parts",
            )

    def _alike(self, whole: Tensor, half: Tensor) -> bool:
        rows = whole.shape[:1] == (self._rows,) and half.shape[:1] == (self._rows // 2,)
        part = whole[: len(half)] if rows else whole
        return part.shape == half.shape and torch.allclose(part.double(), half.double(), *CLOSE, equal_nan=True)

    def _values(self, value: Any, rows: int) -> Iterator[Tensor]:
        """The tensors of an answer; of an objective its values on some logits."""
        if isinstance(value, Tensor | float | int):
            yield torch.as_tensor(value).detach()
        elif is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                yield from self._values(getattr(value, field.name), rows)
        elif isinstance(value, tuple):
            for inner in value:
                yield from self._values(inner, rows)
        elif callable(value):
            classes, device = self._state.num_classes, self._state.device
            logits = torch.linspace(0, 9, self._rows * classes, dtype=self._state.dtype, device=device)
            yield from self._values(value(logits.view(-1, classes)[:rows]), rows)


def _half(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[: rows // 2].clone() if value.shape[:1] == (rows,) else value
    if isinstance(value, Mapping):
        return {name: _half(inner, rows) for name, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _half(getattr(value, field.name), rows) for field in fields(value)})
    return value
