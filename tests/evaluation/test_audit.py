"""The audit: what trips each check, what it leaves alone, and the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from dead import Dead
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import advkit
from advkit.cli import compare as cli_compare, evaluate as cli_evaluate
from advkit.cli.main import run
from advkit.errors import OptionError
from advkit.evaluation.attacks import Pgd, parse_attack
from advkit.evaluation.audit import RULES, AuditResult, Check, audit, figures, short
from advkit.evaluation.audit.bench import Bench, Trace, bench
from advkit.evaluation.audit.brief import from_verdicts
from advkit.evaluation.audit.checks import hopeless
from advkit.evaluation.figure import Figure, above, gap, jackknife, least, share
from advkit.evaluation.results import Verdicts
from advkit.evaluation.soundness import BY_BATCH
from advkit.evaluation.statistics import worse_than_guessing
from advkit.evaluation.verdicts import verdicts
from advkit.losses import margin
from advkit.modules import mode
from advkit.studies.paired_records import ComparedRun, Comparison
from advkit.studies.transfer import Transfer

EPS = 0.1


@pytest.fixture(scope="module")
def masks() -> ModuleType:
    """The nets of the study."""
    file = Path(__file__).parents[2] / "results" / "masked_nets.py"
    spec = importlib.util.spec_from_file_location("masked_nets", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["masked_nets"] = module
    spec.loader.exec_module(module)
    return module


def linear(classes: int = 2) -> nn.Module:
    """w (x - 1/2), w of +-1 and 0 in rows that sum to next to nothing: both classes are found in the box."""
    layer = nn.Linear(16, classes)
    waves = torch.arange(1, classes * 16 + 1, dtype=torch.float32).mul(2.7).sin().view(classes, 16)
    with torch.no_grad():
        layer.weight.copy_(waves.sign() if classes == 2 else 2 * waves)
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def labelled(net: nn.Module, count: int = 24) -> advkit.Dataset:
    """Grey images (count, 1, 4, 4) in [0.25, 0.75], where no ball of 0.1 meets the box, labelled as `net` says."""
    noise = torch.randint(64, 192, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        logits = net(noise / 255)
    return advkit.Dataset("grey", noise, logits.argmax(1), tuple(f"class {k}" for k in range(logits.shape[1])))


def audited(net: nn.Module, data: advkit.Dataset | None = None, **options: object) -> AuditResult:
    return audit(net, data or labelled(linear()), eps=EPS, **options)  # type: ignore[arg-type]


def figure(found: AuditResult, name: str) -> float:
    value = next(check.figure for check in found.checks if check.name == name)
    assert value is not None
    return value


# ---------------------------------------------------------------------- a linear net


def test_a_linear_net_of_known_robustness_trips_nothing() -> None:
    net = linear()
    data = labelled(net, 100)
    weight = net[1].weight  # type: ignore[index]
    with torch.no_grad():
        logits = net(data.images / 255)
    reach = EPS * (weight[0] - weight[1]).abs().sum()
    robust = float(((logits[:, 0] - logits[:, 1]).abs() > reach).float().mean())
    assert 0.1 < robust < 0.9  # or the checks below had nothing to decide
    found = audited(net, data)
    assert found.alarms == []
    for name in (
        *("zero-gradient", "restarts", "black-box", "random-search", "loss-gap", "incomplete-optimisation"),
        *("silent-success", "one-step", "useless-gradient", "large-eps", "steps-accuracy", "eps-accuracy"),
    ):
        assert figure(found, name) == pytest.approx(0, abs=1e-6), name
    with bench(net, data, eps=EPS, norm="linf", seed=0) as table:
        assert table.share(table.pgd.right[-1]).value == pytest.approx(robust)
        assert len(table.unbroken) == round(robust * len(data))


def test_apgd_t_needs_four_classes_and_says_so() -> None:
    check = next(check for check in audited(linear()).checks if check.name == "apgd-t-gap")
    assert (check.figure, check.alarm) == (None, None)
    assert "four classes" in check.sentence


def test_in_l2_only_square_is_left_out() -> None:
    found = audited(linear(), norm="l2")
    assert [check.name for check in found.checks if check.alarm is None] == ["black-box", "apgd-t-gap"]
    assert found.alarms == []


# ---------------------------------------------------------------------- what trips


def test_logits_times_a_thousand(masks: ModuleType) -> None:
    net = linear(4)
    found = audited(masks.scaled(net, 1e4), labelled(net))
    assert {"zero-gradient", "loss-gap", "useless-gradient", "apgd-t-gap"} <= set(found.alarms)
    assert "apgd-t-gap" not in audited(net, labelled(net)).alarms  # the control


def test_quantised_pixels(masks: ModuleType) -> None:
    masked = masks.quantised(linear(), 4)
    source = Transfer("transfer:plain", linear(), Pgd("pgd-20", 20))
    found = audited(masked, labelled(masked), transfer=source)
    tripped = {"zero-gradient", "steps-loss", "eps-loss", "large-eps", "black-box", "transfer", "useless-gradient"}
    assert tripped <= set(found.alarms)
    assert figure(found, "zero-gradient") == 1
    assert figure(found, "large-eps") == 1
    honest = audited(linear(), transfer=source)
    assert figure(honest, "transfer") == 0


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.detach())
        return logits


class Quantized(Cut):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(Dead.apply(x))  # type: ignore[no-untyped-call]
        return logits


@pytest.mark.usefixtures("quick_audit")
@pytest.mark.parametrize("kind", [Cut, Quantized])
def test_a_net_without_any_gradient_is_found_out_not_a_crash(kind: type[nn.Module]) -> None:
    found = audited(kind())
    assert {"zero-gradient", "black-box"} <= set(found.alarms)


@pytest.mark.parametrize(("mask", "amount"), [("dropping", 0.05), ("noisy", 0.05)])
def test_randomness_at_test_time(masks: ModuleType, mask: str, amount: float) -> None:
    data = labelled(linear(), 100)
    found = audited(getattr(masks, mask)(linear(), amount), data)
    assert "non-determinism" in found.alarms
    assert len(found.alarms) >= 2
    again = audited(getattr(masks, mask)(linear(), amount), data)
    assert found == again


def test_a_net_at_chance_is_said_to_be_and_nothing_is_attacked(masks: ModuleType) -> None:
    found = audited(masks.shifted(linear(), 1))
    said = "the net is at chance, 10 of 24 images right, 0.400 on average by class where guessing gets up to 0.693"
    assert found.hopeless == said
    assert found.alarms == ["non-determinism"] and found.withstood == {}
    said = next(check for check in found.checks if check.name == "large-eps")
    assert said.alarm is None and said.sentence == f"Not checked: {found.hopeless}."


@pytest.mark.parametrize("shift", [1, 2])
def test_a_net_whose_labels_are_shifted_is_worse_than_guessing(shift: int) -> None:
    grey = labelled(linear(4), 60)
    labels = (grey.labels + shift) % 4
    labels[0] = grey.labels[0]  # one image is right
    data = advkit.Dataset("grey", grey.images, labels, grey.classes)
    said = audited(linear(4), data).hopeless
    assert said and said.startswith("the net is worse than guessing, 1 of 60 images right, 0.0")
    assert said.endswith("guessing gets 0.250, as where the labels or the order of the classes are shifted")


def test_guessing_is_seldom_called_worse_than_guessing() -> None:
    """By 95 % from below, so for one in 40 at most; answers in classes that no image has say nothing."""
    draw = torch.Generator().manual_seed(0)
    for labels in (torch.arange(100) % 4, (torch.arange(100) % 10).clamp(max=3)):
        for shares in (torch.ones(4), torch.tensor([0.5, 0.1, 0.2, 0.2])):
            answers = shares.multinomial(400 * 100, replacement=True, generator=draw).view(400, 100)
            worse = sum(worse_than_guessing(row == labels, labels, 4) for row in answers)
            assert worse <= 400 * 0.025 + 2 * math.sqrt(400 * 0.025)
    none = torch.zeros(100, dtype=torch.bool)
    assert worse_than_guessing(none, torch.arange(100) % 4, 4)
    assert not worse_than_guessing(none, torch.arange(100) % 4, 5)


class Collapsed(nn.Module):
    """One class for every image, with a gradient that is right."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = linear(classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits + 60 * torch.eye(logits.shape[1])[0]


