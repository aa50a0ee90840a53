"""The update phase: the forwards that are demanded, the loss terms, their weights, one total.

Sums are divided by the sample count that is passed in, so that a rank's share of a batch weighs what it should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ..compose.stage import Stage
from ..losses import soft_cross_entropy
from .contracts import Contract
from .network import Network
from .panel import Panel
from .probe import by_autograd_alone, nothing_moves
from .shares import Whole
from .views import viewed


@dataclass(frozen=True)
class Outcome:
    """What the update phase computed. `raw` and `weighted` are each term's sum over the batch, detached."""

    loss: Tensor
    raw: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]


@dataclass(frozen=True)
class Update:
    """What one update works on: the arguments of the hooks up to here in `known`, and whom to ask."""

    network: Network
    stage: Stage
    known: Mapping[str, Any]
    panel: Panel
    contract: Contract
    shares: Whole  # of the whole batch, of which this may be a part
    asked: dict[str, Tensor] = field(default_factory=dict)  # what `gradient_at` was asked about, which v may lack

    def gradient_at(self, owner: str) -> Callable[..., Mapping[str, Tensor]]:
        """The argument of that name (see `Hooks.weight_perturbation`).

        Train mode; buffers, `.grad` and parameters stay untouched.
        """
        turns = count()
        trained = {name: p for name, p in self.network.params.items() if p.requires_grad}

        def gradient_at(
            shift: Mapping[str, Tensor] | None = None,
            loss: str = "adv_ce",
            select: Callable[[Tensor, Tensor], Tensor] | None = None,
        ) -> Mapping[str, Tensor]:
            self.contract.question(owner, shift, loss, trained)
            self.asked.update(shift or {})
            turn = next(turns)
            views = {"adv_logits": True} if loss == "adv_ce" else self.stage.objective_views
            with torch.enable_grad():
                moved = trained | (self.network.shifted(shift) if shift else {})
                logits = {}
                for name, differentiated in views.items():
                    with torch.set_grad_enabled(differentiated):
                        logits[name] = self.network.forward(
                            "update", f"gradient_at {name}", [owner], self.images(name), params=moved, turn=turn
                        )
                values = (
                    soft_cross_entropy(logits["adv_logits"], self.known["target"])
                    if loss == "adv_ce"
                    else reduce(torch.add, self.terms(logits, self.stage.objective_terms, moved).values())
                )
                if select is not None:
                    judged = logits.get("adv_logits", next(iter(logits.values())))
                    values = values * self.contract.selection(owner, select(judged.detach(), self.known["batch"].y))
                total = values.sum() / self.shares.count
            scope = nothing_moves(self.network.model, "the backward", self.contract.values)
            with scope, by_autograd_alone(self.network.params, owner):
                gradients = torch.autograd.grad(total, [moved[name] for name in trained], allow_unused=True)
            return {
                name: torch.zeros_like(trained[name]) if value is None else value.to_dense()
                for name, value in zip(trained, gradients, strict=True)
            }

        return gradient_at

    def images(self, view: str) -> Tensor:
        chosen: Tensor = self.known["x_train"] if view.startswith("adv") else self.known["x_clean"]
        return chosen

    def terms(
        self, logits: Mapping[str, Tensor], names: Iterable[str], moved: Mapping[str, Tensor], minimised: bool = False
    ) -> dict[str, Tensor]:
        """Loss terms (B,) by name, the base loss first; their own views are at `moved`."""
        terms = {}
        by_name = {answer.plugin.name: answer for answer in self.stage.answers["extra_regularizer"]}
        for name in names:
            answer = self.stage.owner("base_loss") if name == "base_loss" else by_name[name]
            if answer is None:
                terms[name] = soft_cross_entropy(logits["adv_logits"], self.known["target"])
            else:
                with viewed(self.panel.state, self.network, moved, minimised, id(self.stage)):
                    values = self.panel.ask(answer, self.known, **logits)
                terms[name] = self.contract.term(answer.plugin.name, answer.hook, values)
        return terms

    def weigh(self, term: str, values: Tensor, logits: Mapping[str, Tensor]) -> Tensor:
        for answer in self.stage.weights_of(term):
            weight = self.panel.ask_of_all(answer, self.shares, {**self.known, **logits}, term=term)
            values = self.contract.weight(answer.plugin.name, self.shares.own(weight)) * values
        return values


class Objective(nn.Module):
    """mean(w_base * base_loss) + sum_k mean(w_k * regularizer_k), as one module around the model.

    Everything that a gradient flows through is inside, so that a wrapper of modules has one thing to wrap.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, update: Update, shift: Mapping[str, Tensor]) -> Outcome:
        """At theta + `shift` (v), divided by the samples of the batch."""
        moved = update.network.shifted(shift)
        logits: dict[str, Tensor] = {}
        for place, name in enumerate(update.stage.forwards):
            view, turn = update.stage.views[name], update.stage.forwards[:place].count(name)
            with torch.set_grad_enabled(view.gradient and not turn):
                output = update.network.forward(
                    "update",
                    name,
                    view.owners,
                    update.images(name),
                    params=None if name.endswith("_base") else moved,
                    moves_statistics=view.moves_statistics,
                    turn=turn,
                )
            logits.setdefault(name, output)
        terms = update.terms(logits, update.stage.terms, moved, minimised=True)
        weighted = {name: update.weigh(name, term, logits).sum() for name, term in terms.items()}
        return Outcome(
            loss=reduce(torch.add, weighted.values()) / update.shares.count,
            raw={name: term.detach().sum() for name, term in terms.items()},
            weighted={name: term.detach() for name, term in weighted.items()},
            logits={name: output.detach() for name, output in logits.items()},
        )
