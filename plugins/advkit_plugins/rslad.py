"""Distillation from a robust teacher: Zi, Zhao, Ma, Jiang: Revisiting Adversarial Robustness Distillation: Robust Soft
Labels Make Student Better (ICCV 2021); by options Goldblum et al.: Adversarially Robust Distillation (AAAI 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from advkit import (
    Batch,
    Company,
    Costs,
    HookConflict,
    Passes,
    Place,
    Plugin,
    PluginOptions,
    Real,
    Run,
    hookimpl,
    kl_divergence,
    option,
    soft_cross_entropy,
)


def distilled(teacher: Tensor, student: Tensor, temperature: float, reduction: str) -> Tensor:
    """t^2 KL(softmax(teacher / t) || softmax(student / t)), (B,) from logits (B, K); "mean": divided by K."""
    divergence = temperature**2 * kl_divergence(teacher / temperature, student / temperature)
    return divergence / teacher.shape[1] if reduction == "mean" else divergence


class Rslad(Plugin):
    """Distillation: a robust teacher's probabilities of x are the soft label of x' and of x (RSLAD, ARD)."""

    name = "rslad"
    # Of the official code: the adversarial forward comes first, and both move running statistics.
    prefers = {
        "attack.init": "normal",
        "attack.step_size": "eps/4",
        "attack.mode": "eval",
        "update.batch_norm": "adv_logits,clean_logits",
    }

    class Options(PluginOptions):
        teacher: Place = option("", help="folder of a run of robust training, or a file of weights; empty: the labels")
        teacher_model: str = option(
            "", under="teacher", help="installed net that a file of weights is for; empty: the run's own"
        )
        adv: Real = option("5/6", gt=0, help="weight of the teacher's term at x'; 1 in ARD's code, its alpha")
        clean: Real = option("1/6", ge=0, help="weight of the term at x; 1 - alpha in ARD")
        clean_term: Literal["teacher", "label"] = option(
            "teacher", under="teacher", help="target of the output at x: the teacher's, or as in ARD the label's"
        )
        attack: Literal["teacher", "label"] = option(
            "teacher",
            under="teacher",
            help="what the attack leads away from: the teacher's output at x, or as in ARD the label",
        )
        temperature: Real = option(
            1.0, gt=0, symbol="t", under="teacher", help="of both softmaxes in the loss; 30 in ARD's code"
        )
        reduction: Literal["sum", "mean"] = option(
            "sum", under="teacher", help="over classes: the divergence, or as in both official codes 1/K of it"
        )

    options: Options

    def __init__(self, options: PluginOptions, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.passed = teacher

    @property
    def by_sample(self) -> bool:
        return True

    @property
    def taught(self) -> bool:
        """Whether there is a teacher."""
        return self.passed is not None or bool(self.options.teacher)

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "attack_objective" or (self.taught and self.options.attack == "teacher")

    def passes(self, hook: str, costs: Costs) -> Passes:
        first = "attack_objective" if self.options.attack == "teacher" else "base_loss"
        return Passes(auxiliary_forward=1) if self.taught and hook == first else Passes()

    def join(self, company: Company) -> list[str]:
        if self.taught:
            return self._labels(company)
        return [
            "rslad.teacher names no net, so the labels teach in its place; give a run of robust training: "
            "rslad.teacher=RUN"
        ]

    def _labels(self, company: Company) -> list[str]:
        """What becomes of soft labels beside a teacher."""
        mixers = {*company.owners("mix_batch"), *company.owners("attack_objective"), *company.owners("inner_attack")}
        owners = " and ".join(name for name in company.owners("target_label") if name not in mixers)
        if not owners or (self.options.clean_term == "label" and self.options.clean):
            return []
        if self.options.attack == "label":
            return [f"the soft labels of {owners} do not reach the loss of rslad, whose teacher gives the labels"]
        raise HookConflict(
            f"Beside a teacher neither the attack nor the loss of rslad uses the target label of {owners}; leave "
            f"{owners} out, or set rslad.clean_term=label or rslad.attack=label."
        )

    @hookimpl
    def setup(self, run: Run) -> None:
        if self.taught:
            source = self.options.teacher if self.passed is None else self.passed
            self.teacher = run.module("teacher", source, model=self.options.teacher_model)

    @hookimpl
    def attack_objective(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        teacher = self.teacher(batch.x)
        return lambda logits: kl_divergence(teacher, logits)

    @hookimpl
    def base_loss(self, batch: Batch, target: Tensor, adv_logits: Tensor, clean_logits: Tensor) -> Tensor:
        options, teacher = self.options, self.teacher(batch.x) if self.taught else None

        def term(logits: Tensor, by: str = "teacher") -> Tensor:
            if teacher is None or by == "label":
                return soft_cross_entropy(logits, target)
            return distilled(teacher, logits, options.temperature, options.reduction)

        return options.adv * term(adv_logits) + options.clean * term(clean_logits, options.clean_term)
