"""FAT: Zhang, Xu, Han, Niu, Cui, Sugiyama, Kankanhalli: Attacks Which Do Not Kill Training Make Adversarial Learning
Stronger (ICML 2020), Algorithm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit import Batch, Company, OptionError, Order, Plugin, PluginOptions, Real, Run, Schedule, hookimpl, option


def one_more(wrong: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples move on, and how many steps each has left once it is misclassified; all (B,).

    A step that is made from a misclassified iterate uses one up; who is misclassified with none left stops.
    """
    go = ~wrong | (left > 0)
    return go, left - (wrong & go).to(left.dtype)


class Fat(Plugin):
    """Stops the attack on a sample tau steps after it is misclassified: friendly adversarial training (FAT)."""

    name = "fat"
    order = {"attack_move": Order(after=frozenset({"fgsm-rs"}))}

    class Options(PluginOptions):
        tau: Schedule = option(
            0.0, symbol="τ", help="steps that a misclassified sample may still take, by epoch; [[0,0],[50,1],[90,2]]"
        )
        noise: Real = option(
            0.0,
            symbol="ω",
            ge=0,
            le=1,
            unit="pixels in [0, 1]",
            help="factor of N(0, 1) noise added to every step; code: 0.001",
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "attack_move" or self.options.noise > 0

    def join(self, company: Company) -> list[str]:
        plain = self.options.tau.plain()
        taus = [tau for _, tau in plain] if isinstance(plain, list) else [plain]
        if any(tau != int(tau) for tau in taus):
            raise OptionError(f"fat.tau = {plain} counts steps; give whole numbers.")
        if min(taus) >= company.attack.steps:
            return [f"fat.tau is never below the {company.attack.steps} steps of the attack: no sample stops early"]
        return []

    @hookimpl
    def attack_step(self, batch: Batch, logits: Tensor, step: int, run: Run) -> Tensor:
        if step == 0:
            self.left = torch.full_like(batch.y, int(min(self.options.tau.at(run.epoch), run.attack.steps)))
        go, self.left = one_more(logits.argmax(1) != batch.y, self.left)
        return go

    @hookimpl
    def attack_move(self, move: Tensor, batch: Batch, step: int, restart: int, run: Run) -> Tensor:
        noise = run.draws(f"noise {restart}", batch).normal(*move.shape[1:], draw=step, dtype=move.dtype)
        return move + self.options.noise * noise
