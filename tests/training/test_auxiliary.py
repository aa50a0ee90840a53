"""`run.module`: whence a net beside the model comes, what it computes, what is booked, and what a resume must find."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit import (
    Batch,
    CheckpointError,
    Costs,
    HookContract,
    NonFinite,
    OptionError,
    Passes,
    Place,
    Plugin,
    PluginOptions,
    ResumeMismatch,
    Run,
    Splits,
    Step,
    hookimpl,
    option,
)
from advkit.errors import Stopped, shown
from advkit.storage.run_folder import RunFolder
from advkit.storage.weights import evaluated
from advkit.testing.runs import _StopAfter as StopAfter
from advkit.training.notes import note, noted

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]

TOY = Splits(pictures(), pictures(), "none")
SETTINGS = {"attack.steps": 1, "validation.fraction": 0, "optimizer.lr": 0.01, "run.check_hooks": True}


class Taught(Plugin):
    """Learns the logits that a net beside the model has at x."""

    name = "taught"

    class Options(PluginOptions):
        teacher: Place = option("", help="a run or a file of weights")
        model: str = option("", help="of a file")
        asked: int = option(1, help="how often")

    options: Options

    def __init__(self, options: PluginOptions, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.passed = teacher

    @property
    def by_sample(self) -> bool:
        return True

    def passes(self, hook: str, costs: Costs) -> Passes:
        return Passes(auxiliary_forward=1) if hook == "extra_regularizer" else Passes()

    @hookimpl
    def setup(self, run: Run) -> None:
        source = self.passed if self.passed is not None else self.options.teacher
        self.teacher = run.module("teacher", source, model=self.options.model)

    @hookimpl
    def extra_regularizer(self, batch: Batch, clean_logits: Tensor) -> Tensor:
        for _ in range(self.options.asked):
            logits = self.teacher(batch.x)
        assert not logits.requires_grad
        return 0.1 * (clean_logits - logits).square().sum(1)


def of(teacher: nn.Module | Path | str, **options: object) -> Taught:
    if isinstance(teacher, nn.Module):
        return Taught(Taught.Options(**options), teacher)
    return Taught(Taught.Options(teacher=str(teacher), **options))


def net(seed: int = 3, **how: Any) -> nn.Sequential:
    """A tiny net; `seed` 3 is that which the runs begin with."""
    made = methods.tiny_net(**{"batch_norm": True, "dropout": 0.3, "dtype": torch.float32, **how})
    if seed != 3:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for value in made.parameters():
                value.copy_(torch.randn(value.shape, generator=generator).mul_(0.3))
    return made


def train(plugin: Any, **arguments: Any) -> advkit.TrainResult:
    settings = {**SETTINGS, **arguments.pop("settings", {})}
    given = {"epochs": 2, "batch_size": 4, "eps": 0.1, "settings": settings} | arguments
    return advkit.train(net(), TOY, [plugin] if plugin else [], **given)


def weights(result: advkit.TrainResult) -> Tensor:
    return torch.cat([value.flatten().double() for value in result.model.state_dict().values()])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of another net, in a file."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(net(7).state_dict(), path)
    return path


def step_of(plugin: Any, **arguments: Any) -> Step:
    model = net(dropout=0.0)
    settings = {"attack.steps": 1, "run.check_hooks": True} | arguments.pop("settings", {})
    plugins = [plugin] if isinstance(plugin, Plugin) else plugin
    return Step(
        model, torch.optim.SGD(model.parameters(), 0.1), plugins, num_samples=16, settings=settings, **arguments
    )


# ---------------------------------------------------------------------- what it computes, and what is booked


def test_it_answers_in_eval_mode_and_is_never_changed(tiny_batch: BatchOf) -> None:
    beside, (x, y, index) = net(7), tiny_batch()
    before = deepcopy(beside.train().state_dict())
    seen = []

    class Listens(Taught):
        @hookimpl
        def extra_regularizer(self, batch: Batch, clean_logits: Tensor) -> Tensor:
            seen.append(self.teacher(batch.x))
            return 0 * clean_logits.sum(1)

    step_of(Listens(Taught.Options(), beside))(x, y, index, epoch=0)
    assert torch.equal(seen[0], net(7).eval()(x))
    assert beside.training and all(torch.equal(value, before[name]) for name, value in beside.state_dict().items())
    assert all(parameter.requires_grad for parameter in beside.parameters()), "a copy is frozen, not what was passed"


def test_a_forward_is_booked_once_for_the_same_images_and_is_in_no_cost(tiny_batch: BatchOf) -> None:
    step = step_of(of(net(7), asked=3))
    for _ in range(2):
        report = step(*tiny_batch(), epoch=0)
        assert report.passes["update"] == Passes(2, full_backward=2, auxiliary_forward=1)
        assert report.demanded_by["update.taught/teacher"] == ["taught"]
    stage = step.composition.at(0)
    assert stage.passes["update"].auxiliary_forward == 1
    assert stage.cost == sum(p.forward + p.input_backward + 2 * p.full_backward for p in stage.passes.values())
    assert report.passes["update"].as_dict() == {"forward": 2, "full_backward": 2, "auxiliary_forward": 1}


def test_images_that_were_written_to_meanwhile_are_asked_about_again(tiny_batch: BatchOf) -> None:
    class Writes(Taught):
        def passes(self, hook: str, costs: Costs) -> Passes:
            return Passes(auxiliary_forward=2) if hook == "extra_regularizer" else Passes()

        @hookimpl
        def extra_regularizer(self, batch: Batch, clean_logits: Tensor) -> Tensor:
            x = batch.x.clone()
            one = self.teacher(x)
            other = self.teacher(x.mul_(0.5))
            assert not torch.equal(one, other)
            return 0 * clean_logits.sum(1)

    step_of(Writes(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)


def test_who_writes_into_an_answer_writes_into_his_own(tiny_batch: BatchOf) -> None:
    class Writes(Taught):
        @hookimpl
        def extra_regularizer(self, batch: Batch, clean_logits: Tensor) -> Tensor:
            first = self.teacher(batch.x)
            before = first.clone()
            first.div_(4)
            assert torch.equal(self.teacher(batch.x).div_(2), before / 2)
            assert torch.equal(self.teacher(batch.x), before)
            return 0 * clean_logits.sum(1)

    step_of(Writes(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)


def test_passes_that_are_not_declared_stop_the_step(tiny_batch: BatchOf) -> None:
    class Silent(Taught):
        def passes(self, hook: str, costs: Costs) -> Passes:
            return Passes()

    with pytest.raises(HookContract, match=r"'auxiliary_forward': 1\} in the update phase, where the plan says"):
        step_of(Silent(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)


def test_it_is_asked_in_the_attack_phase_too_and_nowhere_else(tiny_batch: BatchOf) -> None:
    class Aims(Taught):
        """The attack moves away from what the teacher says."""

        def passes(self, hook: str, costs: Costs) -> Passes:
            return Passes(auxiliary_forward=1) if hook == "attack_objective" else Passes()

        @hookimpl
        def attack_objective(self, batch: Batch) -> Callable[[Tensor], Tensor]:
            goal = self.teacher(batch.x)
            return lambda logits: (logits - goal).square().sum(1)

    report = step_of(Aims(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)
    assert report.passes["attack"].auxiliary_forward == 1 and not report.passes["update"].auxiliary_forward

    class Late(Taught):
        @hookimpl
        def observe_update(self, batch: Batch) -> None:
            self.teacher(batch.x)

    with pytest.raises(HookContract) as refused:
        step_of(Late(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)
    assert str(refused.value) == (
        "Plugin taught asks taught/teacher where no pass is booked; call it in hooks of the attack phase, in base_loss "
        "or extra_regularizer, or in epoch_end."
    )


def test_a_forward_of_ones_own_moves_statistics_where_it_is_told_to(tiny_batch: BatchOf) -> None:
    """Once, after the core's, and not where v is made: BatchNorm then has seen x' and 2 x."""
    x, y, index = tiny_batch()

    def moved(statistics: bool) -> dict[str, Tensor]:
        class Looks(Plugin):
            name = "looks"

            def passes(self, hook: str, costs: Costs) -> Passes:
                return Passes(1, full_backward=1)

            @hookimpl
            def extra_regularizer(self, batch: Batch, run: Run) -> Tensor:
                return run.forward(2 * batch.x, statistics=statistics).square().sum(1)

        step = step_of([Looks, "awp"], options={"awp": {"loss": "objective", "step_at": "theta"}})
        step(x, y, index, epoch=0)
        return {name: value.clone() for name, value in step.model[1].named_buffers()}

    assert moved(False)["num_batches_tracked"] == 1 and moved(True)["num_batches_tracked"] == 2


@pytest.mark.parametrize("settings", [{"run.precision": "bf16"}, {"run.memory_format": "channels_last"}], ids=str)
def test_it_computes_as_the_model_does(settings: dict[str, object]) -> None:
    plain, other = (weights(train(of(net(7)), settings=given)) for given in ({}, settings))
    assert 0 < float((plain - other).norm() / plain.norm()) < 0.05 or torch.equal(plain, other)
    assert bool(other.isfinite().all())


def test_it_has_the_models_type(tiny_batch: BatchOf) -> None:
    model = net(dtype=torch.float64)
    step = Step(model, torch.optim.SGD(model.parameters(), 0.1), [of(net(7))], num_samples=16)
    report = step(*tiny_batch(dtype=torch.float64), epoch=0)
    assert report.loss.dtype == torch.float64


# ---------------------------------------------------------------------- whence it comes


def test_a_module_and_a_file_are_one_net(teacher: Path) -> None:
    by_module, by_file = (weights(train(of(source))) for source in (net(7), teacher))
    assert torch.equal(by_module, by_file)
    assert not torch.equal(by_module, weights(train(of(net()))))


NET = """
import torch