@pytest.mark.parametrize(("classes", "largest"), [(10, 12), (2, 54)])
def test_one_class_for_all_withstands_the_whole_box_and_is_said(
    classes: int, largest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = labelled(linear(classes), 60)
    labels = torch.where(torch.arange(60) < largest, 0, torch.arange(60) % (classes - 1) + 1)
    data = advkit.Dataset("grey", grey.images, labels, grey.classes)
    found = audited(Collapsed(classes), data)
    said = f"the net answers 'class 0' to all 60 images, right for {largest} of them"
    assert (found.hopeless, found.alarms, found.withstood) == (said, [], {})
    checks = short(Collapsed(classes), data, judged(Collapsed(classes), data, "clean", "pgd-10", "cw-10"), eps=EPS)
    assert hopeless(checks) == said and not any(check.alarm for check in checks)
    record: dict[str, Any] = {"n": 60, "norm": "linf", "attacks": [], "audit": checks, "run": "r"}
    evaluation = advkit.Evaluation(**record)
    cli_evaluate.show(evaluation)
    one = {"checkpoint": "best", "epoch": 0, "suspect": False, "alarms": [], "worst_case": None}
    rows = [ComparedRun(**{**record, **one}), ComparedRun(**{**record, **one, "checkpoint": "last"})]
    heads: dict[str, Any] = {
        "split": "test",
        "n": 60,
        "images": "",
        "norm": "linf",
        "eps": EPS,
        "seed": 0,
        "versions": {},
    }
    cli_compare.show(Comparison(**heads, runs=rows, best_minus_last=[]))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"There is nothing to be robust: {said}." in shown
    assert f"There is nothing to be robust in r best = last: {said}." in shown and "no alarm" not in shown
    other = short(linear(classes), grey, {}, eps=EPS)  # the control: a net that knows its classes
    assert hopeless(other) is None and hopeless([]) is None
    assert next(check for check in other if check.name == "large-eps").alarm is False


def test_images_of_one_class_do_not_tell_what_the_whole_box_holds() -> None:
    grey = labelled(linear(), 60)
    data = advkit.Dataset("grey", grey.images, torch.zeros(60).long(), grey.classes)
    checks = {check.name: check for check in short(Collapsed(2), data, {}, eps=EPS)}
    assert (
        checks["large-eps"].sentence
        == "Not checked: the net answers 'class 0' to all images, and may do so everywhere."
    )
    assert checks["zero-gradient"].alarm is False  # attacked all the same
    kept = grey.labels == 0  # of one class, and answered so by a net that is masked: other checks see it
    one = advkit.Dataset("grey", grey.images[kept], grey.labels[kept], grey.classes)
    assert "zero-gradient" in [check.name for check in short(Cut(), one, {}, eps=EPS) if check.alarm]


def test_a_fast_wave_shatters_the_gradient(masks: ModuleType) -> None:
    found = audited(masks.shattered(linear(), 500))
    assert {"useless-gradient", "random-search"} & set(found.alarms)


def test_probabilities_instead_of_logits(masks: ModuleType) -> None:
    found = audited(masks.softened(linear(), 1e-3))
    assert {"probabilities", "zero-gradient"} <= set(found.alarms)


class Trap(nn.Module):
    """The mean m of an image decides: a slope down, a wall at 0.52, an abyss behind it at 0.59."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        m = x.flatten(1).mean(1) - 0.5
        value = self.one - 10 * m + 200 * (m - 0.02).relu() - 4000 * (m - 0.09).relu()
        return torch.stack([value, torch.zeros_like(value)], 1)


def test_one_step_that_beats_many() -> None:
    grey = advkit.Dataset("grey", torch.full((3, 1, 4, 4), 127, dtype=torch.uint8), torch.zeros(3).long(), ("a", "b"))
    found = audited(Trap(), grey)
    assert figure(found, "one-step") == 1
    assert {"one-step", "black-box"} <= set(found.alarms)


def fake(right: list[list[int]], loss: list[list[float]] | None = None) -> Bench:
    """A bench whose PGD went so: an iterate a row, an image a column."""
    rows = torch.tensor(right, dtype=torch.bool)
    losses = torch.tensor(loss) if loss else torch.zeros(rows.shape)
    trace = Trace(losses, rows, torch.zeros(rows.shape, dtype=torch.bool)[1:], torch.zeros(rows.shape[1], 1, 1, 1))
    return SimpleNamespace(pgd=trace, n=rows.shape[1], share=lambda chosen: share(int(chosen.sum()), rows.shape[1]))  # type: ignore[return-value]


def test_silent_success_and_steps_that_help_the_net() -> None:
    falling = [[1, 1]] * 5 + [[0, 1]] * 46
    back_again = [[1, 1]] * 3 + [[0, 1]] * 4 + [[1, 1]] * 44
    assert (figures.silent(fake(falling)).value, figures.steps_accuracy(fake(falling)).value) == (0, 0)
    assert (figures.silent(fake(back_again)).value, figures.steps_accuracy(fake(back_again)).value) == (0.5, 0.5)


def test_incomplete_optimisation_is_what_the_last_ten_steps_bring() -> None:
    climbing = [[float(step)] for step in range(51)]
    flat = [[min(float(step), 20.0)] for step in range(51)]
    stuck = [[1.0]] * 51
    stands, falls = [[1]] * 51, [[0]] * 51
    assert figures.incomplete(fake(stands, climbing)).value == pytest.approx(0.2)
    assert figures.incomplete(fake(stands, flat)).value == 0
    assert figures.incomplete(fake(stands, stuck)).value == 0
    assert figures.incomplete(fake(falls, climbing)).value == 0  # a broken image needs no more steps


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=6))
def test_falls_are_shares_of_the_range(losses: list[float]) -> None:
    def fall(values: list[float]) -> float:
        return float(figures.relative_fall(torch.tensor(values, dtype=torch.float64)[:, None]))

    assert 0 <= fall(losses) <= 1
    assert fall(sorted(losses)) == (0 if max(losses) > min(losses) else 1)


# ---------------------------------------------------------------------- what it leaves alone


@pytest.mark.usefixtures("quick_audit")
def test_net_modes_and_global_numbers_are_left_alone(tiny_net: Callable[..., nn.Sequential]) -> None:
    net = tiny_net(batch_norm=True, dropout=0.5)
    net.train()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    images = torch.randint(0, 256, (6, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with mode(net, training=False), torch.no_grad():
        labels = net(images / 255).argmax(1)
    data = advkit.Dataset("noise", images, labels, ("a", "b", "c"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    state, gradients = torch.get_rng_state(), [parameter.requires_grad for parameter in net.parameters()]
    audited(net, data)
    short(net, data, {}, eps=EPS)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == gradients
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_net_that_is_never_right_is_not_judged() -> None:
    data = labelled(linear())
    wrong = advkit.Dataset(data.name, data.images, 1 - data.labels, data.classes)
    found = audited(linear(), wrong)
    assert found.alarms == []
    assert {check.alarm for check in found.checks} == {None}


# ---------------------------------------------------------------------- the short form


def judged(net: nn.Module, data: advkit.Dataset, *names: str) -> dict[str, Verdicts]:
    return verdicts(net, data, [advkit_attack(name) for name in names], eps=EPS, norm="linf")


def advkit_attack(name: str) -> Pgd:
    from advkit.evaluation.attacks import parse_attack

    return parse_attack(name)  # type: ignore[return-value]


def test_the_short_form_uses_the_verdicts_and_changes_none(masks: ModuleType) -> None:
    data = labelled(linear())
    for net, expected in (
        (linear(), set[str]()),
        (masks.scaled(linear(), 1e4), {"zero-gradient", "loss-gap", "useless-gradient"}),
    ):
        found = judged(net, data, "fgsm", "pgd-10", "cw-10", "square")
        before = {name: each.robust.clone() for name, each in found.items()}
        checks = short(net, data, found, eps=EPS)
        assert expected == {check.name for check in checks if check.alarm} & (expected or set(RULES))
        assert all(torch.equal(before[name], each.robust) for name, each in found.items())
        left_out = {check.name for check in checks if check.alarm is None}
        assert left_out == {"transfer", "apgd-t-gap"}


def test_a_pgd_that_is_too_short_to_count_is_named_with_the_steps_that_would_do() -> None:
    def asked(*names: str) -> dict[str, str]:
        found = from_verdicts(list(judged(linear(), labelled(linear()), *names).values()))
        return {name: answer.rpartition("has not ")[2] for name, answer in found.items() if isinstance(answer, str)}

    said = asked("fgsm", "pgd-3", "cw-10")
    assert said["apgd-t-gap"] == "all of pgd-K and apgd-t; pgd-3 takes too few steps, 10 would do"
    assert said["one-step"] == "all of pgd-K and fgsm; pgd-3 takes too few steps, 10 would do"
    assert said["loss-gap"] == "both pgd-K and cw-K of the same steps; pgd-3 takes too few steps, 5 would do"
    assert said["black-box"] == "all of pgd-K, cw-K and square; pgd-3 takes too few steps, 10 would do"
    assert asked("pgd-3", "pgd-10", "cw-10")["apgd-t-gap"] == "all of pgd-K and apgd-t", "long ones are there"


def test_the_short_form_names_the_attack_that_breaks_the_net(masks: ModuleType) -> None:
    net = masks.scaled(linear(), 1e4)
    data = labelled(net)
    checks = short(net, data, judged(net, data, "clean", "pgd-10", "cw-10"), eps=EPS)
    assert any(check.alarm for check in checks)
    for check in checks:
        assert ("Of the attacks tried cw-10 breaks the net most" in check.sentence) == bool(check.alarm)


def test_without_attacks_the_short_form_says_what_is_missing() -> None:
    checks = {check.name: check for check in short(linear(), labelled(linear()), {}, eps=EPS)}
    assert "pgd-K, cw-K and square" in checks["black-box"].sentence
    assert checks["zero-gradient"].alarm is False


def test_what_square_finds_is_held_against_both_losses() -> None:
    """A margin attack that finds it too shows that gradients lead there; PGD on one loss alone shows nothing."""
    n = torch.arange(10)

    def verdict(name: str, robust: torch.Tensor, **more: object) -> Verdicts:
        settings = {"name": name, "norm": "linf", "eps": EPS, **more}
        return Verdicts(settings, robust)

    walk = {"steps": 20, "step_size": EPS / 5}
    pgd = verdict("pgd-20", n < 9, loss="cross-entropy", **walk)
    square = dataclasses.replace(verdict("square", n < 6), access="scores")
    for other, expected in ((None, None), (n < 9, 0.3), (n < 6, 0.0)):
        cw = [] if other is None else [verdict("cw-20", other, loss="margin", **walk)]
        found = from_verdicts([pgd, square, *cw])["black-box"]
        assert found.value == expected if isinstance(found, Figure) else expected is None
    apgd = verdict("apgd-t", n < 6, parts=["apgd-t"])
    cw20 = verdict("cw-20", n < 9, loss="margin", **walk)
    assert from_verdicts([pgd, cw20, apgd, square])["black-box"] == share(0, 10)


def test_the_short_form_costs_what_it_says() -> None:
    net = linear()
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    net.register_full_backward_hook(counted)
    short(net, labelled(net), {}, eps=EPS)
    assert 0 < count <= 25


# ---------------------------------------------------------------------- checks and the command


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(RULES)), st.one_of(st.floats(), st.integers(0, 30), st.just("a reason")))
def test_every_outcome_is_json_and_a_sentence(name: str, value: float | str) -> None:
    measured = share(value, 30) if isinstance(value, int) else value
    check = RULES[name].judge(Figure(value, value - 0.1, value + 0.1, 30) if isinstance(value, float) else measured)
    record = json.loads(json.dumps(check.as_dict(), allow_nan=False))
    assert list(record) == ["name", "figure", "threshold", "alarm", "sentence", "interval", "count", "of", "alarm_from"]
    assert record["sentence"].endswith(".") and "{" not in record["sentence"]
    assert (check.alarm is None) == (check.figure is None)
    if check.figure is not None:
        low = check.interval[0] if check.interval else 0
        assert check.alarm == (low > RULES[name].threshold and (check.count is None or check.count >= 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.alarm = None  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "run"
    advkit.train(eps=0.15, epochs=3, settings={"attack.steps": 0, "model.width": 6}, out=out)
    return out


@pytest.mark.usefixtures("quick_audit")
def test_the_command_keeps_what_it_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["audit", str(folder), "--n", "4", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "audit.json").read_text())
    assert {"run", "checkpoint", "split", "n", "norm", "eps", "checks", "alarms"} <= printed.keys()
    assert [check["name"] for check in printed["checks"]] == list(RULES)
    assert printed["alarms"] == [check["name"] for check in printed["checks"] if check["alarm"]]
    assert (printed["n"], printed["checkpoint"], printed["norm"], printed["eps"]) == (
        4,
        "last",  # nothing was attacked in training
        "linf",
        0.15,
    )
    assert code == (3 if printed["alarms"] else 0)


@pytest.mark.usefixtures("quick_audit")
def test_a_masked_file_of_weights_ends_with_three(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from advkit.studies.subject import of_run

    model = of_run(folder).model
    with torch.no_grad():
        model[-1].weight.mul_(1e4)  # type: ignore[index]
        model[-1].bias.mul_(1e4)  # type: ignore[index]
    file = tmp_path / "net.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    typed = ["--model", "small-cnn", "--set", "model.width=6", "--dataset", "digits", "--eps", "0.15", "--n", "4"]
    assert run(["audit", str(file), *typed]) == 3
    out, err = capsys.readouterr()
    assert "ALARM" in out and "zero-gradient" in err
    said = [line for line in err.splitlines() if not line.startswith("auditing: ")]  # on a slow machine
    assert len(said) == 1 and said[0].startswith("Error: ")


def test_what_can_not_be_audited_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", str(folder), "--eps", "0"]) == 2
    assert "--eps" in capsys.readouterr().err
    assert run(["audit", str(folder), "--transfer", str(folder / "none")]) == 4
    assert run(["audit", str(folder / "none")]) == 4
    assert Check("x", None, 0.0, None, "y").as_dict()["alarm"] is None
    with pytest.raises(OptionError):
        figures.ApgdT().perturb(  # the exception that apgd-t-gap turns into a sentence
            SimpleNamespace(classes=2, note=print), torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)
        )


def test_an_audit_that_could_check_nothing_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = advkit.load_data("digits", limit=20)
    net = advkit.train(settings={"model.width": 2, "attack.steps": 1, "data.limit": 40}, epochs=1).model
    with torch.no_grad():  # one class for all, and it is no image's
        net[-1].weight.zero_()
        net[-1].bias.copy_(torch.arange(10.0) * (torch.arange(10) != data.test.labels[0]))
        net[-1].bias[data.test.labels[:4]] = -1
    safetensors.torch.save_file(net.state_dict(), tmp_path / "wrong.safetensors")
    line = ["audit", str(tmp_path / "wrong.safetensors"), "--model", "small-cnn", "--set", "model.width=2"]
    assert run([*line, "--dataset", "digits", "--eps", "0.1", "--n", "4"]) == 3
    assert "No check could be run, so nothing is known of this net." in capsys.readouterr().err


# ---------------------------------------------------------------------- what a gradient is held against


@pytest.mark.parametrize(
    ("mask", "figure_of"),
    [
        (lambda masks: masks.straight_through(linear(4), 3), "false-gradient"),
        (lambda masks: masks.Borrowed(linear(4), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))), "false-gradient"),
        (lambda masks: masks.reversed_gradient(linear(4), 0.5), "false-gradient"),
        (lambda masks: masks.Switching(linear(4), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))), "grad-mode"),
        (lambda masks: masks.Coupled(linear(4), 0.5), "batch"),
    ],
)
def test_a_gradient_of_something_else_is_found(
    masks: ModuleType, mask: Callable[[ModuleType], nn.Module], figure_of: str
) -> None:
    net = mask(masks).eval()
    data = labelled(linear(4), 60)
    checks = {check.name: check for check in short(net, data, {}, eps=EPS)}
    assert checks[figure_of].alarm is True
    full = audited(net, data)
    assert figure_of in full.alarms


def tail(z: Tensor) -> Tensor:
    """The images behind the fortieth less their mean."""
    return torch.cat([z[:40], z[40:] - z[40:].mean(0)]) if len(z) > 40 else z


def refusing(after: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of a lone image not of the shape of logits."""
    return lambda z: after(z).squeeze()


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "before": lambda z: z + 0.5 * z.roll(1, 0),
    "behind": lambda z: z + 0.5 * z.roll(-1, 0),
    "half a batch away": lambda z: z + 0.5 * z.roll(len(z) // 2, 0),
    "tail": tail,
}


@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("takes", [lambda after: after, refusing])
def test_a_net_that_mixes_images_is_found_whichever_they_are(
    masks: ModuleType, mixed: Callable[[Tensor], Tensor], takes: Callable[[Any], Callable[[Tensor], Tensor]]
) -> None:
    """By the audit, and as evaluate says; a net that draws is not, which differs from call to call by itself."""
    honest = masks.Masked(linear(4), after=takes(lambda z: z))
    drawing = masks.Masked(linear(4), before=lambda x: x + 0.1 * torch.randn_like(x), after=takes(lambda z: z))
    for net, share_of, noted in ((masks.Masked(linear(4), after=takes(mixed)), 1, True), (honest, 0, False)):
        data = labelled(linear(4), 60)
        data = dataclasses.replace(data, labels=net(data.images / 255).argmax(1))
        with bench(net, data, eps=EPS, norm="linf", seed=0) as table:
            found = figures.by_batch(table)
        assert isinstance(found, Figure) and found.of == figures.FEW
        assert found.value == share_of or (mixed is tail and 0.2 < found.value < 0.5 and noted), found
        row = advkit.evaluate(net, data, "clean", eps=EPS, audit=False).attacks[0]
        assert (BY_BATCH in row.notes) == noted
    with bench(drawing, data, eps=EPS, norm="linf", seed=0) as table:
        assert figures.by_batch(table) == "the net draws in eval mode"


def test_a_net_that_draws_seldom_is_not_blamed_on_the_batch(masks: ModuleType) -> None:
    """One of two nets answers: two forwards of all images may be of the same one."""
    net = masks.OneOfTwo(linear(4), masks.scaled(linear(4), 1.5))
    data = labelled(linear(4), 60)
    same = 0
    for seed in range(8):
        with bench(net, data, eps=EPS, norm="linf", seed=seed) as table:
            one, other = (table.logits(f"forward {turn}", table.x) for turn in (1, 2))
            same += torch.equal(one, other)
            assert figures.by_batch(table) == "the net draws in eval mode"
    assert 0 < same < 8


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.Softplus])
def test_an_honest_gradient_fits(activation: type[nn.Module]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), activation(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        ).eval()
    with bench(net, labelled(net, 60), eps=EPS, norm="linf", seed=0) as table:
        for measure in (figures.false_gradient, figures.grad_mode, figures.by_batch):
            answer = measure(table)
            assert isinstance(answer, Figure) and answer.count == 0


