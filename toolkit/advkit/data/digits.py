"""The UCI 8x8 handwritten digits, embedded in the package.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49; licence CC BY 4.0, https://creativecommons.org/licenses/by/4.0/.
These are the 1,797 images of its test part, as in scikit-learn; values are unchanged, the order is advkit's.

`digits.npz` holds `images` (1797, 8, 8) with values 0 to 16 and `labels` (1797,), the 1,258 training images
first. Image i of the source has the key blake2b("digits:i", 8 bytes). By rising key, the first 70 % of a
class (rounded) are for training, the others for testing; both splits are stored one of each class in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch

from .base import Dataset, DataSource, Splits

TRAINING_IMAGES = 1258


@final
class Digits(DataSource):
    """UCI handwritten digits, 8x8 gray: 1,258 training and 539 test images, no download."""

    name = "digits"
    reads = decodes = False
    defaults = {"attack.eps": 0.15}
    classes, shape, images = 10, (1, 8, 8), (1258, 539)

    def load(self, root: Path | None, limit: int | None) -> Splits:
        with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
            levels = torch.from_numpy(file["images"]).to(torch.int64)
            labels = torch.from_numpy(file["labels"]).to(torch.int64)
        images = ((levels * 255 + 8) // 16).to(torch.uint8).unsqueeze(1)  # round(level * 255 / 16)

        def part(chosen: slice) -> Dataset:
            kept = self.places(labels[chosen], limit)
            return Dataset(
                self.name,
                images[chosen][kept],
                labels[chosen][kept],
                tuple(str(digit) for digit in range(10)),
                kept,
            )

        return Splits(part(slice(TRAINING_IMAGES)), part(slice(TRAINING_IMAGES, None)), transform="none")
