"""Extra images in every batch: robust self-training (Carmon et al.: Unlabeled Data Improves Adversarial Robustness,
NeurIPS 2019) with pseudo-labels, and generated images (Gowal et al. 2021, Wang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import torch
from torch import Tensor

from advkit import (
    Company,
    DataError,
    Dataset,
    Draws,
    OptionError,
    Place,
    Plugin,
    PluginOptions,
    Real,
    ResumeMismatch,
    Run,
    hookimpl,
    mapped_images,
    option,
)


def shuffled(draws: Draws, draw: int = 0) -> Tensor:
    """Places of the rows of `draws`, (n,) int64, in random order."""
    words = draws.bits(2, draw=draw)
    return ((words[:, 0] << 32) | words[:, 1]).argsort(stable=True)


def passes(draws: Draws, size: int, batches: int) -> Tensor:
    """(batches, size) places below n, the rows of `draws`: passes over all in random orders, cut into batches."""
    whole = len(draws.index) // size
    orders = [shuffled(draws, number)[: whole * size].view(whole, size) for number in range(ceil(batches / whole))]
    return torch.cat(orders)[:batches]


def distinct(draws: Draws, count: int, below: int) -> Tensor:
    """(rows of `draws`, count) numbers below `below`, uniform, no two of a row the same."""
    drawn = draws.integers(below, count)
    for draw in range(1, 1 << 16):
        ranked, order = drawn.sort(dim=1, stable=True)
        again = torch.zeros_like(drawn, dtype=torch.bool)
        again.scatter_(1, order[:, 1:], ranked[:, 1:] == ranked[:, :-1])
        if not bool(again.any()):
            break
        drawn = torch.where(again, draws.integers(below, count, draw=draw), drawn)
    return drawn


class ExtraData(Plugin):
    """Fills a share of every batch with extra images, generated or pseudo-labelled (RST; Gowal et al. 2021)."""

    name = "extra-data"

    class Options(PluginOptions):
        root: Place = option("", help="folder of the extra images, made by `advkit data prepare mapped`")
        share: Real = option(
            0.0, ge=0, le=1, help="share of every batch that is extra: 0.5 in RST, 0.7 to 0.8 in DM; 0: none"
        )

    options: Options
    first = count = 0
    """Where the extra images begin, and how many there are."""
    fingerprint = "00" * 32

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.share > 0

    def join(self, company: Company) -> list[str]:
        share = self.options.share
        if not share:
            return ["extra-data.share is 0, so nothing is added; set it and extra-data.root"]
        cautions = []
        if not self.options.root:
            cautions.append(
                "extra-data.root is not set, without which a run is refused; set it to a folder of mapped images"
            )
        if (owner := company.owner("perturbation_budget")) != "core":
            cautions.append(f"{owner} keeps a budget a sample, and an extra image comes again only after many epochs")
        return cautions

    @hookimpl
    def train_dataset(self, dataset: Dataset) -> Dataset:
        if not self.options.share:
            return dataset
        if not self.options.root:
            raise OptionError(
                "extra-data reads a folder of mapped images; make one with `advkit data prepare mapped --from PATH "
                "--data-root DIR`, and set extra-data.root=DIR."
            )
        extra = mapped_images(self.options.root)
        if extra.shape != dataset.shape:
            raise DataError(
                f"The extra images in {self.options.root} are {extra.shape}, those of {dataset.name} {dataset.shape}; "
                "give extra images of that size."
            )
        fit = len(extra.classes) <= len(dataset.classes) if extra.counted else extra.classes == dataset.classes
        if not fit and len(extra.classes) == len(dataset.classes):
            others = [
                f"{one} (here {own})" for one, own in zip(extra.classes, dataset.classes, strict=True) if one != own
            ]
            more = f" and {len(others) - 10} more" if len(others) > 10 else ""
            raise DataError(
                f"The extra images in {self.options.root} have other classes than {dataset.name}, or in another order: "
                f"{', '.join(others[:10])}{more}; give extra images of the same classes, in that order."
            )
        if not fit:
            raise DataError(
                f"The extra images in {self.options.root} have {len(extra.classes)} classes, {dataset.name} "
                f"{len(dataset.classes)}; give extra images of the same classes."
            )
        self.first, self.count, self.fingerprint = len(dataset), len(extra), extra.fingerprint()
        return dataset.joined(extra)

    @hookimpl
    def setup(self, run: Run) -> None:
        if self.options.share:
            self.began_with = run.tensor_state("fingerprint", torch.tensor([*bytes.fromhex(self.fingerprint)]))

    @hookimpl
    def train_sampler(self, indices: Tensor, batch_size: int, epoch: int, run: Run) -> Sequence[Tensor]:
        if bytes(self.began_with.tolist()).hex() != self.fingerprint:
            raise ResumeMismatch(
                f"The extra images in {self.options.root} are not those that the run began with; put those back."
            )
        own = indices[(indices < self.first) | (indices >= self.first + self.count)]
        extras = floor(self.options.share * batch_size + 1e-9)
        size = min(batch_size - extras, len(own))
        if not extras or 2 * extras > self.count:
            raise OptionError(
                f"extra-data.share = {self.options.share:g} of {batch_size} images are {extras} of {self.count} extra "
                "ones; at least one and at most half of them can be in a batch."
            )
        batches = ceil(len(own) / batch_size)
        steps = torch.arange(batches)
        added = self.first + distinct(run.draws("extra", steps), extras, self.count)
        if size:
            added = torch.cat([own[passes(run.draws("order", own), size, batches)], added], dim=1)
        # A batch may be cut into parts, which are to be mixed as the whole is.
        mixed = run.draws("places", steps).uniform(added.shape[1]).argsort(dim=1, stable=True)
        return list(added.gather(1, mixed))
