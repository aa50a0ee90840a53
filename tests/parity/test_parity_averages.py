"""`ema` and `swa` against torch.optim.swa_utils, fed with the weights of the same run; in float64."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from methods import Method, pictures, run, tiny_net
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

import advkit
from advkit import Splits, TrainResult
from advkit.cli.main import run as cli
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import Stopped
from advkit.training.loop import Trainer
from advkit.training.progress import Silent
from advkit.training.step_report import Report

LONG = {"epochs": (0, 1, 2, 3)}


def ema(*plugins: str, **values: Any) -> dict[str, Any]:
    return dict(run(*plugins, "ema", options={"ema": {"decay": 0.9, "ramp": False} | values}))


def swa(*plugins: str, **values: Any) -> dict[str, Any]:
    return dict(run(*plugins, "swa", options={"swa": {"start": 0.0} | values}))


METHODS = {
    "ema": Method(
        neutral=[
            (ema(*others, decay=0.0, buffers=buffers), run(*others))
            for others in ((), ("trades", "awp"), ("cat-eps", "lsiw"))
            for buffers in ("copied", "averaged")
        ],
        changes=[
            (ema(), run()), (ema(), ema(decay=0.8)), (ema(), ema(ramp=True)), (ema(), ema(start=0.5)),
            (ema(), ema(buffers="averaged")), (ema(), ema(buffers="re-estimated")),
            (ema(buffers="re-estimated"), ema(buffers="re-estimated", images=8)),
        ],
        moving={"ema": {"decay": 0.9, "buffers": "re-estimated", "images": 10}},
    ),
    "swa": Method(
        # The mean of one set of weights, those of the last epoch.
        neutral=[(swa(*others, start=0.5), run(*others)) for others in ((), ("trades", "awp"), ("cat-eps", "lsiw"))],
        changes=[
            (swa(), run()), (swa() | LONG, swa(every=2) | LONG), (swa() | LONG, swa(start=0.5) | LONG),
            (swa(), swa(buffers="averaged")), (swa(), swa(buffers="re-estimated")),
        ],
        moving={"swa": {"start": 0.0, "buffers": "averaged"}},
    ),
}  # fmt: skip


class Follower(Silent):
    """Keeps torch's average of the weights after every step, or at the end of every epoch; and the images."""

    def __init__(self, averaged: AveragedModel, first: int = 0, each_epoch: bool = False, stop_after: int = -1) -> None:
        self.averaged, self.first, self.each_epoch, self.left = averaged, first, each_epoch, stop_after
        self.images: list[torch.Tensor] = []

    def stepped(self, trainer: Trainer, report: Report) -> None:
        self.left -= 1
        self.images.append(report.x_train)
        last = trainer.panel.state.step == trainer.panel.state.epoch_steps
        if report.epoch >= self.first and (last or not self.each_epoch):
            self.averaged.update_parameters(trainer.model)

    def stop_requested(self) -> type[Stopped] | None:
        return Stopped if self.left == 0 else None


def trained(
    name: str,
    follower: Silent,
    options: dict[str, Any],
    net: nn.Module | None = None,
    parts: int = 1,
    **arguments: Any,
) -> TrainResult:
    """Four epochs of three steps each on twelve of sixteen images."""
    toy = Splits(pictures(), pictures(), "none")
    settings = {"attack.steps": 2, "validation.steps": 1, "validation.fraction": 0.25, "optimizer.lr": 0.05}
    settings["run.accumulate"] = parts
    net = net or tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
    return advkit.train(
        net, toy, [name], options={name: options}, settings=settings, epochs=4, batch_size=4, eps=0.1,
        progress=follower, **arguments,
    )  # fmt: skip


def fresh(multi_avg_fn: Any, use_buffers: bool = False) -> AveragedModel:
    net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
    return AveragedModel(net, multi_avg_fn=multi_avg_fn, use_buffers=use_buffers)


