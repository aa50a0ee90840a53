"""Learning rates and coefficients by epoch: pure functions, and what `VALUE after decay N` becomes."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from math import cos, pi

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from advkit import Batch, OptionError, Plugin, PluginOptions, Schedule, hookimpl
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import Resolved, resolve
from advkit.config.runfile import dump, parse
from advkit.optimizers import OptimizerSettings
from advkit.options import OptionModel, option, validate
from advkit.rates import RateSettings


class Weighted(OptionModel):
    lam: Schedule = option(1.0, help="a coefficient")


def rates(**values: object) -> OptimizerSettings:
    return validate(OptimizerSettings, values, where="optimizer")


def iseat(lam: object = "0.1 after decay 1", **given: object) -> Resolved:
    return resolve(
        ["lsiw"], [Layer("test", {k.replace("__", "."): v for k, v in given.items()}, {"lsiw": {"lam": lam}})]
    )


# ---------------------------------------------------------------------- learning rates

SHARES = st.lists(st.integers(1, 999), min_size=0, max_size=4, unique=True).map(lambda many: sorted(many))


@settings(deadline=None, max_examples=200)
@given(thousandths=SHARES, epochs=st.integers(1, 400))
@example(thousandths=[290], epochs=100)  # 0.29 * 100 is 28.999...
@example(thousandths=[500, 750], epochs=1)
def test_shares_decay_at_the_first_epoch_at_or_after_them(thousandths: list[int], epochs: int) -> None:
    chosen = rates(lr=0.3, milestones=[each / 1000 for each in thousandths])
    for epoch in range(epochs):
        passed = sum(Fraction(epoch, epochs) >= Fraction(each, 1000) for each in thousandths)
        assert chosen.lr_at(epoch, epochs) == pytest.approx(0.3 * 0.1**passed, rel=1e-12)
        assert sum(epoch >= start for start in chosen.decays(epochs)) == passed


@settings(deadline=None, max_examples=100)
@given(milestones=st.lists(st.integers(1, 120), max_size=4, unique=True).map(sorted), epochs=st.integers(1, 130))
def test_whole_epochs_decay_at_that_epoch_whatever_the_length(milestones: list[int], epochs: int) -> None:
    chosen = rates(milestones=milestones, decay=0.5)
    assert chosen.decays(epochs) == tuple(milestones)
    for epoch in range(epochs):
        assert chosen.lr_at(epoch, epochs) == 0.1 * 0.5 ** sum(epoch >= each for each in milestones)


def test_cosine_and_constant() -> None:
    cosine = rates(schedule="cosine", lr=0.2)
    assert [cosine.lr_at(epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.2 * 0.5 * (1 + cos(pi * t)) for t in (0, 0.25, 0.5, 0.75)]
    )
    assert cosine.lr_at(0, 4) == 0.2 and 0 < cosine.lr_at(3, 4) < 0.05
    assert {rates(schedule="constant", lr=0.2).lr_at(epoch, 4) for epoch in range(4)} == {0.2}
    assert cosine.decays(100) == rates(schedule="constant").decays(100) == ()
    assert rates().lr_at(19, 20) == pytest.approx(0.001), "the default decays"


# ---------------------------------------------------------------------- rates by step


def every_rate(epochs: int, steps: int, **values: object) -> list[float]:
    chosen = rates(**values)
    return [chosen.lr_at(epoch, epochs, step, steps) for epoch in range(epochs) for step in range(steps)]


def place(epochs: int, steps: int) -> np.ndarray:
    """t = epoch + (i + 1) / len(train_batches), as the codes of Rice et al. and of AWP."""
    return np.array([epoch + (i + 1) / steps for epoch in range(epochs) for i in range(steps)])


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (6, 7), (30, 3)])
def test_linear_pieces_and_cyclic_are_those_of_the_papers_codes(epochs: int, steps: int) -> None:
    t = place(epochs, steps)
    linear = np.interp(t, [0, epochs / 3, epochs * 2 / 3, epochs], [0.2, 0.2, 0.02, 0.002])
    assert every_rate(epochs, steps, lr=0.2, schedule="linear") == pytest.approx(linear)
    cyclic = np.interp(t, [0, 0.4 * epochs, epochs], [0, 0.2, 0])
    assert every_rate(epochs, steps, lr=0.2, schedule="cyclic", peak=0.4) == pytest.approx(cyclic, abs=1e-12)
    points = [[0, 0], [0.4, 1], [1, 0]]
    assert every_rate(epochs, steps, lr=0.2, schedule="linear", points=points) == pytest.approx(cyclic, abs=1e-12)


def test_cycles_follow_each_other() -> None:
    once, thrice = (every_rate(2 * n, 10, schedule="cyclic", cycles=n, peak=0.5) for n in (1, 3))
    assert thrice == pytest.approx(3 * once, abs=1e-12) and max(once) == 0.1


@pytest.mark.parametrize(("epochs", "steps", "peak"), [(5, 10, 0.3), (1, 3, 0.5), (7, 1, 0.3), (3, 4, 0.05)])
def test_one_cycle_is_torchs(epochs: int, steps: int, peak: float) -> None:
    """From the first step to the last, and where it rises for less than a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=epochs * steps, pct_start=peak, cycle_momentum=False
    )
    expected = []
    for _ in range(epochs * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    ours = every_rate(epochs, steps, lr=0.3, schedule="one-cycle", peak=peak)
    assert ours == pytest.approx(expected, rel=1e-9)
    assert ours[-1] == pytest.approx(0.3 / 25e4)


def test_cosine_moves_by_step_where_that_is_said() -> None:
    by_epoch, by_step = (every_rate(4, 5, schedule="cosine", per=per) for per in ("schedule", "step"))
    assert by_epoch == every_rate(4, 5, schedule="cosine", per="epoch") and len(set(by_epoch)) == 4
    assert by_step == pytest.approx(0.05 * (1 + np.cos(pi * place(4, 5) / 4)), abs=1e-12)


def test_warm_up_is_a_factor_on_whatever_the_schedule_says() -> None:
    for schedule in ("piecewise", "cosine", "linear", "one-cycle", "cyclic", "constant"):
        plain, warm = (every_rate(6, 5, schedule=schedule, warmup=warmup) for warmup in (0.0, 2.5))
        assert warm == pytest.approx(np.array(plain) * np.minimum(1, place(6, 5) / 2.5), abs=1e-12)
    by_epoch = every_rate(6, 5, schedule="constant", warmup=3, per="epoch")
    assert by_epoch[::5] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1]) and len(set(by_epoch)) == 3


