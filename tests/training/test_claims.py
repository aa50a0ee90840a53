"""What plugins keep: tensors by sample, of any shape and dtype, and tables by class."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advkit
from advkit import Batch, HookContract, OptionError, Plugin, ResumeMismatch, Run, Splits, Step, hookimpl
from advkit.claims import beyond, free_memory, in_bytes
from advkit.storage import checkpoint
from advkit.storage.run_folder import RunFolder
from advkit.testing.small import SAMPLES, batches, pictures, same, step_of, tiny_net


class Keeps(Plugin):
    """Keeps a distribution, an image and a mark of every sample, and a table by class."""

    name = "keeps"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.mean = run.sample_state("mean", 1.0, shape=(run.num_classes,))
        self.image = run.sample_state("image", shape=run.image_shape, dtype=torch.float16)
        self.mark = run.sample_state("mark", 1, shape=[2], dtype=torch.bool)
        self.table = run.tensor_state("table", torch.zeros(run.num_classes, run.num_classes, dtype=torch.int64))

    @hookimpl
    def observe_update(self, batch: Batch, x_train: Tensor, adv_logits: Tensor) -> None:
        self.mean[batch.index] = adv_logits.softmax(1)
        self.image[batch.index] = x_train.half()
        self.mark[batch.index] = adv_logits[:, :2] > 0
        self.table[batch.y] += 1


class Elsewhere(Keeps):
    name = "elsewhere"

    @hookimpl
    def observe_update(self, batch: Batch) -> None:
        self.image[(batch.index + 4) % SAMPLES] = 0.5


class Leans(Plugin):
    """Pulls to what it has kept, (N, K)."""

    name = "leans"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.last = run.sample_state("last", shape=(run.num_classes,))

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return (adv_logits - self.last[batch.index]).square().sum(1)

    @hookimpl
    def observe_update(self, batch: Batch, adv_logits: Tensor) -> None:
        self.last[batch.index] = adv_logits


def net() -> nn.Sequential:
    return tiny_net(True, 0.0, torch.float32)


def after(steps: int, step: Step) -> dict[str, Tensor]:
    for number in range(steps):
        step(*batches()[number % 2], epoch=number // 2)
    return step.state_dict()


def test_state_of_any_shape_is_kept_and_put_back() -> None:
    kept = after(1, step_of(net(), [Keeps]))
    assert {name: (values.shape, values.dtype) for name, values in kept.items() if name != "position"} == {
        "samples/keeps/mean": ((SAMPLES, 3), torch.float32),
        "samples/keeps/image": ((SAMPLES, 2, 4, 4), torch.float16),
        "samples/keeps/mark": ((SAMPLES, 2), torch.bool),
        "tensors/keeps/table": ((3, 3), torch.int64),
    }
    mean = kept["samples/keeps/mean"]
    assert torch.allclose(mean[:4].sum(1), torch.ones(4)) and mean[4:].eq(1).all() and kept["tensors/keeps/table"].sum()
    other = step_of(net(), [Keeps])
    other.load_state_dict(kept)
    assert all(torch.equal(values, kept[name]) for name, values in other.state_dict().items())


@pytest.mark.parametrize("changed", [lambda v: v.double(), lambda v: v[:, :2]], ids=["dtype", "shape"])
def test_other_shapes_and_dtypes_are_not_put_back(changed: Any) -> None:
    step = step_of(net(), [Keeps])
    kept = step.state_dict()
    with pytest.raises(ResumeMismatch, match="differ in samples/keeps/mean"):
        step.load_state_dict({**kept, "samples/keeps/mean": changed(kept["samples/keeps/mean"])})


@pytest.mark.parametrize("restored", [True, False])
def test_a_step_goes_on_with_it_bit_for_bit(restored: bool) -> None:
    whole = after(4, step_of(net(), [Keeps, Leans]))
    cut, model = step_of(first := net(), [Keeps, Leans]), net()
    kept = after(2, cut)
    model.load_state_dict(first.state_dict())
    other = step_of(model, [Keeps, Leans])
    other.optimizer.load_state_dict(cut.optimizer.state_dict())
    if restored:
        other.load_state_dict(kept)
    for number in (2, 3):
        other(*batches()[number % 2], epoch=number // 2)
    assert same(other.state_dict(), whole) is restored


def test_a_checkpoint_holds_it(tmp_path: Path) -> None:
    toy, out = Splits(pictures(), pictures(), "none"), tmp_path / "run"
    settings = {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 0.25}
    result = advkit.train(net(), toy, [Keeps], epochs=1, batch_size=4, eps=0.1, settings=settings, out=out)
    assert result.history[-1]["state"] == {}, "quantiles are of what is one number a sample"
    stored, _ = RunFolder.open(out).load("last")
    assert stored["samples/keeps/image"].shape == (SAMPLES, 2, 4, 4)
    assert stored["samples/keeps/image"].dtype == torch.float16 and stored["samples/keeps/mark"].dtype == torch.bool


def test_rows_of_others_are_refused_and_put_back() -> None:
    step = step_of(net(), [Elsewhere])
    with pytest.raises(HookContract, match="writes its state image of samples that are not in the batch"):
        after(1, step)
    assert not step.state.samples["elsewhere/image"].any()


def claims(**arguments: Any) -> type[Plugin]:
    class Claims(Plugin):
        name = "odd"

        @hookimpl
        def setup(self, run: Run) -> None:
            run.sample_state("a", **arguments)

    return Claims


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shape": 3}, r"shape of the state a is 3; pass whole numbers, such as \(10,\)"),
        ({"shape": "3"}, "shape of the state a is '3'; pass whole numbers"),
        ({"shape": (2, -1)}, "a size of the state a = -1 must be an integer from 0"),
        ({"shape": (2.5,)}, r"a size of the state a = 2\.5 must be an integer from 0"),
        ({"dtype": "float16"}, r"dtype of the state a is 'float16'; take one of torch\.float64"),
        ({"dtype": torch.complex64}, r"dtype of the state a is torch\.complex64; take one of"),
        ({"fill": 0.5, "dtype": torch.int64}, r"fill of the state a is 0\.5, which torch\.int64 can not hold"),
        ({"fill": 300, "dtype": torch.uint8}, r"fill of the state a is 300, which torch\.uint8 can not hold"),
        ({"fill": 2, "dtype": torch.bool}, r"fill of the state a is 2, which torch\.bool can not hold"),
        ({"fill": float("nan"), "dtype": torch.int8}, r"fill of the state a is nan, which torch\.int8 can not hold"),
        ({"fill": 1e300, "dtype": torch.float16}, r"fill of the state a is 1e\+300, which torch\.float16 can not hold"),
        ({"least": "x"}, "least of the state a is 'x'; pass a number"),
        ({"least": 1, "most": 0}, "least of the state a is 1, which is not below its most, 0"),
        ({"dtype": torch.float8_e5m2}, r"dtype of the state a is torch\.float8_e5m2; take one of torch\.float64"),
    ],
    ids=str,
)
def test_what_can_not_be_claimed(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^Plugin odd: {sentence}"):
        step_of(net(), [claims(**arguments)])


def test_a_fill_may_be_infinite_and_a_tensor_no_float8() -> None:
    with pytest.raises(
        OptionError, match=r"^Plugin odd: initial of the state a is torch\.float8_e5m2; take one of torch"
    ):
        step_of(net(), [of_tensor(torch.zeros(3).to(torch.float8_e5m2))])
    step = step_of(net(), [claims(fill=float("-inf"), dtype=torch.float16)])
    assert bool((step.state.samples["odd/a"] == -torch.inf).all())


class Counts(Plugin):
    """Counts the steps, and says that there are two at most."""

    name = "counts"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.count = run.tensor_state("count", torch.zeros(()), least=0, most=2)

    @hookimpl
    def observe_update(self) -> None:
        self.count += 1


@pytest.mark.parametrize("steps", [2, 3])
def test_state_beyond_its_bounds_is_written_into_no_checkpoint(tmp_path: Path, steps: int) -> None:
    toy, settings = pictures(4 * steps), {"attack.steps": 0, "validation.fraction": 0}
    left = "^Plugin counts: the state count has left 0 to 2, its least and most; claim wider ones, or keep it within"
    with pytest.raises(HookContract, match=left) if steps > 2 else nullcontext():
        advkit.train(net(), Splits(toy, toy, "none"), [Counts], batch_size=4, epochs=1, settings=settings, out=tmp_path)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest and newest.name == ("step-00000000" if steps > 2 else "step-00000002")
    step = step_of(net(), [Counts])
    kept = step.state_dict()
    step.load_state_dict(kept)
    with pytest.raises(ResumeMismatch, match=r"^The stored tensors/counts/count has a value outside of 0 to 2"):
        step.load_state_dict({**kept, "tensors/counts/count": torch.tensor(-1.0)})


class Finite(Plugin):
    """Keeps state of which a part is absent from the start."""

    name = "finite"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.absent = run.sample_state("absent", fill=float("nan"), least=0, most=2)
        self.mean = run.sample_state("mean", least=0, most=2)
        self.table = run.tensor_state("table", torch.zeros(2))


class Breaks(Finite):
    name = "breaks"

    @hookimpl
    def epoch_end(self) -> None:
        self.table[0] = torch.inf


def test_state_that_is_not_finite_any_more_is_written_into_no_checkpoint(tmp_path: Path) -> None:
    toy, settings = pictures(4), {"attack.steps": 0, "validation.fraction": 0}
    with pytest.raises(HookContract, match=r"^Plugin breaks: the state table holds NaN or Inf; .* was not written\.$"):
        advkit.train(net(), Splits(toy, toy, "none"), [Breaks], batch_size=4, epochs=1, settings=settings, out=tmp_path)


@pytest.mark.parametrize("name", ["samples/finite/mean", "tensors/finite/table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_takes_no_state_that_is_not_finite_any_more(name: str, value: float) -> None:
    step = step_of(net(), [Finite])
    kept = {key: values.clone() for key, values in step.state_dict().items()}
    step.load_state_dict(kept)
    kept[name][1] = value
    with pytest.raises(ResumeMismatch, match=rf"^The stored {name} (holds NaN or Inf|has a value outside of 0 to 2); "):
        step.load_state_dict(kept)


def of_tensor(initial: Tensor) -> type[Plugin]:
    class Claims(Plugin):
        name = "odd"

        @hookimpl
        def setup(self, run: Run) -> None:
            run.tensor_state("a", initial)

    return Claims


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step_of(net(), [claims(shape=(1000,))])
    monkeypatch.setattr("advkit.claims.free_memory", lambda device: 100_000)
    with pytest.raises(
        OptionError,
        match=r"^Plugin odd: the state a takes 64 kB for 16 samples, and 3 times that where a step is looked at; "
        r"100 kB are free\. Train on fewer images",
    ):
        step_of(net(), [claims(shape=(1000,))])


def test_what_is_free() -> None:
    free = free_memory(torch.device("cpu"))
    assert (free is None or free > 1 << 20) and free_memory(torch.device("meta")) is None
    assert [in_bytes(count) for count in (5, 40_000, 614_400_000, 2 * 10**9)] == ["5 B", "40 kB", "614 MB", "2 GB"]


def test_a_step_is_told_classes_and_images() -> None:
    with pytest.raises(OptionError, match=r"state mean with the shape \(16, 0\), which holds nothing; .*classes=10"):
        step_of(net(), [Keeps], num_classes=None)
    with pytest.raises(OptionError, match="returns 3 logits for each image, but the data has 5 classes"):
        after(1, step_of(net(), [Keeps], num_classes=5))
    with pytest.raises(OptionError, match=r"Images are \(2, 4, 4\), and the run was set up for \(2, 8, 8\)"):
        after(1, step_of(net(), [Keeps], image_shape=(2, 8, 8)))
    with pytest.raises(OptionError, match="num_classes = 1 must be an integer from 2"):
        step_of(net(), (), num_classes=1)
    with pytest.raises(OptionError, match=r"a size of image_shape = 0 must be an integer from 1"):
        step_of(net(), (), image_shape=(2, 0, 4))


def test_the_plan_says_how_much_it_is() -> None:
    images = 1258
    known = advkit.plan([Keeps], dataset="digits")["state_bytes"]
    assert known == {
        "keeps/mean": {"per_sample": 40, "total": 40 * images},
        "keeps/image": {"per_sample": 128, "total": 128 * images},
        "keeps/mark": {"per_sample": 2, "total": 2 * images},
        "keeps/table": {"per_sample": 0, "total": 800},
    }
    assert advkit.plan([Keeps], dataset="digits", settings={"data.limit": 100})["state_bytes"]["keeps/mean"] == {
        "per_sample": 40,
        "total": 4000,
    }
    labels = torch.arange(10).repeat(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    passed = advkit.plan([Keeps], model=net, dataset=(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), labels))
    assert passed["settings"]["model.name"]["value"] == "python:Sequential"
    assert passed["state_bytes"]["keeps/mean"] == {"per_sample": 40, "total": 1200}
    assert passed["state_bytes"]["keeps/image"] == {"per_sample": 128, "total": 128 * 30}
    unknown = advkit.plan([Keeps, "ema"], dataset="image-folder")["state_bytes"]
    assert unknown["keeps/mean"] == {"per_sample": None, "total": None}
    assert unknown["keeps/mark"] == {"per_sample": 2, "total": None}
    assert unknown["ema/(depends on the model)"] == {"per_sample": None, "total": None}


@pytest.mark.parametrize(
    ("value", "bounds", "out"),
    [
        (-1.0, (-1.0, 1.0), False),
        (1.0, (-1.0, 1.0), False),
        (-2.0, (-2.0, -1.0), False),
        (-1.0, (-2.0, -1.0), False),
        (-1.1, (-1.0, 1.0), True),
        (-0.9, (-2.0, -1.0), True),
        (-1e-9, (0.0, float("inf")), True),
        (3e38, (0.0, float("inf")), False),
    ],
)
def test_what_lies_on_a_bound_is_within(value: float, bounds: tuple[float, float], out: bool) -> None:
    assert beyond(torch.tensor([value]), bounds) == out
