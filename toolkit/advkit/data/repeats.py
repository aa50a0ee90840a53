"""Images that come more than once, byte for byte: in both splits, in one with two labels, among extra ones."""

from __future__ import annotations

import hashlib
from math import prod

import torch
from torch import Tensor

MOST = 1 << 29
"""Bytes of both splits; of more than these, a file that is mapped say, not every image is read before a run."""

ROWS = 256
"""Images that are in memory at once where they lie in a file."""


def repeats(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> str:
    """A sentence on what comes again among images (N, C, H, W) uint8 with labels (N,), "" where nothing does."""
    if train.numel() + test.numel() > MOST:
        return ""
    splits = {"training": (_digests(train), train_labels.tolist()), "test": (_digests(test), test_labels.tolist())}
    said = []
    for split, (digests, labels) in splits.items():
        first = dict(zip(reversed(digests), reversed(labels), strict=True))
        torn = {digest for digest, label in zip(digests, labels, strict=True) if first[digest] != label}
        if count := sum(digest in torn for digest in digests):
            said.append(f"{count} {split} images are duplicates of others with another label")
    known = set(splits["training"][0])
    if train is not test and (count := sum(digest in known for digest in splits["test"][0])):
        said.append(
            f"{count} of {len(test)} test images are duplicates of training images, so the accuracy on them is "
            "that of training"
        )
    return "; ".join(said)


def optimistic(split: str) -> str:
    """What follows where held-out images were trained on, and those of `split` choose."""
    if split == "test":
        return "figures on them are optimistic"
    return "validation is optimistic, and so is the choice of `best`"


def among_extra(
    extra: Tensor, train: Tensor, test: Tensor, held_out: Tensor, where: str, split: str, *, first: int = 0
) -> list[str]:
    """Sentences on images to test on, or held out, that are among `extra` from its place `first` on, which lie `where`.

    Images are (N, C, H, W) uint8; `held_out` (n,) are places in `train`, and a test set that is `train` is none. Those
    of `split`, "validation" or "test", choose. Where there are so many that not every image is read, it says that.
    """
    alone, count = test is not train, len(extra) - first
    judged = " and ".join(("test",) * alone + ("held-out",) * bool(len(held_out)))
    if judged and (count + alone * len(test) + len(held_out)) * prod(extra.shape[1:]) > MOST:
        return [
            f"{count:,} extra images are too many to look for the {judged} ones among them; if some are, accuracies on "
            "those are optimistic"
        ]
    known, said = set(_digests(extra, first)), []
    if alone and (count := sum(digest in known for digest in _digests(test))):
        said.append(
            f"{count} of {len(test)} test images are {where}, so the accuracy on them is that of training; leave them "
            "out of the extra ones"
        )
    if len(held_out) and (count := sum(digest in known for digest in _digests(train[held_out]))):
        said.append(
            f"{count} of {len(held_out)} held-out images are {where}: {optimistic(split)}; leave them out of the extra "
            "ones, or set validation.fraction=0"
        )
    return said


def _digests(images: Tensor, first: int = 0) -> list[bytes]:
    digests = []
    for start in range(first, len(images), ROWS):
        rows = torch.as_tensor(images[start : start + ROWS]).contiguous().numpy()
        digests += [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
    return digests
