"""A plugin whose attack has steps of its own."""

from __future__ import annotations

from typing import ClassVar

from advkit import AttackResult, Batch, Plugin, hookimpl


class OwnSteps(Plugin):
    """It takes the radius from the settings."""

    name = "own-steps"
    replaces: ClassVar = {"inner_attack": ("attack.steps",)}

    @hookimpl
    def inner_attack(self, batch: Batch) -> AttackResult:
        return AttackResult(batch.x)
