"""IDBH against PIL, image by image and to the last bit: every operation, and the whole in its order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from methods import Method, run
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from advkit.rng import Draws, derive_key
from advkit_plugins import idbh

IMAGES, SEED = 24, 3


def given(*others, **values):
    return run("idbh", *others, options={"idbh": values})


METHODS = {
    "idbh": Method(
        neutral=[(given(*others, share=0), run(*others)) for others in ((), ("trades",), ("lsiw",))],
        changes=[(given(), run()), (given(), given(variant="svhn")), (given(variant="strong"), given(share=0.5))],
        moving={"idbh": {"variant": "strong", "share": 0.9}},
    )
}


def levels(channels: int = 3, side: int = 32) -> Tensor:
    """Whole numbers from 0 to 255: noise, smooth, dark, flat and two-valued images."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.randint(0, 256, (IMAGES, channels, side, side), generator=generator)
    smooth = torch.nn.functional.interpolate(noise[:, :, :4, :4].float(), (side, side), mode="bilinear").long()
    images = torch.where((torch.arange(IMAGES) % 3 == 0).view(-1, 1, 1, 1), noise, smooth)
    images[1], images[2] = images[1] // 5 + 90, 77
    images[4] = (images[4] > 128) * 255
    images[5, :, 0, 0] = 3
    return images.float()


def of_pil(images: list[Image.Image], like: Tensor) -> Tensor:
    arrays = [np.asarray(image).reshape(*like.shape[2:], like.shape[1]) for image in images]
    return torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy()).to(like.dtype)


