"""IDBH: Li and Spratling: Data Augmentation Alone Can Improve Adversarial Training (ICLR 2023).

Images are whole numbers from 0 to 255 here, (B, C, H, W) of floats, and come out as those of PIL do, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from advkit import Draws, Plugin, PluginOptions, Real, hookimpl, option

TRIES = 10
"""Boxes that are drawn for an image to erase; the first that fits is taken, none where none does."""


Operations = Mapping[str, tuple[float, float, float]]
"""By name: probability, and from which to which strength."""


@dataclass(frozen=True)
class Variant:
    """What one variant of IDBH draws from."""

    operations: Operations
    crop: float
    """The most that is cropped, both axes together, as a share of the shorter side: 10 or 8 pixels of 32."""
    erases: float
    area: float
    """With which probability, and at most which share of an image."""


COLOURS = {"saturation": (0.1, 1.9), "brightness": (0.5, 1.9), "contrast": (0.5, 1.9), "sharpness": (0.1, 1.9)}
STRETCHED = {"autocontrast": (0.0, 0.0), "equalize": (0.0, 0.0)}
SLIGHT = COLOURS | STRETCHED | {"shear": (0.05, 0.15), "rotate": (1.0, 10.0)}
EVENLY = {name: (0.125, *strengths) for name, strengths in SLIGHT.items()}
RARER = {"contrast": 0.04, "autocontrast": 0.04, "shear": 0.3, "rotate": 0.3}
STRONG = SLIGHT | {"shear": (0.05, 0.35), "rotate": (1.0, 30.0)}
SHAPES = {name: (RARER.get(name, 0.08), *strengths) for name, strengths in STRONG.items()}
VARIANTS = {
    "weak": Variant(EVENLY, crop=10 / 32, erases=0.5, area=0.33),
    "strong": Variant(EVENLY, crop=10 / 32, erases=1.0, area=0.33),
    "svhn": Variant(SHAPES, crop=8 / 32, erases=1.0, area=0.5),
}


def blended(images: Tensor, degenerate: Tensor, factor: Tensor) -> Tensor:
    """From `degenerate` at a factor (B,) of 0 to the images at 1, and beyond: PIL's blend, in float32 and cut off."""
    one, other = degenerate.expand_as(images).float(), images.float()
    return (one + factor.float().view(-1, 1, 1, 1) * (other - one)).clamp(0, 255).floor().to(images.dtype)


def gray(images: Tensor) -> Tensor:
    """(B, 1, H, W): the luma of RGB, as PIL rounds it; of other channels their mean."""
    if images.shape[1] != 3:
        return (images.mean(dim=1, keepdim=True) + 0.5).floor()
    red, green, blue = (channel.double().unsqueeze(1) for channel in images.unbind(dim=1))
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor().to(images.dtype)


def mean_gray(images: Tensor) -> Tensor:
    return (gray(images).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor().to(images.dtype)


def blurred(images: Tensor) -> Tensor:
    """By (1 1 1; 1 5 1; 1 1 1) / 13; what lies at the border stays."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    smooth, total = images.clone(), 4 * images[:, :, 1:-1, 1:-1]
    for down in range(3):
        for across in range(3):
            total = total + images[:, :, down : height - 2 + down, across : width - 2 + across]
    smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) / 26).floor()
    return smooth


def autocontrast(images: Tensor) -> Tensor:
    """Each channel from 0 to 255."""
    wide = images.double()
    low, high = wide.amin(dim=(2, 3), keepdim=True), wide.amax(dim=(2, 3), keepdim=True)
    scale = torch.full_like(low, 255) / (high - low)  # 255 / tensor would multiply with a rounded reciprocal
    stretched = (wide * scale + -low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, wide).to(images.dtype)


def equalize(images: Tensor) -> Tensor:
    """Each channel's levels as evenly filled as PIL fills them."""
    flat = images.flatten(2).long()
    ranked, levels = flat.sort(dim=2).values, torch.arange(256, device=flat.device).expand(*flat.shape[:2], 256)
    below = torch.searchsorted(ranked, levels.contiguous())  # how many pixels are darker than each level
    step = below.gather(2, ranked[:, :, -1:]) // 255  # all but the brightest
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, flat), flat).view_as(images).to(images.dtype)


def resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """The nearest pixel at matrix (B, 2, 2) float64 times (x, y) about the centre, 0 outside: in PIL's fixed point."""
    height, width = images.shape[2:]
    centre = torch.tensor([0.5 * width, 0.5 * height], dtype=torch.float64, device=images.device)
    begin = centre - matrix @ centre + 0.5 * matrix.sum(dim=2)
    fixed, offset = ((value * 65536 + 0.5).floor().long() for value in (matrix, begin))
    down, across = (torch.arange(size, device=images.device) for size in (height, width))
    x, y = (
        (offset[:, i, None, None] + fixed[:, i, 0, None, None] * across + fixed[:, i, 1, None, None] * down[:, None])
        >> 16
        for i in (0, 1)
    )
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return picked(images, y.clamp(0, height - 1), x.clamp(0, width - 1), inside)


