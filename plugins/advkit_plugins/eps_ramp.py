"""A warm-up of the perturbation budget: Li and Spratling 2023, section 5, on SVHN, "increased from 0 to 8/255 linearly
in the first five epochs"."""

from __future__ import annotations

from advkit import BudgetScale, Company, Plugin, PluginOptions, Run, hookimpl, option


class EpsRamp(Plugin):
    """Warm-up of the attack: the radius grows linearly from 0 over the first epochs (ISEAT on SVHN)."""

    name = "eps-ramp"

    class Options(PluginOptions):
        epochs: int = option(5, ge=1, le=10_000, help="length of the ramp; afterwards the radius is whole")
        step_size: bool = option(False, help="scale the attack's step with the radius, as the code does")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return epoch < self.options.epochs

    def join(self, company: Company) -> list[str]:
        epochs = company.epochs
        if company.epochs_known and self.options.epochs >= epochs:
            return [f"eps-ramp is {self.options.epochs} epochs long: a run of {epochs} never attacks with the full eps"]
        return []

    @hookimpl
    def budget_scale(self, run: Run) -> BudgetScale:
        share = run.epoch / self.options.epochs
        return BudgetScale(radius=share, step_size=share if self.options.step_size else 1.0)
