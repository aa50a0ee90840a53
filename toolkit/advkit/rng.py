"""Addressed randomness: every random number is a pure function of its address.

The address is (run seed, owner, purpose, phase, epoch, sample id, draw, occurrence). The first five make a
key (`derive_key`), the rest a Philox4x32-10 counter (`Draws`). There is no generator object and no state to
save; the global generators of torch, numpy and Python are neither read nor changed.
"""

from __future__ import annotations

import hashlib
import math
import operator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii

import torch
from torch import Tensor

from advkit.errors import OptionError

Key = tuple[int, int]
"""A Philox key: two 32-bit words."""

_FORMAT = "advkit-rng-1"  # part of every address: a change of the encoding or the generator changes this name
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_CHUNK = 1 << 16  # Philox blocks per CPU thread and pass: 512 KiB a word, fastest of 2**14 .. 2**18


def derive_key(seed: int, owner: str, purpose: str, phase: str = "", epoch: int = 0) -> Key:
    """The key of one stream of a run, e.g. `derive_key(0, "pgd", "start", "train", epoch=3)`.

    Raises OptionError unless `seed` and `epoch` are in [0, 2**63).
    """
    digest = _digest("key", seed, owner, purpose, phase, epoch)
    return digest & _WORD, digest >> 32


def derive_seed(seed: int, owner: str, purpose: str, phase: str = "", epoch: int = 0) -> int:
    """A seed in [0, 2**63) for code that draws from a generator of its own, inside `torch.random.fork_rng`.

    Unrelated to `derive_key` of the same address. All bits are good, also the low 32 alone: torch's CPU
    generator uses no others. Raises OptionError unless `seed` and `epoch` are in [0, 2**63).
    """
    return _digest("seed", seed, owner, purpose, phase, epoch) >> 1


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four new int64 tensors of the counter's broadcast shape.

    The counter's words are int64 tensors holding values in [0, 2**32), and so are the results.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around and shifts drag the sign along, hence the masks after the shifts. The low
        # words are masked at the end only: until then they are xor-ed, never multiplied.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_WORD)
        c2 = ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_WORD)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws for one batch: row i of every result depends on `index[i]` and `occurrence[i]`, on nothing else.

    The elements of a row are numbered in row-major order (NCHW for images); element e is made of word e % 4
    of block e // 4 (`normal`: of the two words of its pair). A longer shape therefore extends a shorter one.
    `draw`, in [0, 2**16), numbers independent results of one key. All methods read the same words: results
    with the same `draw` are dependent, whatever their distributions.

    Values are computed on `index.device`. dtype is float32 or float64 and does not change the draw: logs,
    roots and angles are float64 in both cases, so that float32 results do not hang on a device's last bit.
    """

    key: Key
    """From `derive_key`."""
    index: Tensor
    """(B,) int64: sample ids."""
    occurrence: Tensor | None = None
    """(B,) int64 in [0, 2**16): how often this id came before in the epoch. None: never."""

    def __post_init__(self) -> None:
        for name, ids in (("index", self.index), ("occurrence", self.occurrence)):
            if ids is not None and (ids.dtype != torch.int64 or ids.shape != (self.index.numel(),)):
                raise OptionError(
                    f"Draws: {name} is a {ids.dtype} tensor of shape {tuple(ids.shape)}; "
                    "pass one int64 number per sample, shape (B,)."
                )

    def bits(self, count: int, *, draw: int = 0) -> Tensor:
        """(B, count) int64 in [0, 2**32): the raw words."""
        return self._shaped(self._words(count, draw, torch.int64, shift=0), (count,))

    def uniform(
        self,
        *shape: int,
        low: float = 0.0,
        high: float = 1.0,
        draw: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B, *shape): low + (high - low) * u with u = (k + 1/2) * 2**-23, k uniform on [0, 2**23).

        u is exact in float32 and never 0 or 1; the affine map is rounded in `dtype`.
        """
        return self._shaped(self._unit(math.prod(shape), draw, _real(dtype), high - low).add_(low), shape)

    def normal(self, *shape: int, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape): standard normal by Box-Muller, at most sqrt(48 ln 2) = 5.77 in size."""
        dtype = _real(dtype)
        u = self._unit(math.prod(shape), draw)
        radius = u[:, 0::2].log().mul_(-2).sqrt_()
        angle = u[:, 1::2] * (2 * math.pi)
        out = torch.empty_like(u, dtype=dtype)
        torch.mul(radius, angle.cos(), out=out[:, 0::2])
        torch.mul(radius, angle.sin_(), out=out[:, 1::2])
        return self._shaped(out, shape)

    def exponential(self, *shape: int, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape): standard exponential, -log u > 0."""
        dtype = _real(dtype)
        return self._shaped(self._unit(math.prod(shape), draw).log_().neg_().to(dtype), shape)

    def dirichlet(self, classes: int, *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, classes): uniform on the simplex, Dirichlet(1, ..., 1), as normalised exponentials."""
        weight = self.exponential(classes, draw=draw, dtype=torch.float64)
        return (weight / weight.sum(1, keepdim=True)).to(_real(dtype))

    def integers(self, high: int, *shape: int, draw: int = 0) -> Tensor:
        """(B, *shape) int64 in [0, high), 1 <= high <= 2**32; probabilities are 1 / high within 2**-32."""
        if not 1 <= high <= 1 << 32:
            raise OptionError(f"Draws.integers: high is {high}; pass a number from 1 to 2**32.")
        words = self._words(math.prod(shape), draw, torch.int64, shift=0)
        return self._shaped(words.mul_(high).bitwise_right_shift_(32).bitwise_and_(_WORD), shape)

    def _unit(self, count: int, draw: int, dtype: torch.dtype = torch.float64, span: float = 1.0) -> Tensor:
        """span * (k + 1/2) * 2**-23 for whole blocks of elements, k the top 23 bits of a word."""
        return self._words(count, draw, dtype, shift=9).add_(0.5).mul_(span * 2.0**-23)

    def _words(self, count: int, draw: int, dtype: torch.dtype, shift: int) -> Tensor:
        """(B, at least count) words >> shift as `dtype`: whole blocks, at least `count` elements a row."""
        index = self.index[:, None]
        tag = torch.full_like(index, _natural("draw", draw, 16))
        if self.occurrence is not None:
            tag |= (self.occurrence[:, None] & 0xFFFF) << 16
        low, high = index & _WORD, (index >> 32) & _WORD
        block = torch.arange((count + 3) // 4, dtype=torch.int64, device=index.device)
        out = torch.empty(len(index), len(block), 4, dtype=dtype, device=index.device)
        # On a CPU the rounds run over a few rows at a time, so that their operands stay in the cache.
        on_cpu = index.device.type == "cpu"
        step = max(1, _CHUNK * torch.get_num_threads() // max(1, len(block)) if on_cpu else len(index))
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            for position, word in enumerate(philox4x32((block, low[rows], high[rows], tag[rows]), self.key)):
                out[rows, :, position] = word.bitwise_right_shift_(shift)
        return out.flatten(1)

    def _shaped(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return rows[:, : math.prod(shape)].reshape(len(self.index), *shape).contiguous()


def permutation(key: Key, n: int, device: torch.device | str = "cpu") -> Tensor:
    """(n,) int64: the ids 0 .. n-1, sorted by a 64-bit hash of the id, ties by id. O(n) memory.

    The hash is the first two words of `Draws(key, id)`, so give the order of samples a key of its own.
    """
    words = Draws(key, torch.arange(n, dtype=torch.int64, device=device)).bits(2)
    return ((words[:, 0] << 32) | words[:, 1]).argsort(stable=True)


def _digest(kind: str, seed: int, owner: str, purpose: str, phase: str, epoch: int) -> int:
    """64 bits of the address. A JSON list, written by hand for speed, keeps ("a", "bc") and ("ab", "c") apart."""
    seed, epoch = _natural("seed", seed, 63), _natural("epoch", epoch, 63)
    try:
        form, kind, owner, purpose, phase = map(encode_basestring_ascii, (_FORMAT, kind, owner, purpose, phase))
    except TypeError:
        names = f"{owner!r}, {purpose!r}, {phase!r}"
        raise OptionError(
            f"Draws are addressed by texts, not by ({names}); pass owner, purpose and phase as str."
        ) from None
    address = f"[{form}, {kind}, {seed}, {owner}, {purpose}, {phase}, {epoch}]".encode("ascii")
    return int.from_bytes(hashlib.blake2b(address, digest_size=8).digest(), "little")


def _natural(name: str, value: int, bits: int) -> int:
    """`value` as an int (numpy's integers count too), or OptionError unless it is in [0, 2**bits)."""
    try:
        number = int(operator.index(value))
    except TypeError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise OptionError(f"The {name} is {value!r}; pass an integer from 0 to 2**{bits} - 1.")
    return number


def _real(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise OptionError(f"Draws are float32 or float64, not {dtype}; draw float32 and cast the result.")
    return dtype