def shear(images: Tensor, slope: Tensor, upright: Tensor) -> Tensor:
    """By `slope` (B,) radians along x, or along y where `upright`."""
    matrix = torch.eye(2, dtype=torch.float64, device=images.device).repeat(len(slope), 1, 1)
    matrix[:, 0, 1], matrix[:, 1, 0] = slope.tan() * ~upright, slope.tan() * upright
    return resampled(images, matrix)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise."""
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return resampled(images, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


def picked(images: Tensor, rows: Tensor, columns: Tensor, inside: Tensor) -> Tensor:
    """The pixel at `rows` and `columns` (B, H, W) for each place, 0 where not `inside`."""
    flat = (rows * images.shape[3] + columns).flatten(1)
    found = images.flatten(2).gather(2, flat.unsqueeze(1).expand(-1, images.shape[1], -1))
    return found.view_as(images) * inside.unsqueeze(1)


def crop_shift(images: Tensor, mirrored: Tensor, crop: Tensor, top: Tensor, shift: Tensor) -> Tensor:
    """Mirrored where (B,) says so, cut by `crop` pixels from `top` on and put back `shift` off; all (B, 2), x and y."""
    places, inside = [], []
    for axis, size in enumerate((images.shape[3], images.shape[2])):
        cut = crop[:, axis, None]
        place = torch.arange(size, device=images.device) + shift[:, axis, None] - cut
        inside.append((place >= 0) & (place < size - cut))
        places.append((place + top[:, axis, None]).clamp(0, size - 1))
    columns = torch.where(mirrored[:, None], images.shape[3] - 1 - places[0], places[0])
    shape = (len(images), *images.shape[2:])
    rows, columns = places[1].unsqueeze(2).expand(shape), columns.unsqueeze(1).expand(shape)
    return picked(images, rows, columns, inside[1].unsqueeze(2) & inside[0].unsqueeze(1))


def erased(images: Tensor, numbers: Tensor, area: float) -> Tensor:
    """A box of 0.02 to `area` of the image is black, its sides 0.3 to 3.3 of each other; `numbers` (B, TRIES, 4)."""
    height, width = images.shape[2:]
    share, ratio, down, across = numbers.unbind(dim=2)
    size, aspect = height * width * (0.02 + (area - 0.02) * share), (log(0.3) + (log(3.3) - log(0.3)) * ratio).exp()
    tall, wide = (size * aspect).sqrt().round(), (size / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.byte().argmax(dim=1, keepdim=True)
    y, x = (down * (height - tall + 1)).floor(), (across * (width - wide + 1)).floor()
    y, x, tall, wide = (value.gather(1, first).unsqueeze(2) for value in (y, x, tall, wide))
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    box = (rows >= y) & (rows < y + tall) & (columns >= x) & (columns < x + wide)
    return images.masked_fill((box & fits.any(dim=1).view(-1, 1, 1)).unsqueeze(1), 0)


DEGENERATE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "saturation": gray,
    "brightness": torch.zeros_like,
    "contrast": mean_gray,
    "sharpness": blurred,
}
"""What a colour is at strength 0."""


def recoloured(images: Tensor, numbers: Tensor, operations: Operations) -> Tensor:
    """Each image by one operation: `numbers` (B, 4) choose it, its strength, its sign and its axis."""
    chance, sizes, sign, axis = numbers.unbind(dim=1)
    shares = torch.tensor([share for share, _, _ in operations.values()], dtype=numbers.dtype, device=numbers.device)
    chosen = torch.searchsorted(shares.cumsum(0)[:-1].contiguous(), chance.contiguous())
    changed, signs = images, torch.where(sign < 0.5, -1.0, 1.0)
    for place, (name, (_, low, high)) in enumerate(operations.items()):
        strength = low + (high - low) * sizes
        if name in DEGENERATE:
            after = blended(images, DEGENERATE[name](images), strength)
        elif name == "shear":
            after = shear(images, signs * strength, axis < 0.5)
        elif name == "rotate":
            after = rotate(images, signs * (low + (sizes * (high - low + 1)).floor()))
        else:
            after = autocontrast(images) if name == "autocontrast" else equalize(images)
        changed = torch.where((chosen == place).view(-1, 1, 1, 1), after, changed)
    return changed


def augmented(images: Tensor, draws: Draws, variant: Variant) -> Tensor:
    """Mirrored or not, cropped and shifted, recoloured, partly erased: in this order."""
    numbers = draws.uniform(12, dtype=torch.float64)
    most = int(variant.crop * min(images.shape[2:]))
    strength = (numbers[:, 1] * (most + 1)).floor()
    across = (numbers[:, 2] * (strength + 1)).floor()
    crop = torch.stack([across, strength - across], dim=1)
    top, shift = ((numbers[:, i : i + 2] * (crop + 1)).floor().long() for i in (3, 5))
    moved = crop_shift(images, numbers[:, 0] < 0.5, crop.long(), top, shift)
    coloured = recoloured(moved, numbers[:, 7:11], variant.operations)
    holed = erased(coloured, draws.uniform(TRIES, 4, draw=1, dtype=torch.float64), variant.area)
    return torch.where((numbers[:, 11] < variant.erases).view(-1, 1, 1, 1), holed, coloured)


class Idbh(Plugin):
    """Mirrors, crops and shifts, changes the colours or the shape of each image by chance, and erases a box (IDBH)."""

    name = "idbh"

    class Options(PluginOptions):
        variant: Literal["weak", "strong", "svhn"] = option(
            "weak", help="weak for wide nets and ISEAT, strong for PRN-18, or that for SVHN"
        )
        share: Real = option(
            1.0, ge=0, le=1, help="share of the images that are augmented at a visit; 0: data.transform"
        )

    options: Options

    @property
    def by_sample(self) -> bool:
        return True

    def active(self, hook: str, epoch: int) -> bool:
        return self.options.share > 0

    @hookimpl
    def train_transform(self, x: Tensor, draws: Draws) -> Tensor:
        whole = torch.full((), 255, dtype=x.dtype, device=x.device)  # CUDA rounds its reciprocal, and not that of this
        after = augmented((x * whole).round(), draws, VARIANTS[self.options.variant]) / whole
        taken = draws.uniform(1, draw=2) < self.options.share
        return torch.where(taken.view(-1, 1, 1, 1), after, x)
