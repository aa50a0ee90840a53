"""Addressed randomness against a naive Philox in plain Python, written from the paper."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st
from torch import Tensor

from advkit import rng
from advkit.errors import OptionError
from advkit.rng import Draws, Key, derive_key, derive_seed, permutation, philox4x32

KEY: Key = (0xA4093822, 0x299F31D0)
FLOATS = (torch.float32, torch.float64)

words32 = st.integers(0, 2**32 - 1)
keys = st.tuples(words32, words32)
ids = st.integers(0, 2**63 - 1) | st.integers(0, 2**16)
naturals16 = st.integers(0, 2**16 - 1)
light = settings(deadline=None, max_examples=50)


# --- the reference --------------------------------------------------------------------------------


def naive_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in unbounded integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def naive_bits(key: Key, sample: int, count: int, draw: int = 0, occurrence: int = 0) -> list[int]:
    counter = (sample % 2**32, sample // 2**32, draw + 2**16 * occurrence)
    blocks = [naive_philox((block, *counter), key) for block in range((count + 3) // 4)]
    return [word for block in blocks for word in block][:count]


def naive_uniform(bits: list[int]) -> list[float]:
    return [(word // 2**9 + 0.5) / 2**23 for word in bits]


def naive_exponential(bits: list[int]) -> list[float]:
    return [-math.log(u) for u in naive_uniform(bits)]


def naive_normal(bits: list[int]) -> list[float]:
    """Box-Muller on an even number of words."""
    u = naive_uniform(bits)
    pairs = [(math.sqrt(-2 * math.log(a)), 2 * math.pi * b) for a, b in zip(u[::2], u[1::2], strict=True)]
    return [r * f(angle) for r, angle in pairs for f in (math.cos, math.sin)]


def column(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def close(got: Tensor, expected: list[list[float]]) -> bool:
    return torch.allclose(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


# --- Philox ---------------------------------------------------------------------------------------

KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, "philox4x32 10"
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    c, k, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    assert list(naive_philox(tuple(c), (k[0], k[1]))) == expected, "the reference itself"
    c0, c1, c2, c3 = (column([word]) for word in c)
    got = philox4x32((c0, c1, c2, c3), (k[0], k[1]))
    assert [int(word) for word in got] == expected


@light
@given(st.lists(st.tuples(words32, words32, words32, words32), min_size=1, max_size=5), keys)
def test_philox_agrees_with_the_reference(counters: list[tuple[int, ...]], key: Key) -> None:
    columns = torch.tensor(counters)
    kept = columns.clone()
    got = philox4x32((columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3]), key)
    assert [tuple(row) for row in torch.stack(got, 1).tolist()] == [naive_philox(c, key) for c in counters]
    assert torch.equal(columns, kept), "arguments are not written to"


def test_philox_broadcasts() -> None:
    block, sample = torch.arange(3), column([5, 2**32 - 1])[:, None]
    zero = column([0])
    got = torch.stack(philox4x32((block, sample, zero, zero), KEY), -1)
    expected = [[naive_philox((b, s, 0, 0), KEY) for b in range(3)] for s in (5, 2**32 - 1)]
    assert torch.equal(got, torch.tensor(expected))


# --- keys -----------------------------------------------------------------------------------------

Address = tuple[int, str, str, str, int]
addresses = st.tuples(ids, st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.integers(0, 999))


@light
@given(addresses, addresses)
def test_different_addresses_have_different_keys_and_seeds(a: Address, b: Address) -> None:
    assert derive_key(*a) == derive_key(*a)
    assert derive_seed(*a) == derive_seed(*a)
    assume(a != b)
    assert derive_key(*a) != derive_key(*b)
    assert derive_seed(*a) != derive_seed(*b)


@light
@given(st.text(min_size=1, max_size=8), st.data())
def test_the_border_between_names_counts(text: str, data: st.DataObject) -> None:
    cuts = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted)
    (i, j), (k, m) = data.draw(cuts), data.draw(cuts)
    assume((i, j) != (k, m))
    assert derive_key(0, text[:i], text[i:j], text[j:]) != derive_key(0, text[:k], text[k:m], text[m:])


def test_names_cannot_be_written_to_look_like_a_border() -> None:
    assert derive_key(0, "a", "bc") != derive_key(0, "ab", "c")
    assert derive_key(0, 'a", "b', "c") != derive_key(0, "a", 'b", "c')
    assert derive_key(1, "", "", "", 0) != derive_key(0, "", "", "", 1)


@light
@given(addresses)
@example((7, "cat-eps", "start", "train", 3))
def test_key_and_seed_are_the_documented_hashes(address: Address) -> None:
    def digest(kind: str) -> bytes:
        written = json.dumps(["advkit-rng-1", kind, *address]).encode()
        return hashlib.blake2b(written, digest_size=8).digest()

    assert derive_key(*address) == struct.unpack("<II", digest("key"))
    assert derive_seed(*address) == struct.unpack("<Q", digest("seed"))[0] // 2


def test_keys_fit_words_and_seeds_are_good_in_their_low_32_bits() -> None:
    seeds = [derive_seed(0, "model", "init", epoch=epoch) for epoch in range(4096)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert all(0 <= word < 2**32 for epoch in range(99) for word in derive_key(0, "", "", epoch=epoch))
    assert len({seed % 2**32 for seed in seeds}) >= 4090  # 0.002 collisions are expected
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 2048) < 5 * 32, f"bit {bit}"  # 5 standard deviations
    torch.Generator().manual_seed(max(seeds))


def test_numpy_integers_address_as_python_integers() -> None:
    two: Any = np.int32(2)
    draws = Draws(KEY, column([1]))
    assert derive_key(two, "a", "b", epoch=two) == derive_key(2, "a", "b", epoch=2)
    assert torch.equal(draws.bits(4, draw=two), draws.bits(4, draw=2))


# --- draws against the reference ------------------------------------------------------------------

Rows = list[tuple[int, int]]  # sample id, occurrence
samples = st.lists(st.tuples(ids, naturals16), min_size=1, max_size=4)


@light
@given(keys, samples, st.integers(0, 13), naturals16)
def test_bits_are_the_words_of_the_address(key: Key, rows: Rows, count: int, draw: int) -> None:
    index, occurrence = (column(list(numbers)) for numbers in zip(*rows, strict=True))
    got = Draws(key, index, occurrence).bits(count, draw=draw)
    assert got.dtype == torch.int64
    assert got.shape == (len(rows), count)
    assert got.tolist() == [naive_bits(key, i, count, draw, o) for i, o in rows]


@light
@given(keys, ids, naturals16, naturals16, st.integers(1, 2**32))
def test_distributions_agree_with_the_reference(key: Key, sample: int, draw: int, o: int, high: int) -> None:
    draws = Draws(key, column([sample]), column([o]))
    bits = naive_bits(key, sample, 6, draw, o)
    u, e = naive_uniform(bits), naive_exponential(bits)
    double = torch.float64
    assert draws.uniform(6, draw=draw, dtype=double).tolist() == [u]
    assert draws.uniform(6, low=-2, high=6, draw=draw, dtype=double).tolist() == [[8 * x - 2 for x in u]]
    assert close(draws.exponential(6, draw=draw, dtype=double), [e])
    assert close(draws.normal(6, draw=draw, dtype=double), [naive_normal(bits)])
    assert close(draws.dirichlet(6, draw=draw, dtype=double), [[x / math.fsum(e) for x in e]])
    assert draws.integers(high, 6, draw=draw).tolist() == [[word * high // 2**32 for word in bits]]


def test_golden_values() -> None:
    """Computed once, with the reference alone. A change here means that no past run can be repeated."""
    key = derive_key(7, "cat-eps", "start", "train", 3)
    assert key == (0x9141F661, 0x8F2C1BAC)
    assert derive_seed(7, "cat-eps", "start", "train", 3) == 2602440536498418846
    draws = Draws(key, column([5, 2**33 + 1]), column([0, 2]))
    assert draws.bits(6, draw=3).tolist() == [
        [0x1F7D279F, 0x2D1CED7F, 0xB2D3CD2A, 0x930DDE79, 0xB573E077, 0x3444531E],
        [0x0E371701, 0xEFBFF123, 0x5168B405, 0xE7C58EF9, 0x0CA4EB4E, 0x70747C5F],
    ]
    assert draws.uniform(3, draw=3).tolist() == [
        [0.12300342321395874, 0.17622262239456177, 0.6985443234443665],
        [0.055528104305267334, 0.9365225434303284, 0.31800395250320435],
    ]
    normal = [
        [0.915376010030337, 1.8311670994858278, -0.7561088245409366],
        [2.215796676639142, -0.9337971368745724, 1.2538899449924514],
    ]
    exponential = [
        [2.0955430929892, 1.7360071832868882, 0.3587566471166884],
        [2.890866002520107, 0.06558168538523361, 1.1456914670238432],
    ]
    dirichlet = [
        [0.5000929839508024, 0.4142911760461906, 0.08561584000300698],
        [0.7047215838707969, 0.015987191781738998, 0.279291224347464],
    ]
    assert close(draws.normal(3, draw=3, dtype=torch.float64), normal)
    assert close(draws.exponential(3, draw=3, dtype=torch.float64), exponential)
    assert close(draws.dirichlet(3, draw=3, dtype=torch.float64), dirichlet)
    assert draws.integers(10, 6, draw=3).tolist() == [[1, 1, 6, 5, 7, 2], [0, 9, 3, 9, 0, 4]]
    assert permutation(key, 8).tolist() == [0, 5, 4, 3, 6, 7, 2, 1]


# --- what a draw depends on -----------------------------------------------------------------------

METHODS: dict[str, Callable[[Draws, int, torch.dtype], Tensor]] = {
    "bits": lambda draws, n, dtype: draws.bits(n),
    "uniform": lambda draws, n, dtype: draws.uniform(n, low=-0.03, high=0.03, dtype=dtype),
    "normal": lambda draws, n, dtype: draws.normal(n, dtype=dtype),
    "exponential": lambda draws, n, dtype: draws.exponential(n, dtype=dtype),
    "dirichlet": lambda draws, n, dtype: draws.dirichlet(n, dtype=dtype),
    "integers": lambda draws, n, dtype: draws.integers(10, n),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=15)
@given(
    rows=st.lists(st.tuples(ids, st.integers(0, 3)), min_size=2, max_size=40),
    n=st.integers(1, 70),
    data=st.data(),
)
def test_rows_do_not_see_the_batch(method: str, dtype: torch.dtype, rows: Rows, n: int, data: st.DataObject) -> None:
    index, occurrence = (column(list(numbers)) for numbers in zip(*rows, strict=True))
    order = column(data.draw(st.permutations(range(len(rows)))))
    cut = data.draw(st.integers(1, len(rows) - 1))
    draw = METHODS[method]
    whole = draw(Draws(KEY, index, occurrence), n, dtype)
    assert torch.equal(draw(Draws(KEY, index[order], occurrence[order]), n, dtype), whole[order])
    parts = [draw(Draws(KEY, index[part], occurrence[part]), n, dtype) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)
    alone = draw(Draws(KEY, index[:1], occurrence[:1]), n, dtype)
    assert torch.equal(alone, whole[:1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"dirichlet"}))
def test_a_longer_shape_extends_the_stream(method: str, dtype: torch.dtype) -> None:
    draws = Draws(KEY, column([3, 2**40]))
    longest = METHODS[method](draws, 41, dtype)
    for n in range(41):
        assert torch.equal(METHODS[method](draws, n, dtype), longest[:, :n])


def test_elements_are_in_row_major_order() -> None:
    draws = Draws(KEY, torch.arange(4))
    for flat, shaped in (
        (draws.uniform(45), draws.uniform(3, 5, 3)),
        (draws.normal(45), draws.normal(3, 5, 3)),
        (draws.exponential(45), draws.exponential(3, 5, 3)),
        (draws.integers(9, 45), draws.integers(9, 3, 5, 3)),
    ):
        assert shaped.shape == (4, 3, 5, 3)
        assert shaped.is_contiguous()
        assert torch.equal(shaped.flatten(1), flat)


ADDRESS: dict[str, Any] = {"seed": 1, "owner": "pgd", "purpose": "start", "phase": "train", "epoch": 2}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        *(("seed", 2), ("owner", "awp"), ("purpose", "label"), ("phase", "eval"), ("epoch", 3)),
        *(("draw", 1), ("occurrence", 1), ("index", 1), ("index", 2**32)),
    ],
)
def test_every_part_of_the_address_counts(part: str, other: Any) -> None:
    def stream(draw: int = 0, occurrence: int = 0, index: int = 0, **changed: Any) -> Tensor:
        key = derive_key(**{**ADDRESS, **changed})
        return Draws(key, column([index]), column([occurrence])).bits(4096, draw=draw)[0]

    base, changed = stream(), stream(**{part: other})
    assert torch.equal(base, stream())
    assert (base == changed).sum() == 0
    agreeing = sum(((base ^ changed) >> bit & 1 == 0).sum().item() for bit in range(32)) / (32 * 4096)
    assert abs(agreeing - 0.5) < 5 * 0.5 / math.sqrt(32 * 4096)


def test_no_occurrence_is_the_first_occurrence_and_draw_is_not_occurrence() -> None:
    index = torch.arange(3)
    assert torch.equal(Draws(KEY, index).bits(8), Draws(KEY, index, torch.zeros_like(index)).bits(8))
    again = Draws(KEY, index, torch.ones_like(index)).bits(8)
    assert not torch.equal(again, Draws(KEY, index).bits(8, draw=1))


@pytest.mark.parametrize("method", ["uniform", "normal", "exponential", "dirichlet"])
def test_dtype_does_not_change_the_draw(method: str) -> None:
    draws = Draws(KEY, torch.arange(20))
    single, double = (METHODS[method](draws, 31, dtype) for dtype in FLOATS)
    assert (single.dtype, double.dtype) == FLOATS
    torch.testing.assert_close(single.double(), double, rtol=2**-23, atol=2**-27)
    unit = [draws.uniform(31, dtype=dtype).double() for dtype in FLOATS]
    assert torch.equal(*unit)


def test_cache_chunks_and_threads_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(KEY, torch.arange(9), torch.arange(9))
    expected = draws.bits(22)
    for chunk in (1, 7, 13, 30):
        monkeypatch.setattr(rng, "_CHUNK", chunk)
        assert torch.equal(draws.bits(22), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_draws_the_same(method: str) -> None:
    index = torch.arange(64) * 2**30
    cpu, gpu = (METHODS[method](Draws(KEY, index.to(device)), 99, torch.float32) for device in ("cpu", "cuda"))
    assert gpu.is_cuda
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=2**-22, atol=1e-7)
    assert torch.equal(permutation(KEY, 999, "cuda").cpu(), permutation(KEY, 999))


def test_global_generators_are_neither_read_nor_changed() -> None:
    def states() -> list[bytes]:
        return [
            torch.get_rng_state().numpy().tobytes(),
            repr(np.random.get_state()).encode(),  # noqa: NPY002
            repr(random.getstate()).encode(),
        ]

    def everything() -> list[Tensor]:
        draws = Draws(derive_key(0, "a", "b"), torch.arange(5))
        return [draw(draws, 9, torch.float32) for draw in METHODS.values()] + [permutation(draws.key, 50)]

    before = states()
    first = everything()
    assert states() == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert states() != before, "the probe sees a change"
        assert all(torch.equal(a, b) for a, b in zip(everything(), first, strict=True))


# --- distributions --------------------------------------------------------------------------------

STREAM = Draws(derive_key(0, "tests", "statistics"), torch.arange(512))


def ks_distance(values: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """Kolmogorov-Smirnov distance times sqrt(n): above 1.95 once in a thousand samples."""
    probability = cdf(values.double().flatten().sort().values)
    n = len(probability)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((steps[1:] - probability).max().item(), (probability - steps[:-1]).max().item())


@pytest.mark.parametrize(
    ("values", "cdf", "mean", "variance", "fourth"),
    [
        (STREAM.uniform(1024), lambda x: x, 1 / 2, 1 / 12, 1 / 80),
        (STREAM.normal(1024), torch.special.ndtr, 0, 1, 3),
        (STREAM.exponential(1024), lambda x: 1 - torch.exp(-x), 1, 1, 9),
    ],
    ids=["uniform", "normal", "exponential"],
)
def test_distribution(
    values: Tensor, cdf: Callable[[Tensor], Tensor], mean: float, variance: float, fourth: float
) -> None:
    values = values.double()
    n = values.numel()
    assert abs(values.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs((values - mean).square().mean().item() - variance) < 4 * math.sqrt((fourth - variance**2) / n)
    assert ks_distance(values, cdf) < 1.95
    assert ks_distance(values + 0.01, cdf) > 1.95, "the test sees a shift of 0.01"


def test_all_bits_are_balanced_and_independent() -> None:
    bits = (STREAM.bits(512)[..., None] >> torch.arange(32) & 1).reshape(-1, 32).double() * 2 - 1
    correlation = bits.T @ bits / math.sqrt(len(bits)) - math.sqrt(len(bits)) * torch.eye(32)
    assert bits.mean(0).abs().max() * math.sqrt(len(bits)) < 4.5
    assert correlation.abs().max() < 4.5


@pytest.mark.parametrize("method", ["uniform", "normal"])
def test_neighbours_are_uncorrelated(method: str) -> None:
    def standard(draws: Draws) -> Tensor:
        values = METHODS[method](draws, 512, torch.float64)
        return (values - values.mean()) / values.std()

    def correlation(a: Tensor, b: Tensor) -> float:
        return abs((a * b).mean().item()) * math.sqrt(a.numel())

    base = standard(STREAM)
    assert correlation(base, base) > 100, "the test sees equal streams"
    assert correlation(base[1:], base[:-1]) < 4, "ids"
    assert correlation(base[:, 1:], base[:, :-1]) < 4, "elements"
    assert correlation(base[:, 4:], base[:, :-4]) < 4, "blocks"
    assert correlation(base, standard(Draws(STREAM.key, STREAM.index, torch.ones_like(STREAM.index)))) < 4
    assert correlation(base, standard(Draws(STREAM.key, STREAM.index + 2**32))) < 4
    assert correlation(base, standard(Draws(derive_key(1, "tests", "statistics"), STREAM.index))) < 4


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_dirichlet_is_uniform_on_the_simplex(classes: int) -> None:
    draws = Draws(derive_key(0, "tests", "dirichlet"), torch.arange(20_000))
    target = draws.dirichlet(classes)
    assert target.shape == (20_000, classes)
    assert target.min() > 0
    torch.testing.assert_close(target.sum(1), torch.ones(20_000), rtol=0, atol=1e-6)
    variance = (classes - 1) / (classes**2 * (classes + 1))
    assert (target.mean(0) - 1 / classes).abs().max() < 4.5 * math.sqrt(variance / 20_000)
    assert ks_distance(target[:, 0], lambda x: 1 - (1 - x) ** (classes - 1)) < 1.95  # Beta(1, K - 1)


def test_integers_are_uniform() -> None:
    counts = torch.bincount(STREAM.integers(10, 1000).flatten(), minlength=10).double()
    assert len(counts) == 10
    expected = 512 * 1000 / 10
    assert ((counts - expected).square() / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %
    assert STREAM.integers(1, 4).eq(0).all()


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_stay_in_range(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(counter: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        block, low, high, tag = counter
        return tuple(torch.full_like(block + low + high + tag, word) for _ in range(4))

    monkeypatch.setattr(rng, "philox4x32", constant)
    draws = Draws(KEY, torch.arange(2))
    for dtype in FLOATS:
        u = draws.uniform(4, dtype=dtype)
        assert ((u > 0) & (u < 1)).all()
        ball = draws.uniform(4, low=-8 / 255, high=8 / 255, dtype=dtype)
        assert ball.abs().max() <= torch.tensor(8 / 255, dtype=dtype)
        e = draws.exponential(4, dtype=dtype)
        assert ((e > 0) & (e < 17)).all()
        assert draws.normal(4, dtype=dtype).abs().max() <= math.sqrt(48 * math.log(2)) + 1e-6
        assert torch.equal(draws.dirichlet(4, dtype=dtype), torch.full((2, 4), 0.25, dtype=dtype))
    for high in (1, 10, 2**31, 2**32):
        assert draws.integers(high, 4).eq(0 if word == 0 else high - 1).all()
    assert torch.equal(permutation(KEY, 50), torch.arange(50)), "equal hashes leave the order of the ids"


# --- permutation ----------------------------------------------------------------------------------


@light
@given(keys, st.integers(0, 60))
def test_permutation_sorts_by_the_hash(key: Key, n: int) -> None:
    def signed_hash(sample: int) -> int:
        high, low = naive_bits(key, sample, 2)
        return high * 2**32 + low - (2**64 if high >= 2**31 else 0)

    assert permutation(key, n).tolist() == sorted(range(n), key=signed_hash)


def test_permutations_mix_and_differ_by_epoch() -> None:
    orders = [permutation(derive_key(0, "data", "order", "train", epoch), 5000) for epoch in range(20)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(5000))
    for a, b in zip([torch.arange(5000), *orders], orders, strict=False):
        assert (a == b).sum() <= 8  # Poisson(1) matches
        correlation = torch.corrcoef(torch.stack([a, b]).double())[0, 1].item()
        assert abs(correlation) * math.sqrt(5000) < 4


# --- edges and mistakes ---------------------------------------------------------------------------


def test_empty_batches_and_shapes() -> None:
    nobody, two = Draws(KEY, column([])), Draws(KEY, torch.arange(2))
    for draw in METHODS.values():
        assert draw(nobody, 5, torch.float32).shape == (0, 5)
        assert draw(two, 0, torch.float32).shape == (2, 0)
    assert two.uniform().tolist() == two.uniform(1).flatten().tolist()
    assert two.uniform(3, 0, 2).shape == (2, 3, 0, 2)
    assert two.integers(5).shape == (2,)


@pytest.mark.parametrize("bad", [-1, 2**63, 1.0, "1", None])
def test_seed_and_epoch_out_of_range(bad: Any) -> None:
    for derive in (derive_key, derive_seed):
        with pytest.raises(OptionError, match=r"The seed is .*; pass an integer from 0 to 2\*\*63 - 1\."):
            derive(bad, "a", "b")
        with pytest.raises(OptionError, match=r"The epoch is "):
            derive(0, "a", "b", epoch=bad)
    assert derive_key(2**63 - 1, "a", "b") != derive_key(0, "a", "b")


def test_names_that_are_no_texts_are_refused() -> None:
    for names in ((3, "a", "b"), ("a", None, "b"), ("a", "b", 0.5)):
        with pytest.raises(OptionError, match=r"addressed by texts, not by \(.*\); pass"):
            derive_key(0, *names)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, 2**16, 0.5])
def test_draw_out_of_range(bad: Any) -> None:
    draws = Draws(KEY, torch.arange(2))
    for draw in (draws.uniform, draws.normal, draws.exponential, draws.dirichlet, draws.bits):
        with pytest.raises(OptionError, match=r"The draw is .*; pass an integer from 0 to 2\*\*16 - 1\."):
            draw(3, draw=bad)
    with pytest.raises(OptionError, match="The draw is"):
        draws.integers(3, 3, draw=bad)
    assert draws.bits(3, draw=2**16 - 1).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    draws = Draws(KEY, torch.arange(2))
    for draw in (draws.uniform, draws.normal, draws.exponential, draws.dirichlet):
        with pytest.raises(OptionError, match="draw float32 and cast the result"):
            draw(3, dtype=dtype)


@pytest.mark.parametrize("high", [0, -1, 2**32 + 1])
def test_integers_out_of_range(high: int) -> None:
    with pytest.raises(OptionError, match=r"pass a number from 1 to 2\*\*32"):
        Draws(KEY, torch.arange(2)).integers(high, 3)


@pytest.mark.parametrize(
    ("index", "occurrence", "name"),
    [
        (torch.arange(3, dtype=torch.int32), None, "index"),
        (torch.zeros(3), None, "index"),
        (torch.zeros(3, 1, dtype=torch.int64), None, "index"),
        (torch.tensor(3), None, "index"),
        (torch.arange(3), torch.arange(2), "occurrence"),
        (torch.arange(3), torch.zeros(3), "occurrence"),
        (torch.arange(3), torch.tensor(1), "occurrence"),
    ],
)
def test_malformed_ids_are_refused(index: Tensor, occurrence: Tensor | None, name: str) -> None:
    with pytest.raises(OptionError, match=f"Draws: {name} is a .*pass one int64 number per sample"):
        Draws(KEY, index, occurrence)
