"""CAT's label: Cheng et al. 2022, Eq. 4: y~_i = (1 - c eps_i) y_i + c eps_i u_i, u_i ~ Dirichlet(1, ..., 1)."""

from __future__ import annotations

from torch import Tensor

from advkit import Batch, Budget, Company, OptionError, Plugin, PluginOptions, Real, Run, hookimpl, option


def smooth(target: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha_i) target_i + alpha_i noise_i: (B, K) from (B, K), (B, K) and (B,)."""
    share = alpha.unsqueeze(1)
    return (1 - share) * target + share * noise


class DirichletLs(Plugin):
    """Label smoothing by random Dirichlet noise, as strong as the sample's budget (CAT)."""

    name = "dirichlet-ls"

    class Options(PluginOptions):
        c: Real = option(
            "80/255/eps", symbol="c", ge=0, unit="1 / pixels", help="smoothing per budget; 10 at eps 8/255"
        )
        redraw: bool = option(True, help="draw anew for the update, as printed; false: the attack's noise again")

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def join(self, company: Company) -> list[str]:
        alpha = self.options.c * company.largest_budget.label
        if alpha > 1:
            raise OptionError(
                f"dirichlet-ls.c = {self.options.c:g} times the largest budget {company.largest_budget.label:g} is "
                f"{alpha:g}: a label can not be smoothed by more than 1; lower dirichlet-ls.c."
            )
        if alpha > 0.5:
            return [f"dirichlet-ls smooths by up to {alpha:.3g}: above 0.5 the largest label can be a wrong class"]
        return []

    @hookimpl
    def target_label(self, target: Tensor, batch: Batch, budget: Budget, phase: str, run: Run) -> Tensor:
        phase = phase if self.options.redraw else "attack"
        noise = run.draws("noise", batch, phase).dirichlet(target.shape[1], dtype=target.dtype)
        return smooth(target, noise, self.options.c * budget.label)