class Net(torch.nn.Sequential):
    def __init__(self, classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(32, classes))
"""


def test_a_run_of_the_file_that_is_named_for_this_run(tmp_path: Path) -> None:
    """Its code runs as it was typed, and no folder's word is taken: it must be the same."""
    file, given = tmp_path / "own.py", {"epochs": 1, "batch_size": 4, "settings": SETTINGS}
    file.write_text(NET)
    advkit.train(f"{file}:Net", TOY, [], **given, out=tmp_path / "r")
    made = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    advkit.load_weights(made, tmp_path / "r")
    by_module, by_run = (advkit.train(f"{file}:Net", TOY, [of(one)], **given) for one in (made, tmp_path / "r"))
    assert torch.equal(weights(by_module), weights(by_run))
    file.write_text(NET + "# edited\n")
    with pytest.raises(OptionError) as refused:
        advkit.train(f"{file}:Net", TOY, [of(tmp_path / "r")], **given)
    assert str(refused.value) == (
        f"taught/teacher: own.py:Net, the net of {tmp_path / 'r'}, is code of a file or was passed from Python, and is "
        "not this run's own net too; a folder runs no code here, so pass the module itself from Python."
    )
    with pytest.raises(OptionError, match=r"own\.py:Net, the net of .*, is code of a file or was passed from Python"):
        train(of(tmp_path / "r"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an installed net on the digits, and its weights in a file beside it."""
    path = tmp_path_factory.mktemp("digits") / "run"
    advkit.train("small-cnn", "digits", [], **DIGITS | {"settings": {**DIGITS["settings"], "model.width": 6}}, out=path)
    torch.save(evaluated(RunFolder.open(path).load("last")[0]), path.with_name("weights.pt"))
    return path


DIGITS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 20,
    "settings": {"attack.steps": 1, "data.limit": 40, "model.width": 4, "validation.fraction": 0},
}


def test_an_installed_net_of_another_size(digits: Path) -> None:
    """Of a run, and as a file of weights of the net that is named."""
    result = advkit.train("small-cnn", "digits", [of(digits)], **DIGITS)
    assert result.history[0]["passes"]["update"]["auxiliary_forward"] == 2
    wide = {"small-cnn": r"do not fit this model", "pre.py:Net": r"pre\.py:Net is no installed net .* from Python\."}
    for model, sentence in wide.items():
        with pytest.raises((CheckpointError, OptionError), match=sentence):
            advkit.train("small-cnn", "digits", [of(digits.with_name("weights.pt"), model=model)], **DIGITS)


def test_what_its_results_say_is_said_of_the_run(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "taught")
    note(RunFolder.open(tmp_path / "taught"), ["some test images are training images"])
    with pytest.warns(UserWarning, match=(said := "of .*taught, which taught/teacher is from: some test images are")):
        advkit.train("small-cnn", "digits", [of(tmp_path / "taught")], **DIGITS, out=tmp_path / "run")
    (kept,) = noted(RunFolder.open(tmp_path / "run"))
    assert re.match(said, kept)


def test_what_it_can_not_be_made_of(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no weights")
    broken = net()
    nn.init.constant_(broken[0].bias, torch.nan)
    torch.save(broken.state_dict(), tmp_path / "nan.pt")
    for source, error, sentence in (
        (tmp_path / "absent", CheckpointError, r"absent does not exist; give a run folder or a file of weights\."),
        (tmp_path / "empty", CheckpointError, r"empty"),
        (tmp_path / "text.pt", CheckpointError, r"text\.pt can not be read as weights"),
        (tmp_path / "nan.pt", NonFinite, r"^taught/teacher, .*nan\.pt: The net can not be judged: .* holds NaN or Inf"),
        (digits, OptionError, r"run was trained on the classes 0, 1, 2, .*, and this run is on a, b, c; give a net of"),
        (nn.Sequential(nn.Flatten(), nn.Linear(33, 3)), OptionError,
         r"^taught/teacher, a Sequential passed from Python, can not be called on images \(4, 2, 4, 4\): Runtime"),
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), OptionError,
         r"^taught/teacher, a Sequential passed from Python: The model returns 4 logits for each image, but the data"),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            train(of(source))
    with pytest.raises(OptionError, match=r"is a run, which has a net of its own; leave vgg out\."):
        train(of(digits, model="vgg"))
    with pytest.raises(OptionError, match=r"a Step knows no images to build small-cnn for; pass the module itself"):
        step_of(of(digits))


@pytest.mark.parametrize(
    "source", [None, 3, True, nn.Linear, b"run", "a\0b", lambda: net()], ids=lambda one: type(one).__name__
)
def test_what_is_no_source(source: Any) -> None:
    class Takes(Taught):
        @hookimpl
        def setup(self, run: Run) -> None:
            self.teacher = run.module("teacher", source)

    with pytest.raises(OptionError) as refused:
        step_of(Takes(Taught.Options()))
    assert str(refused.value) == (
        f"taught/teacher is {shown(source)}; give the folder of a run, a file of weights or a torch Module."
    )


def flat(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torch.jit.script(flat(nn.Linear(32, 3))), "is of torch.jit, which can not be frozen; give what it"),
        (lambda: flat(nn.utils.weight_norm(nn.Linear(32, 3))), r"can not be copied \(RuntimeError\); give it as plain"),
        (lambda: flat(nn.LazyLinear(3)), r"1\.weight of the model has no shape yet \(a lazy module\); call the model"),
        (lambda: flat(nn.Linear(32, 3, device="meta")), r"1\.weight of the model is a meta tensor, which holds no"),
    ],
    ids=["jit", "weight-norm", "lazy", "meta"],
)
def test_modules_that_can_not_be_copied(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^taught/teacher, a [A-Za-z]+ passed from Python[:,] {sentence}"):
        step_of(of(make()))
    step_of(of(flat(nn.utils.parametrizations.weight_norm(nn.Linear(32, 3)))))


def test_it_is_claimed_once_and_in_setup(tiny_batch: BatchOf) -> None:
    class Twice(Taught):
        @hookimpl
        def setup(self, run: Run) -> None:
            run.module("teacher", self.passed)
            run.module("teacher", self.passed)

    class Later(Taught):
        @hookimpl
        def extra_regularizer(self, batch: Batch, run: Run) -> Tensor:
            return run.module("late", self.passed)(batch.x).sum(1)

    with pytest.raises(OptionError, match=r"^Plugin taught claims the net teacher twice; claim it once, in setup\.$"):
        step_of(Twice(Taught.Options(), net(7)))
    with pytest.raises(OptionError, match="claims the net late after setup, where no resume"):
        step_of(Later(Taught.Options(), net(7)))(*tiny_batch(), epoch=0)


# ---------------------------------------------------------------------- what a resume must find


def test_a_resume_goes_on_with_the_same_net_and_with_no_other(tmp_path: Path) -> None:
    whole = weights(train(of(net(7)), out=tmp_path / "whole"))
    with pytest.raises(Stopped):
        train(of(net(7)), out=tmp_path / "r", progress=StopAfter(2))

    def resumed(plugin: Any) -> advkit.TrainResult:
        return advkit.train(net(), TOY, [plugin], resume_from=tmp_path / "r")

    for other, sentence in (
        (
            of(net(8)),
            "The weights of taught/teacher, a Sequential passed from Python, are not those that the run began with; "
            "give it the net that it had.",
        ),
        (
            Untaught(Taught.Options()),
            "The checkpoint has tensors/taught/teacher.sha256, of a net beside the model, taught/teacher, that nobody "
            "gives; pass it again if it was passed from Python when the run was started, else resume an earlier "
            "checkpoint.",
        ),
    ):
        with pytest.raises(ResumeMismatch) as refused:
            resumed(other)
        assert str(refused.value) == sentence
    assert torch.equal(weights(resumed(of(net(7)))), whole)


class Untaught(Taught):
    @hookimpl
    def setup(self, run: Run) -> None:
        """Claims nothing."""


def test_a_loop_of_ones_own_finds_another_net_too(tiny_batch: BatchOf) -> None:
    saved = step_of(of(net(7))).state_dict()
    step_of(of(net(7))).load_state_dict(saved)
    with pytest.raises(ResumeMismatch, match=r"^The weights of taught/teacher, a Sequential passed"):
        step_of(of(net(8))).load_state_dict(saved)


def test_the_plan_tells_of_it_and_refuses_one_that_is_not_there(tmp_path: Path) -> None:
    weights = tmp_path / "any.safetensors"
    weights.write_bytes(b"not looked into")
    planned = advkit.plan([of(str(weights))], dataset="digits")
    assert planned["modules"] == {"taught/teacher": str(weights)} and planned["state"] == []
    with pytest.raises(CheckpointError, match=r"/nowhere/run does not exist; give a run folder or a file of weights"):
        advkit.plan([of("/nowhere/run")], dataset="digits")
    assert planned["passes"]["update"]["auxiliary_forward"] == 1
    without = advkit.plan([], dataset="digits", settings={})
    assert without["modules"] == {} and "auxiliary_forward" not in without["passes"]["update"]
