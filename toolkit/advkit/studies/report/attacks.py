"""Which rows of evaluations are of one attack: those of equal settings, seeds apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ... import registry
from ...evaluation.results import FILLED
from ..documents import number
from ..records import AttackRow
from .markup import figure

APART = FILLED - {"code"} | {"step_size", "notes"}
"""Keys of a row that have a field of `Attack`, or are no setting."""


class Attack(NamedTuple):
    """What two rows must share to be of one attack; `norm` is empty where nothing is attacked."""

    norm: str
    eps: float
    name: str
    step: float
    settings: str
    """All others, as JSON: with the net that makes the examples of `transfer`, and the code of somebody's own."""

    @classmethod
    def of(cls, row: AttackRow, norm: str) -> Attack:
        """`norm` is that of its evaluation."""
        norm, step = (row.norm or norm, number(row.step_size) or 0.0) if row.eps else ("", 0.0)
        called = row.name if row.code else row.name.removesuffix(f"-{norm}")  # the norm stands beside it
        others = {key: row[key] for key in row.keys() if key not in APART and row[key] is not None}  # noqa: SIM118
        return cls(norm, row.eps or 0.0, called, step, json.dumps(others, sort_keys=True))

    @property
    def threat(self) -> str:
        return f"{self.norm} {figure(self.eps)}" if self.norm else ""

    @property
    def pace(self) -> str:
        return f"step {figure(self.step)}" if self.step else ""

    @property
    def place(self) -> int:
        """Among all registered attacks; behind them where it is registered no more."""
        order = [one.name for one, _ in registry.attacks()]
        owner = registry.attack_of(self.name)
        return order.index(owner) if owner in order else len(order)

    def apart(self, attacks: Iterable[Attack]) -> list[str]:
        """Its settings that those of its name in its ball have otherwise: "step 0.03", "tries 200"."""
        alike = [other for other in attacks if (other.threat, other.name) == (self.threat, self.name)]
        own, others = _leaves(json.loads(self.settings)), [_leaves(json.loads(one.settings)) for one in alike]
        pace = [self.pace] if self.pace and len({one.step for one in alike}) > 1 else []
        return pace + [f"{key} {value}" for key, value in own.items() if any(one.get(key) != value for one in others)]


def _leaves(value: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Settings by their path, {"source weights": "3f9a0c12"}; of a digest its begin."""
    found: dict[str, str] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            found |= _leaves(each, f"{above}{key} ")
        else:
            digest = isinstance(each, str) and len(each) == 64
            found[f"{above}{key}"] = each[:8] if digest else figure(each)
    return found