@pytest.mark.parametrize("schedule", ["piecewise", "cosine", "constant"])
def test_no_warm_up_is_the_rate_bit_for_bit(schedule: str) -> None:
    chosen = rates(schedule=schedule, lr=0.3)
    for epoch in range(9):
        assert {chosen.lr_at(epoch, 9, step, 7) for step in range(7)} == {chosen.lr_at(epoch, 9)}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"schedule": "cyclic", "per": "epoch"},
            "optimizer.schedule = cyclic changes the rate after every step; leave out per=epoch.",
        ),
        *(
            (
                {"points": wrong},
                f"optimizer.points = {wrong!r} must be pairs of a share of the run, rising from 0 to 1, and a factor "
                ">= 0, such as [[0, 1], [1, 0]].",
            )
            for wrong in ([[0, 1]], [[0, 1], [0.5, 0]], [[0.1, 1], [1, 0]], [[0, 1], [1, -1]], [[0, 1], [1]], [])
        ),
    ],
)
def test_rates_that_are_none(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        rates(**values)
    assert str(refusal.value) == sentence


def test_a_warm_up_beyond_the_run_is_a_caution() -> None:
    said = "optimizer.warmup is 30 epochs long: a run of 20 never reaches the full rate"
    assert resolve((), [Layer("test", {"optimizer.warmup": 30})]).cautions == (said,)


@pytest.mark.parametrize(
    "wrong", [[0.5, 75], [1.0], [0], [-1], [0.75, 0.5], [3, 3], [True], 0.5, ["1/2"], [75.5], None]
)
def test_milestones_are_shares_or_epochs_and_not_both(wrong: object) -> None:
    with pytest.raises(OptionError) as refusal:
        rates(milestones=wrong)
    assert str(refusal.value) == (
        f"optimizer.milestones = {wrong!r} must be rising shares of the run between 0 and 1, such as [0.5, 0.75], "
        "or rising epochs, such as [75, 90]."
    )


def test_milestones_beyond_the_run_are_a_caution() -> None:
    said = "optimizer.milestones start at 75, so in 20 epochs nothing decays"
    beyond = resolve((), [Layer("test", {"optimizer.milestones": [75, 90]})])
    assert said in beyond.cautions
    late = resolve((), [Layer("test", {"optimizer.milestones": [75, 90, 95], "run.epochs": 76})])
    assert late.cautions == ("optimizer.milestones 90, 95 are beyond the 76 epochs of the run",)
    within = resolve((), [Layer("test", {"optimizer.milestones": [75, 90], "run.epochs": 91})])
    one_epoch = resolve((), [Layer("test", {"run.epochs": 1})])  # shares are meant for any length
    assert not within.cautions and not one_epoch.cautions


def test_a_setting_of_another_schedule_is_a_caution() -> None:
    typed = {"optimizer.schedule": "cosine", "optimizer.milestones": [7], "optimizer.decay": 0.1}
    said = "optimizer.milestones plays no part under optimizer.schedule=cosine"
    idle = ["optimizer.per plays no part under optimizer.schedule=piecewise"]
    assert [RateSettings(per="step", **how).cautions() for how in ({}, {"warmup": 2})] == [idle, []]
    none = "optimizer.warmup=1 plays no part under optimizer.per=epoch, by which the first epoch of a warm-up of n has "
    none += "1/n of the rate; leave out per=epoch for one that rises step by step"
    assert [RateSettings(per="epoch", warmup=epochs).cautions() for epochs in (1, 1.5)] == [[none], []]
    assert resolve((), [Layer("test", typed)]).cautions == (said,), "and of what stands at its default nothing is said"
    assert not resolve((), [Layer("test", {"optimizer.milestones": [7]})]).cautions


# ---------------------------------------------------------------------- coefficients after a decay


def test_after_decay_becomes_epochs_of_this_run() -> None:
    def lam(resolved: Resolved) -> object:
        return resolved.values()["lsiw.lam"]

    assert lam(iseat()) == [[0, 0.0], [10, 0.1]]
    assert lam(iseat(run__epochs=200)) == [[0, 0.0], [100, 0.1]]
    assert lam(iseat(run__epochs=400, optimizer__milestones=[200, 300])) == [[0, 0.0], [200, 0.1]]
    assert lam(iseat("8/255 after decay 2", run__epochs=200)) == [[0, 0.0], [150, 8 / 255]]
    assert lam(iseat("eps  after\tdecay 1 ", attack__eps=0.25)) == [[0, 0.0], [10, 0.25]]


@settings(deadline=None, max_examples=100)
@given(thousandths=SHARES.filter(bool), epochs=st.integers(1, 300), number=st.integers(1, 4))
def test_it_is_on_exactly_when_so_many_decays_have_passed(thousandths: list[int], epochs: int, number: int) -> None:
    chosen = rates(milestones=[each / 1000 for each in thousandths])
    written = {"lam": f"0.25 after decay {number}"}
    if number > len(thousandths):
        with pytest.raises(OptionError, match="after a decay that this run has not"):
            validate(Weighted, written, where="p", decays=chosen.decays(epochs))
        return
    lam = validate(Weighted, written, where="p", decays=chosen.decays(epochs)).lam
    for epoch in range(epochs):
        decayed = chosen.lr_at(epoch, epochs) <= 0.1 * 0.1**number * 1.000001
        assert lam.at(epoch) == (0.25 if decayed else 0)


def test_the_run_file_brings_the_same_schedule_back() -> None:
    once = iseat(run__epochs=30, optimizer__milestones=[7, 9], optimizer__schedule="piecewise")
    table = tomllib.loads(dump(once))
    assert table["optimizer"]["milestones"] == [7, 9] and table["options"]["lsiw"]["lam"] == [[0, 0.0], [7, 0.1]]
    again = Resolved.of(Request((parse(table, "run.toml"),)))
    assert dump(again) == dump(once)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"lam": "0.1 after decay 3"},
            "lsiw.lam = '0.1 after decay 3' is after a decay that this run has not: its learning rate has 2 by "
            "optimizer.schedule and optimizer.milestones; give epochs, such as [[0, 0.0], [10, 0.1]].",
        ),
        (
            {"optimizer__schedule": "cosine"},
            "lsiw.lam = '0.1 after decay 1' is after a decay that this run has not: its learning rate has 0 by "
            "optimizer.schedule and optimizer.milestones; give epochs, such as [[0, 0.0], [10, 0.1]].",
        ),
        (
            {"lam": "0.1 after the decay 1"},
            "lsiw.lam = '0.1 after the decay 1' is not of the form 'VALUE after decay N', such as '0.1 after decay 1'.",
        ),
        (
            {"lam": "0.1 after decay 0"},
            "lsiw.lam = '0.1 after decay 0' is not of the form 'VALUE after decay N', such as '0.1 after decay 1'.",
        ),
        (
            {"lam": "much after decay 1"},
            "lsiw.lam = 'much after decay 1' is not a number, a fraction such as 8/255, or a multiple of eps such as "
            "'eps/4'.",
        ),
        (
            {"lam": "-0.1 after decay 1"},
            "lsiw.lam = '-0.1 after decay 1' must have values from 0 to 3.4e38, the largest number of float32.",
        ),
    ],
)
def test_refusals(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        iseat(**given)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence


def test_without_a_run_there_is_no_decay() -> None:
    with pytest.raises(OptionError) as refusal:
        validate(Weighted, {"lam": "0.1 after decay 1"}, where="p")
    assert str(refusal.value) == (
        "p.lam = '0.1 after decay 1' is relative to the decays of the learning rate, which are not known here; "
        "give epochs, such as [[0, 0.0], [10, 0.1]], or let a Step know them by its settings run.epochs and "
        "optimizer.milestones."
    )


def test_the_weight_of_a_companion_does_not_ask_for_the_decays() -> None:
    """Whether `av-rank` is there already is asked before any setting is known."""
    options = {"lsiw": {"lam": "0.1 after decay 1"}, "awp": {"gamma": "0.007 after decay 1"}}
    resolved = resolve(["lsiw", "av-rank", "awp"], [Layer("test", {}, options)])
    assert resolved.values()["awp.gamma"] == [[0, 0.0], [10, 0.007]]


def test_points_of_schedules_beyond_the_run_are_a_caution() -> None:
    def said(points: object, epochs: int) -> list[str]:
        layer = Layer("test", {"run.epochs": epochs}, {"lsiw": {"lam": points}})
        return [one for one in resolve("lsiw", [layer]).cautions if one.startswith("lsiw.lam changes")]

    never = [[0, 0.0], [10, 0.1], [12, 0.2]]
    beyond = "lsiw.lam changes at {}, beyond the {} epochs of the run"
    assert said(never, 5) == [beyond.format("10, 12", 5) + ", and is 0 in all of them"]
    assert said(never, 11) == [beyond.format(12, 11)]
    assert said([[0, 0.1], [5, 0.0]], 5) == [beyond.format(5, 5)], "epochs count from 0"
    assert not said(never, 13) and not said("0.1 after decay 1", 20) and not said(0.0, 5)


def test_a_rate_that_is_never_above_0_is_a_caution() -> None:
    rising = RateSettings(schedule="linear", points=[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]], per="epoch")
    assert rising.cautions(1) == ["optimizer.points have the learning rate 0 in all 1 epochs, so nothing is trained"]
    assert not rising.cautions(2) and not rising.model_copy(update={"per": "step"}).cautions(1)


