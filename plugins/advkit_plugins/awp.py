"""Weights moved uphill: AWP (Wu, Xia, Wang, NeurIPS 2020; as ISEAT's Eq. 11 to 14, Li and Spratling 2023), and RWP (Yu,
Han, Gong, Shen, Ge, Du, Liu: Robust Weight Perturbation for Adversarial Training, IJCAI 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advkit import Company, Costs, OptionError, Passes, Plugin, PluginOptions, Real, Run, Schedule, hookimpl, option


def in_range(way: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As it is, to the bit; divided by its largest entry where float32 has no room for the squares, too large or small.

    What is taken of it is its direction.
    """
    length = torch.stack([torch.linalg.vector_norm(value) for value in way.values()]).norm()
    largest = torch.stack([value.abs().amax() if value.numel() else value.sum() for value in way.values()]).amax()
    ordinary = (largest == 0) | ((length > 1e-15) & (length < 1e15))
    unit = torch.where(ordinary, torch.ones_like(largest), largest)
    return {name: value / unit for name, value in way.items()}


def layerwise(gradients: Mapping[str, Tensor], params: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """v_l = gamma ||w_l|| g_l / ||g_l|| for each tensor; no entry where the gradient is 0."""
    shift = {}
    for name, given in gradients.items():
        gradient = in_range({name: given})[name]
        length = torch.linalg.vector_norm(gradient)
        scale = gamma * torch.linalg.vector_norm(params[name]) / length
        shift[name] = gradient * torch.where(length > 0, scale, torch.zeros_like(scale))
    return shift


def on_the_sphere(way: Mapping[str, Tensor], params: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """v = gamma ||w|| way / ||way||, each length that of all tensors of `way` together; 0 where `way` is."""
    way = in_range(way)
    lengths = torch.stack([torch.linalg.vector_norm(value) for value in way.values()]).norm()
    whole = torch.stack([torch.linalg.vector_norm(params[name]) for name in way]).norm()
    scale = torch.where(lengths > 0, gamma * whole / lengths, torch.zeros_like(lengths))
    return {name: value * scale for name, value in way.items()}


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
        min_dim: int = option(
            2, ge=1, le=4, help="perturb tensors of at least so many dimensions; 2 spares biases and norms"
        )
        steps: int = option(
            1, ge=1, le=100, help="ascent steps of gamma / steps each, as a second file of the official code has them"
        )
        step_at: Literal["theta", "theta+v"] = option(
            "theta",
            help="weights the optimizer steps at: theta, or theta+v and back as in the official code, where weight "
            "decay acts on theta+v",
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
                f"{self.name}.loss is objective, but {', '.join(left_out)} needs logits at theta, so v does not see it"
            )
        if self.loss == "adv_ce" and owner != "core":  # as lsiw asks for it
            cautions.append(
                f"{self.name}.loss is adv_ce, so v increases the cross-entropy on x_adv and not the loss of {owner}"
            )
        # TRADES-AWP attacks in eval mode.
        if company.attack.mode == "eval" and owner == "core":
            cautions.append(
                f"the official {self.name.upper()} code attacks in train mode from a uniform start; "
                "this run in eval mode"
            )
        return cautions

    def perturbed(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that v moves. Raises OptionError where there are none."""
        least = self.options.min_dim
        if moving := {name: p for name, p in params.items() if p.dim() >= least}:
            return moving
        raise OptionError(
            f"{self.name} perturbs parameters of {least} dimensions or more ({self.name}.min_dim), and the model "
            f"trains none; lower it, or leave {self.name} out."
        )

    @hookimpl
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]], run: Run
    ) -> Mapping[str, Tensor]:
        pace, moving = self.options.gamma.at(run.epoch) / self.options.steps, self.perturbed(params)

        def step(shift: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
            gradients = gradient_at(shift, loss=self.loss)
            return layerwise({name: gradients[name] for name in moving}, params, pace)

        shift = step(None)
        for _ in range(self.options.steps - 1):
            shift = {name: shift[name] + value for name, value in step(shift).items()}
        return shift


class Rwp(Awp):
    """Weight perturbation in several ascents, on the samples whose loss is still small (RWP)."""

    name = "rwp"

    class Options(Awp.Options):
        gamma: Schedule = option(
            0.01, symbol="γ", help="||v|| / ||w||, by epoch; 0 switches the perturbation off; 0.005 with TRADES"
        )
        steps: int = option(10, ge=1, le=100, help="ascents, whose gradients add up to the direction of v")
        threshold: Real = option(
            1.7,
            ge=0,
            symbol="c_min",
            help="v increases the loss of samples whose cross-entropy with y is below this; 4 on CIFAR-100",
        )

    options: Options

    def below(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none") < self.options.threshold

    @hookimpl
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]], run: Run
    ) -> Mapping[str, Tensor]:
        way = {name: torch.zeros_like(p) for name, p in self.perturbed(params).items()}
        shift: Mapping[str, Tensor] = {}
        for _ in range(self.options.steps if way else 0):
            gradients = gradient_at(shift or None, loss=self.loss, select=self.below)
            way = {name: value + gradients[name] for name, value in way.items()}
            shift = on_the_sphere(way, params, self.options.gamma.at(run.epoch))
        return shift
