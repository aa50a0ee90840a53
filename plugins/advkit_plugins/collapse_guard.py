"""The early stop against catastrophic overfitting: Wong, Rice, Kolter: Fast is better than free (ICLR 2020), section 5,
by PGD accuracy on a minibatch of training images."""

from __future__ import annotations

import torch

from advkit import Batch, Company, Plugin, PluginOptions, Real, Run, hookimpl, option


def collapsed(before: float, now: float, drop: float) -> bool:
    """Whether robust accuracy fell by more than `drop` from the epoch before to this one."""
    return now - before < -drop


class CollapseGuard(Plugin):
    """Ends the run when accuracy under PGD on a training batch falls within an epoch (the early stop of fast AT)."""

    name = "collapse-guard"

    class Options(PluginOptions):
        drop: Real = option(0.2, gt=0, le=1, help="the run ends where accuracy falls by more than this; 1: never")
        steps: int = option(5, ge=1, le=9999, help="steps of the guard's PGD, from a random start")
        step_size: Real = option(
            "eps/4", gt=0, unit="pixels in [0, 1]", help="step size of the guard's PGD; 2/255 at 8/255"
        )

    options: Options

    def join(self, company: Company) -> list[str]:
        options = self.options
        start = "the random start of the PGD that looks"
        return company.attack.short(options.steps, options.step_size, "collapse-guard.step_size", start)

    @hookimpl
    def setup(self, run: Run) -> None:
        self.robust = run.tensor_state("robust", torch.zeros((), dtype=torch.float64), least=0, most=1)

    @hookimpl
    def epoch_end(self, batch: Batch, run: Run) -> None:
        radius = torch.full((len(batch.y),), run.attack.eps, dtype=batch.x.dtype, device=batch.x.device)
        attack = run.probe(batch, radius, steps=self.options.steps, step_size=self.options.step_size, init="uniform")
        now = float((run.logits(attack.x_adv).argmax(1) == batch.y).double().mean())
        before = float(self.robust)
        run.figure("robust", now)
        if collapsed(before, now, self.options.drop):
            run.stop(
                f"accuracy under PGD-{self.options.steps} on the {len(batch.y)} images of its first batch "
                f"fell from {before:.3f} to {now:.3f}",
                keep=False,
            )
        self.robust.fill_(now)
