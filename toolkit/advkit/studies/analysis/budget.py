"""The per-sample perturbation budgets of a run: CAT (Cheng et al., IJCAI 2022), Algorithm 1, as they came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import a_whole_number, checked
from ...config.resolve import Resolved
from ...data.base import Dataset
from ...errors import OptionError
from ...global_state import one_at_a_time
from ...plugin import CORE
from ...storage.run_folder import RunFolder
from ...training.feed import parted
from ...training.meter import quantiles
from .perturb import BATCH, asked, batches, caution, cross_entropies, still, tell_doubt


@dataclass(frozen=True, eq=False)
class SampleBudgets:
    """eps_i of the samples a run trained on, at one checkpoint, and their quantiles over the epochs."""

    state: str
    """The per-sample state that holds them, such as "cat-eps/eps"."""
    index: Tensor
    """(n,) int64: places in the training split; held-out samples have no budget."""
    eps: Tensor
    """(n,) float64, in the unit of attack.eps."""
    label: Tensor
    """(n,) int64."""
    loss: Tensor
    """(n,) float64: CE at x of the checkpoint's weights, which ranks samples of equal eps_i."""
    classes: tuple[str, ...]
    history: Sequence[Mapping[str, float]]
    """By epoch: `epoch`, `q00`, `q25`, `q50`, `q75`, `q100` at its end, `mean_radius` of its attacks."""
    norm: str
    """attack.norm of the run, "linf" or "l2": the unit of eps_i."""
    run_eps: float
    """attack.eps of the run."""
    eps_max: float | None
    """The cap of eps_i: the option eps_max of the plugin that owns the budgets, None where it has none."""
    largest_radius: float
    """The largest radius that the plugin lets any sample be attacked with; it can exceed `eps_max`."""

    def hardest(self, count: int) -> Tensor:
        """Positions in `index` of the samples with the smallest eps_i; of equal ones the largest loss comes first."""
        count = a_whole_number("count", count, 0, 2**31)
        by_loss = self.loss.argsort(descending=True, stable=True)
        return by_loss[self.eps[by_loss].argsort(stable=True)][:count]

    def by_class(self) -> list[dict[str, Any]]:
        """Mean eps_i and count of each class that has samples, the hardest first."""
        rows = [
            {"class": name, "n": int(own.sum()), "mean": float(self.eps[own].mean())}
            for number, name in enumerate(self.classes)
            if bool((own := self.label == number).any())
        ]
        return sorted(rows, key=lambda row: (row["mean"], row["class"]))

    def as_dict(self, samples: int = 16) -> dict[str, Any]:
        """The figures; `samples` is how many of the hardest are listed."""
        listed = self.hardest(samples)
        return {
            "n": len(self.eps),
            "mean": float(self.eps.mean()),
            "sd": float(self.eps.std(correction=0)),
            **quantiles(self.eps),
            "at_0": float((self.eps == 0).double().mean()),
            "at_q100": float((self.eps == self.eps.max()).double().mean()),
            "classes": self.by_class(),
            "hardest": [
                {
                    "index": int(self.index[i]),
                    "class": self.classes[int(self.label[i])],
                    "eps": float(self.eps[i]),
                    "loss": float(self.loss[i]),
                }
                for i in listed.tolist()
            ],
            "epochs": [dict(row) for row in self.history],
        }


def budget_state(resolved: Resolved, tensors: Mapping[str, Tensor]) -> str:
    """The per-sample state "PLUGIN/eps" of whoever owns `perturbation_budget`. Raises OptionError where none is."""
    owner = resolved.composition.company.owner("perturbation_budget")
    if owner == CORE:
        raise OptionError(
            "This run has no budgets per sample: none of its plugins sets any, so every eps_i is attack.eps = "
            f"{resolved.attack.eps:g}; analyze a run of cat-eps."
        )
    if f"samples/{owner}/eps" not in tensors or tensors[f"samples/{owner}/eps"].dim() != 1:
        raise OptionError(
            f"The plugin {owner} sets budgets per sample, but keeps them in no per-sample state called eps; "
            'claim them with run.sample_state("eps").'
        )
    return f"{owner}/eps"


@checked()
@one_at_a_time
def sample_budgets(
    folder: RunFolder,
    resolved: Resolved,
    train: Dataset,
    model: nn.Module,
    checkpoint: str = "last",
    batch_size: int = BATCH,
    tell: Callable[[str], None] = caution,
) -> SampleBudgets:
    """Of a run's folder; `model` has the weights of the same `checkpoint` ("last", "best").

    Samples that plugins added to the data are left out, as are those held out. Raises OptionError for a run without
    budgets per sample.
    """
    tensors, _ = folder.load(checkpoint)
    state = budget_state(resolved, tensors)
    eps_max = resolved.values().get(f"{state.partition('/')[0]}.eps_max")
    index, batch_size = asked(train, parted(resolved, len(train))[0], batch_size)
    losses = []
    with still(model, len(train.classes) or None) as forward, torch.no_grad():
        for x, y in batches(model, train, index, batch_size):
            losses.append(cross_entropies(forward(x), y).cpu())
    tell_doubt(model, train, index, batch_size, tell, follows=False)
    history = [
        {"epoch": row["epoch"], **row["state"][state], "mean_radius": row["mean_radius"]}
        for row in folder.history()
        if row.get("state", {}).get(state)
    ]
    if added := len(tensors[f"samples/{state}"]) - len(train):
        tell(
            f"Quantiles over the epochs are of {added:,} samples that plugins added, too; all else is of the "
            f"{len(index):,} of the training images"
        )
    return SampleBudgets(
        state=state,
        index=train.index[index],
        eps=tensors[f"samples/{state}"][index].double(),
        label=train.labels[index],
        loss=torch.cat(losses).nan_to_num(nan=inf),
        classes=train.classes,
        history=history,
        norm=resolved.attack.norm,
        run_eps=resolved.attack.eps,
        eps_max=float(eps_max) if isinstance(eps_max, (int, float)) else None,
        largest_radius=resolved.composition.company.largest_budget.attack,
    )
