"""Adversarial weight perturbation: Wu, Xia, Wang (NeurIPS 2020); as ISEAT's Eq. 11 to 14 (Li and Spratling 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from advkit import Company, Costs, Passes, Plugin, PluginOptions, Run, Schedule, hookimpl, option


def layerwise(gradients: Mapping[str, Tensor], params: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """v_l = gamma ||w_l|| g_l / ||g_l|| for each tensor; no entry where the gradient is 0."""
    shift = {}
    for name, gradient in gradients.items():
        length = torch.linalg.vector_norm(gradient)
        scale = gamma * torch.linalg.vector_norm(params[name]) / length
        shift[name] = gradient * torch.where(length > 0, scale, torch.zeros_like(scale))
    return shift


class Awp(Plugin):
    """Adversarial weight perturbation: the loss is taken at weights moved uphill, layer by layer (AWP)."""

    name = "awp"

    class Options(PluginOptions):
        gamma: Schedule = option(0.01, symbol="γ", help="||v_l|| / ||w_l||, by epoch; 0 switches the perturbation off")
        loss: Literal["auto", "adv_ce", "objective"] = option(
            "auto",
            help="what v increases: cross-entropy on x_adv, or base loss and regularizers; auto: objective where a "
            "plugin owns base_loss (TRADES-AWP), else adv_ce",
        )
        min_dim: int = option(2, ge=1, le=4, help="perturb tensors of so many dimensions; 2 spares biases and norms")
        steps: int = option(
            1, ge=1, le=100, help="ascent steps of gamma / steps each, as a second file of the official code has them"
        )
        step_at: Literal["theta", "theta+v"] = option(
            "theta",
            help="weights the optimizer steps at: theta, or theta+v and back as the official code, where weight decay "
            "acts on theta+v",
        )

    options: Options

    @property
    def steps_at_shift(self) -> bool:
        return self.options.step_at == "theta+v"

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.gamma.at(epoch) > 0

    def passes(self, hook: str, costs: Costs) -> Passes:
        return (costs.objective if self.loss == "objective" else costs.adv_ce) * self.options.steps

    def join(self, company: Company) -> list[str]:
        owner = company.owner("base_loss")
        self.loss = self.options.loss
        if self.loss == "auto":
            self.loss = "adv_ce" if owner == "core" else "objective"
        cautions = []
        left_out = [
            name
            for name in company.owners("extra_regularizer")
            if any(view.endswith("_base") for view in company.loss_views(name))
        ]
        if self.loss == "objective" and left_out:
            cautions.append(
                f"awp.loss is objective, but {', '.join(left_out)} needs logits at theta, so v does not see it"
            )
        if self.loss == "adv_ce" and owner != "core":  # as lsiw asks for it
            cautions.append(
                f"awp.loss is adv_ce, so v increases the cross-entropy on x_adv and not the loss of {owner}"
            )
        # TRADES-AWP attacks in eval mode.
        if company.attack.mode == "eval" and owner == "core":
            cautions.append("the official AWP code attacks in train mode from a uniform start; this run in eval mode")
        return cautions

    @hookimpl
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]], run: Run
    ) -> Mapping[str, Tensor]:
        pace = self.options.gamma.at(run.epoch) / self.options.steps
        perturbed = [name for name, p in params.items() if p.dim() >= self.options.min_dim]

        def step(shift: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
            gradients = gradient_at(shift, loss=self.loss)
            return layerwise({name: gradients[name] for name in perturbed}, params, pace)

        shift = step(None)
        for _ in range(self.options.steps - 1):
            shift = {name: shift[name] + value for name, value in step(shift).items()}
        return shift
