"""Images that a data set has more than once, byte for byte: in both splits, or in one of them with two labels."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

MOST = 1 << 29
"""Bytes of both splits; of more than these, a file that is mapped say, not every image is read before a run."""


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


def _digests(images: Tensor) -> list[bytes]:
    rows = torch.as_tensor(images[:]).contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