def judged(result: TrainResult) -> nn.Module:
    """The net with what the plugin has put in its place."""
    net = deepcopy(result.model)
    net.load_state_dict(dict(result.averaged), strict=False)
    return net


def assert_bits(one: nn.Module, other: nn.Module, but: str = "-") -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (name, a), b in pairs if but not in name)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.5])
def test_ema_is_torchs(start: float) -> None:
    follower = Follower(fresh(get_ema_multi_avg_fn(0.8)), first={0.0: 0, 0.3: 2, 0.5: 2}[start])
    result = trained("ema", follower, {"decay": 0.8, "ramp": False, "start": start})
    # With its buffers in sync with the net's.
    assert_bits(judged(result), follower.averaged.module)
    assert not torch.equal(result.averaged["0.weight"], result.model.state_dict()["0.weight"])


def test_averaged_buffers_are_torchs_but_for_counts() -> None:
    follower = Follower(fresh(get_ema_multi_avg_fn(0.8), use_buffers=True))
    result = trained("ema", follower, {"decay": 0.8, "ramp": False, "buffers": "averaged"})
    assert_bits(judged(result), follower.averaged.module, but="num_batches")
    assert "1.running_var" in result.averaged and "1.num_batches_tracked" not in result.averaged


def test_the_ramp_shortens_the_first_averages() -> None:
    """(1 + n) / (10 + n) while that is below decay, after a first average that is the weights themselves."""
    seen: list[torch.Tensor] = []

    class Weights(Silent):
        def stepped(self, trainer: Trainer, report: object) -> None:
            seen.append(trainer.model.get_parameter("0.weight").detach().clone())

    result = trained("ema", Weights(), {"decay": 0.5})  # type: ignore[arg-type]
    average = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    assert torch.allclose(result.averaged["0.weight"], average, rtol=1e-12, atol=0)
    assert len(seen) == 12 and min(0.5, 12 / 21) == 0.5 > 2 / 11


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.5, 2), (0.75, 3)])
def test_swa_is_the_mean_of_the_ends_of_epochs_as_torchs(start: float, first: int) -> None:
    ends: list[torch.Tensor] = []

    class Ends(Follower):
        def finished_epoch(self, row: Any) -> None:
            ends.append(self.net.get_parameter("5.weight").detach().clone())

        def begin(self, trainer: Trainer) -> None:
            self.net = trainer.model

    follower = Ends(fresh(get_swa_multi_avg_fn()), first, each_epoch=True)
    averaged = trained("swa", follower, {"start": start}).averaged
    assert int(follower.averaged.n_averaged) == 4 - first
    assert torch.allclose(averaged["5.weight"], torch.stack(ends[first:]).mean(0), rtol=1e-12, atol=1e-15)
    for name, theirs in follower.averaged.module.named_parameters():  # whose 1 / n is rounded to float32
        assert torch.allclose(averaged[name], theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "images", "parts"), [("swa", 1024, 1), ("ema", 8, 1), ("ema", 1024, 2)])