def pil(image: Tensor) -> Image.Image:
    array = image.numpy().astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def affine(image: Image.Image, a: float, b: float, d: float, e: float) -> Image.Image:
    """torchvision's affine of a PIL image: about the centre, nearest pixel, black outside."""
    x, y = image.width * 0.5, image.height * 0.5
    matrix = (a, b, x - a * x - b * y, d, e, y - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


ENHANCE = {
    "saturation": ImageEnhance.Color,
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", sorted(ENHANCE))
def test_colours_are_those_of_pil(name: str, channels: int) -> None:
    images, factors = levels(channels), torch.linspace(0, 2, IMAGES, dtype=torch.float64)
    expected = [ENHANCE[name](pil(x)).enhance(float(f)) for x, f in zip(images, factors, strict=True)]
    measured = idbh.blended(images, idbh.DEGENERATE[name](images), factors)
    assert torch.equal(measured, of_pil(expected, images))
    assert not torch.equal(measured, images) or (name, channels) == ("saturation", 1)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_histograms_are_those_of_pil(name: str, channels: int) -> None:
    for side in (8, 23, 32, 64):
        images = levels(channels, side)
        expected = of_pil([getattr(ImageOps, name)(pil(x)) for x in images], images)
        assert torch.equal(getattr(idbh, name)(images), expected)
        assert not torch.equal(expected, images) or side == 8, "which has too few pixels to equalize"


@pytest.mark.parametrize("side", [32, 23])
def test_rotations_are_those_of_pil(side: int) -> None:
    images, degrees = levels(side=side), torch.arange(IMAGES).double() * 1.25 - 15
    expected = [pil(x).rotate(float(d), Image.Resampling.NEAREST) for x, d in zip(images, degrees, strict=True)]
    assert torch.equal(idbh.rotate(images, degrees), of_pil(expected, images))


@pytest.mark.parametrize("side", [32, 23])
def test_shears_are_those_of_pil(side: int) -> None:
    images, slopes = levels(side=side), torch.linspace(-0.35, 0.35, IMAGES, dtype=torch.float64)
    upright = torch.arange(IMAGES) % 2 == 0
    expected = []
    for x, slope, up in zip(images, slopes.tolist(), upright.tolist(), strict=True):
        tangent = math.tan(slope)
        expected.append(affine(pil(x), 1, 0 if up else tangent, tangent if up else 0, 1))
    assert torch.equal(idbh.shear(images, slopes, upright), of_pil(expected, images))


def naive(x: Tensor, numbers: list[float], boxes: list[list[float]], variant: idbh.Variant) -> np.ndarray:
    """One image through the pipeline: (H, W, C) uint8."""
    image, side = pil(x), min(x.shape[1:])
    if numbers[0] < 0.5:
        image = ImageOps.mirror(image)
    strength = int(numbers[1] * (int(variant.crop * side) + 1))
    across = int(numbers[2] * (strength + 1))
    crop = (across, strength - across)
    top, shift = ([int(numbers[i + axis] * (crop[axis] + 1)) for axis in (0, 1)] for i in (3, 5))
    kept = image.crop((top[0], top[1], top[0] + image.width - crop[0], top[1] + image.height - crop[1]))
    moved = Image.new(image.mode, image.size)
    moved.paste(kept, (crop[0] - shift[0], crop[1] - shift[1]))
    after = coloured(moved, numbers[7:11], variant)
    array = np.asarray(after).copy()
    if numbers[11] < variant.erases:
        height, width = array.shape[:2]
        for share, ratio, down, left in boxes:
            area = height * width * (0.02 + (variant.area - 0.02) * share)
            aspect = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * ratio)
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                i, j = int(down * (height - tall + 1)), int(left * (width - wide + 1))
                array[i : i + tall, j : j + wide] = 0
                break
    return array


def coloured(image: Image.Image, numbers: list[float], variant: idbh.Variant) -> Image.Image:
    chance, size, sign, axis = numbers
    ends = np.cumsum([share for share, _, _ in variant.operations.values()])
    name, (_, low, high) = [*variant.operations.items()][min(int((ends < chance).sum()), len(ends) - 1)]
    turn = -1 if sign < 0.5 else 1
    if name in ENHANCE:
        return ENHANCE[name](image).enhance(low + (high - low) * size)
    if name == "rotate":
        return image.rotate(turn * (low + int(size * (high - low + 1))), Image.Resampling.NEAREST)
    if name == "shear":
        tangent = math.tan(turn * (low + (high - low) * size))
        return affine(image, 1, *((0, tangent) if axis < 0.5 else (tangent, 0)), 1)
    return getattr(ImageOps, name)(image)


def draws(epoch: int = 0) -> Draws:
    return Draws(derive_key(SEED, "core", "transform", "train", epoch), torch.arange(100, 100 + IMAGES))


@pytest.mark.parametrize("variant", sorted(idbh.VARIANTS))
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_the_whole_is_that_of_pil(variant: str, channels: int, side: int) -> None:
    images, kind = levels(channels, side), idbh.VARIANTS[variant]
    for epoch in range(4):
        numbers = draws(epoch).uniform(12, dtype=torch.float64).tolist()
        boxes = draws(epoch).uniform(idbh.TRIES, 4, draw=1, dtype=torch.float64).tolist()
        expected = [naive(x, n, b, kind) for x, n, b in zip(images, numbers, boxes, strict=True)]
        measured = idbh.augmented(images, draws(epoch), kind)
        assert torch.equal(measured, of_pil([Image.fromarray(array) for array in expected], images))


def test_an_order_changed_is_told_apart() -> None:
    images, kind = levels(), idbh.VARIANTS["strong"]
    other = idbh.Variant(dict(reversed(kind.operations.items())), kind.crop, kind.erases, kind.area)
    assert not torch.equal(idbh.augmented(images, draws(), kind), idbh.augmented(images, draws(), other))


def plugin(**options) -> idbh.Idbh:
    return idbh.Idbh(idbh.Idbh.Options(**options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_come_out_as_they_would_be_read(dtype: torch.dtype) -> None:
    """Bytes divided by 255 and nothing else, so that a image that no operation changes keeps its bits."""
    x = levels().to(dtype) / 255
    after = plugin(variant="strong").train_transform(x, draws())
    assert after.dtype == dtype and torch.equal((after * 255).round() / torch.tensor(255, dtype=dtype), after)
    assert torch.equal(plugin(share=0.0).train_transform(x, draws()), x)
    half = plugin(share=0.5).train_transform(x, draws())
    same = (half == x).flatten(1).all(1)
    assert 0 < int(same.sum()) < IMAGES and torch.equal(half[~same], plugin().train_transform(x, draws())[~same])


def test_an_image_is_augmented_by_its_own_draws() -> None:
    x, rows = levels() / 255, torch.tensor([5, 17, 2])
    own = Draws(draws().key, draws().index[rows])
    assert torch.equal(plugin().train_transform(x[rows], own), plugin().train_transform(x, draws())[rows])


@pytest.mark.parametrize(("variant", "most"), [("weak", 10), ("strong", 10), ("svhn", 8)])
def test_the_tables_are_those_of_the_paper(variant: str, most: int) -> None:
    kind = idbh.VARIANTS[variant]
    assert sum(share for share, _, _ in kind.operations.values()) == pytest.approx(1)
    assert int(kind.crop * 32) == most
    ids = Draws(derive_key(SEED, "core", "transform", "train", 0), torch.arange(20_000))
    numbers = ids.uniform(12, dtype=torch.float64)
    strengths = (numbers[:, 1] * (most + 1)).floor().unique()
    assert strengths.tolist() == list(range(most + 1))


def test_an_image_of_one_pixel_stays_an_image() -> None:
    for shape in ((IMAGES, 2, 1, 1), (IMAGES, 5, 2, 7)):
        after = plugin(variant="svhn").train_transform(torch.full(shape, 0.5), draws())
        assert after.shape == shape and ((after >= 0) & (after <= 1)).all()