class Limited(OptionModel):
    lam: Schedule = option(0.5, ge=0.25, lt=2, help="a coefficient")
    n: int | None = option(3, help="a number, or None, which no TOML has")
    of: dict[str, int | None] = option({}, help="several")
    free: int | None = option(None, help="None by default, which a run file leaves out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lam": 0.1}, "q.lam = 0.1 must be greater than or equal to 0.25."),
        ({"lam": [[0, 0.5], [3, 2.0]]}, "q.lam = [[0, 0.5], [3, 2.0]] must be less than 2."),
        ({"n": None}, "q.n = None has None, which no run file holds; give another value."),
        ({"of": {"a": None}}, "q.of = {'a': None} has None, which no run file holds; give another value."),
    ],
)
def test_limits_hold_for_every_value_and_none_is_no_value(given: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        validate(Limited, given, where="q")
    assert str(refusal.value) == said
    fine = validate(Limited, {"lam": [[0, 0.25], [3, 1.9]], "free": None}, where="q")
    assert fine.lam.at(3) == 1.9 and fine.free is None


def test_the_owner_of_a_plugin_object_gives_none_no_more_than_others() -> None:
    class Some(PluginOptions):
        n: int | None = option(3, help="a number, or None, which no TOML has")
        free: int | None = option(None, help="None by default")

    class Q(Plugin):
        name, Options = "q", Some

        @hookimpl
        def extra_regularizer(self, batch: Batch) -> Tensor:
            return batch.x.mean()

    assert resolve([Q(Some(free=None))]).composition
    with pytest.raises(OptionError, match=r"q\.n = None has None, which no run file holds; give another value"):
        resolve([Q(Some(n=None))])