def test_statistics_re_estimated_are_those_of_update_bn(name: str, images: int, parts: int) -> None:
    """Over as many images as were trained on at once."""
    follower = Follower(fresh(None), each_epoch=True)
    result = trained(name, follower, {"start": 0.0, "buffers": "re-estimated", "images": images}, parts=parts)
    ours = judged(result)
    theirs = deepcopy(ours)
    newest = torch.cat(follower.images)[-images:]
    kept = newest.roll(len(torch.cat(follower.images)) % images if images < 48 else 0, 0)  # as the ring lies
    update_bn([(chunk,) for chunk in kept.split(len(follower.images[0]) // parts)], theirs)
    assert torch.equal(kept.sort(0).values, newest.sort(0).values)
    for statistic in ("1.running_mean", "1.running_var"):
        assert torch.allclose(ours.state_dict()[statistic], theirs.state_dict()[statistic], rtol=1e-12, atol=0)
        apart = ours.state_dict()[statistic] - result.model.state_dict()[statistic]
        assert apart.abs().max() > 1e-3
    assert [module.training for module in ours.modules()] == [module.training for module in result.model.modules()]
    assert result.model[1].momentum == 0.1  # type: ignore[index]


class Tuned(nn.Sequential):
    """Its BatchNorm keeps its statistics, and what it subtracts is in no state_dict."""

    def __init__(self) -> None:
        super().__init__(*tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64))
        self.register_buffer("shade", torch.full((), 0.5, dtype=torch.float64), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self[1].eval()
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x - self.shade)


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_what_its_owner_holds_fast_is_not_averaged(name: str) -> None:
    """Statistics that do not train are not measured anew; a buffer that can not be put back is left alone."""
    net = Tuned()
    was = {key: value.clone() for key, value in net.state_dict().items() if "running" in key}
    measured = trained(name, Silent(), {"start": 0.0, "buffers": "re-estimated"}, net)
    averaged = trained(name, Silent(), {"start": 0.0, "buffers": "averaged"}, Tuned())
    assert all(torch.equal(judged(measured).state_dict()[key], value) for key, value in was.items())
    assert all(torch.allclose(averaged.averaged[key], value, rtol=1e-12) for key, value in was.items())


@pytest.mark.parametrize("name", ["ema", "swa"])
@pytest.mark.parametrize("buffers", ["copied", "averaged", "re-estimated"])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on_to_the_same_average(name: str, buffers: str, tmp_path) -> None:
    def follower(stop_after: int = -1) -> Follower:
        return Follower(fresh(None), stop_after=stop_after)

    options = {"start": 0.25, "buffers": buffers, "images": 10}
    whole = trained(name, follower(), options)
    with pytest.raises(Stopped):
        trained(name, follower(stop_after=8), options, out=tmp_path / "run")
    parts = trained(name, follower(), options, resume_from=tmp_path / "run")
    assert_bits(judged(parts), judged(whole))
    assert parts.history[-1]["validation"] == whole.history[-1]["validation"]


def test_before_its_start_nothing_is_judged_in_the_nets_place() -> None:
    class Looking(Silent):
        def finished_epoch(self, row: object) -> None:
            lengths.append(len(trainers[0].evaluated()))

        def begin(self, trainer: Trainer) -> None:
            trainers.append(trainer)

    lengths: list[int] = []
    trainers: list[Trainer] = []
    trained("ema", Looking(), {"start": 0.5})
    assert lengths[:2] == [0, 0] and lengths[2] == lengths[3] == 6


def test_the_averaged_weights_are_what_is_stored_and_evaluated(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trained("swa", Follower(fresh(None)), {"start": 0.0}, out=tmp_path / "run")
    net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
    advkit.load_weights(net, tmp_path / "run", "last")
    assert_bits(net, judged(result))
    assert advkit.load_run(tmp_path / "run").weights == "averaged"
    assert cli(["runs", "show", str(tmp_path / "run")]) == 0
    assert "* the best so far; now epoch 1, by averaged weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("plugin", "options", "epochs", "said"),
    [
        ("swa", {}, 1, "swa averages nothing: swa.start = 0.75 of 1 epochs is after the last begins; lower it"),
        ("ema", {"start": 0.95}, 10, "ema averages nothing: ema.start = 0.95 of 10 epochs is after the last begins"),
        ("swa", {}, 4, "swa takes the weights of one epoch, which is no average; lower swa.start or swa.every"),
        ("swa", {"start": 0.5, "every": 9}, 8, "swa takes the weights of one epoch, which is no average"),
        ("swa", {"start": 0.5}, 4, ""),
        ("ema", {"start": 0.75}, 4, ""),
    ],
)
def test_an_average_of_nothing_is_told_before_the_run(plugin: str, options: Any, epochs: int, said: str) -> None:
    layer = Layer("test", {"run.epochs": epochs}, {plugin: options})
    cautions = resolve([plugin], [layer]).cautions
    assert [caution.startswith(said) for caution in cautions if "swa" in caution or "ema" in caution] == [True] * bool(
        said
    )