def min_max(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


def median(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (1,) * 4, mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(-1).values


@pytest.mark.parametrize(
    ("kinked", "single"),
    [(nn.MaxPool2d(2), False), (nn.MaxPool2d(2), True), (min_max, False), (min_max, True), (median, False)],
)
def test_pixels_that_tie_are_no_false_gradient(
    masks: ModuleType, kinked: Callable[[Tensor], Tensor], single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A black background: a kink of the net has many gradients there, of which autograd tells one."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=draw, dtype=torch.uint8)
    images[..., 2:] = 0
    head = nn.Sequential(nn.Flatten(), nn.Linear(kinked(images / 255)[0].numel(), 4))
    with torch.no_grad():
        head[1].weight.copy_(torch.randn(head[1].weight.shape, generator=draw))
    net = masks.Masked(head, before=(lambda x: kinked(x.float())) if single else kinked)
    with torch.no_grad():
        data = advkit.Dataset("black", images, net(images / 255).argmax(1), tuple("abcd"))
    for cut in (False, True):
        if cut:  # the control: cut off at the edge of the box half of them tie
            monkeypatch.setattr(figures, "untied", lambda ball, draws: ball.uniform(draws))
        with bench(net, data, eps=EPS, norm="linf", seed=0) as table:
            found = figures.false_gradient(table)
        assert isinstance(found, Figure) and above(found, RULES["false-gradient"].threshold) == cut, found


def test_a_point_without_ties_lies_in_ball_and_box() -> None:
    """As far from the image as one that is cut off, a pixel at 0 or 1 included."""
    x = torch.tensor([0.0, 1.0, 0.5, 0.02]).repeat(2, 1, 4, 4)
    for norm in ("linf", "l2"):
        with bench(linear(), labelled(linear()), eps=EPS, norm=norm, seed=0) as table:
            ball = type(table.ball(EPS))(x.view(2, 1, 8, 8), torch.tensor([0.05, 0.4]))
            point = figures.untied(ball, table.net.draws("x", torch.arange(2)))
        assert torch.equal(ball.project_(point.clone()), point) and len(point[0].unique()) == 64
        assert torch.equal(point, figures.untied(ball, table.net.draws("x", torch.arange(2))))


def test_a_step_that_raises_the_loss_need_not_raise_the_margin_most(
    masks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many classes are as likely; a loss that hides the margin is found out by it."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 60))
    with torch.no_grad():
        flat[1].weight.copy_(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) / 10)
        flat[1].bias.zero_()

    def alarm(net: nn.Module, data: advkit.Dataset) -> bool:
        with bench(net, data, eps=EPS, norm="linf", seed=0) as table:
            found = figures.useless(table)
        assert isinstance(found, Figure)
        return above(found, RULES["useless-gradient"].threshold)

    assert not alarm(flat, labelled(flat, 100))
    squashed = masks.squashed_logits(linear(4), 30)
    assert alarm(squashed, labelled(squashed, 100))
    monkeypatch.setattr(figures, "cross_entropy", margin)
    assert alarm(flat, labelled(flat, 100))  # the control: by the margin alone


@pytest.mark.usefixtures("quick_audit")
def test_both_forms_say_the_same_of_the_same_images(masks: ModuleType) -> None:
    """Figures, not only alarms: what the short form asks is asked by the same functions."""
    data = labelled(linear(4), 90)
    for net in (linear(4), masks.scaled(linear(4), 1e4), masks.straight_through(linear(4), 3)):
        found = verdicts(net, data, [parse_attack("pgd-20"), parse_attack("cw-20")], eps=EPS, norm="linf")
        brief = {check.name: check for check in short(net, data, found, eps=EPS) if check.figure is not None}
        whole = {check.name: check for check in audited(net, data).checks}
        assert {"zero-gradient", "large-eps", "silent-success", "loss-gap", "batch"} <= brief.keys()
        for name, check in brief.items():
            assert (check.figure, check.interval, check.alarm) == (
                whole[name].figure,
                whole[name].interval,
                whole[name].alarm,
            ), name


def test_an_alarm_names_the_attack_that_breaks_the_net(masks: ModuleType) -> None:
    found = audited(masks.quantised(linear(), 4), labelled(masks.quantised(linear(), 4), 60))
    attack = min(found.withstood, key=lambda name: found.withstood[name])
    assert attack in ("square", "random search", "imitator") and found.withstood[attack] < found.withstood["pgd-50"]
    for check in found.checks:
        assert (f"Of the attacks tried {attack} breaks the net most" in check.sentence) == bool(check.alarm)


def test_an_imitator_is_tried_where_no_run_is_given(masks: ModuleType) -> None:
    net = masks.quantised(linear(), 4)
    data = labelled(net, 100)
    check = next(check for check in audited(net, data).checks if check.name == "transfer")
    assert check.alarm is True and check.count is not None and check.count >= 3
    honest = next(check for check in audited(linear(), data).checks if check.name == "transfer")
    assert honest.alarm is False


# ---------------------------------------------------------------------- figures


def test_an_alarm_on_one_of_two_images_is_none() -> None:
    assert not above(share(1, 2), 0.02) and not above(share(2, 2), 0.02) and above(share(3, 3), 0.02)
    assert not above(share(3, 100), 0.02) and above(share(6, 100), 0.02)
    assert least(0.02, 2) is None


@pytest.mark.parametrize(("threshold", "counts"), [(0.01, (3, 3, 5)), (0.02, (3, 5, 8)), (0.12, (8, 19, 34))])
def test_thresholds_are_whole_numbers_of_images(threshold: float, counts: tuple[int, ...]) -> None:
    """No share that rounding moves: a count raises the alarm, and one image fewer does not."""
    for count, of in zip(counts, (32, 100, 200), strict=True):
        assert least(threshold, of) == count
        assert above(share(count, of), threshold) and not above(share(count - 1, of), threshold)
        rule = dataclasses.replace(RULES["large-eps"], threshold=threshold)
        check, below = rule.judge(share(count, of)), rule.judge(share(count - 1, of))
        assert (check.alarm, check.alarm_from, below.alarm) == (True, count, False)


def test_a_gap_is_paired_and_of_all_images() -> None:
    one, other = torch.arange(60) < 40, torch.arange(60) < 30
    figure = gap(one, other, 100)
    assert (figure.value, figure.count, figure.of) == (0.1, 10, 100)
    assert 0.03 < figure.low < 0.1 < figure.high < 0.2
    assert gap(other, one, 100) == figure


def test_leaving_one_out_gives_the_interval_of_a_mean() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figure = jackknife(lambda rows: rows.mean(), values)
    half = 1.959963984540054 * float(values.std()) / 50**0.5
    assert (figure.low, figure.high) == pytest.approx((figure.value - half, figure.value + half))
