"""What a step accepts, what plugins see in it, and what it puts back if it fails."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit import AttackResult, Batch, Budget, BudgetScale, Plugin, Run, Step, hookimpl
from advkit.errors import HookConflict, NonFinite, OptionError
from advkit.settings import SECTIONS
from advkit.training.own_loop import USED

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]
Maker = Callable[..., tuple[Step, nn.Module]]

N = 8


def sgd(net: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9)


@pytest.fixture
def made(tiny_net: Net) -> Maker:
    """A step of three attack iterations, and its model."""

    def made(plugins: Any = (), net: nn.Module | None = None, **arguments: Any) -> tuple[Step, nn.Module]:
        net = tiny_net() if net is None else net
        settings = {"attack.steps": 3, **arguments.pop("settings", {})}
        return Step(net, sgd(net), plugins, num_samples=N, eps=0.1, settings=settings, **arguments), net

    return made


def bits(net: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


# ---------------------------------------------------------------------- what a step is given


MISTAKES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], dict[str, Any]], str]] = {
    "x normalised": (lambda x, y, i: {"x": (x - 0.5) / 0.2}, "x leaves [0, 1]; pass images in [0, 1] and normalise"),
    "x NaN": (lambda x, y, i: {"x": x * float("nan")}, "x leaves [0, 1]"),
    "index too large": (lambda x, y, i: {"index": i + N}, "index leaves 0..7; pass each sample's place"),
    "index negative": (lambda x, y, i: {"index": i - 1}, "index leaves 0..7"),
    "y too large": (
        lambda x, y, i: {"y": y + 1},
        "y leaves 0..2, the classes of the model's 3 logits when this training began.",
    ),
    "y negative": (lambda x, y, i: {"y": y - 1}, "y leaves 0..2"),
    "index twice": (lambda x, y, i: {"index": i * 0}, "index names a sample twice in a batch; number its visits"),
    "no rows": (lambda x, y, i: {"x": x[:0], "y": y[:0], "index": i[:0]}, "A step takes x (B, C, H, W), y (B,)"),
    "negative epoch": (lambda x, y, i: {"epoch": -1}, "epoch = -1 must be 0 or more."),
}


@pytest.mark.parametrize("plugins", [(), ("cat-eps", "dirichlet-ls")], ids=["none", "cat"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_batch_that_is_not_what_was_meant_is_refused(
    made: Maker, tiny_batch: BatchOf, mistake: str, plugins: tuple[str, ...]
) -> None:
    step, net = made(plugins)
    good = dict(zip(("x", "y", "index"), tiny_batch(), strict=True)) | {"epoch": 0}
    change, sentence = MISTAKES[mistake]
    before = bits(net)
    with pytest.raises(OptionError) as refused:
        step(**good | change(*tiny_batch()))
    assert sentence in str(refused.value)
    assert bits(net) == before
    step(**good)  # and the step is none the worse for it
    assert bits(net) != before


def test_an_index_that_comes_twice_is_fine_with_its_occurrences(made: Maker, tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    step, _ = made()
    assert step(x, y, index * 0, epoch=0, occurrence=torch.arange(4)).count == 4


def test_mixed_precision_is_refused(made: Maker, tiny_net: Net, tiny_batch: BatchOf) -> None:
    step, net = made()
    before = bits(net)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(OptionError, match=r"outside torch\.autocast"):
        step(*tiny_batch(), epoch=0)
    assert bits(net) == before
    with pytest.raises(OptionError, match="half precision are not supported; train in float32 or float64"):
        made(net=tiny_net().bfloat16())
    net.register_buffer("table", torch.ones(2, dtype=torch.float16))
    with pytest.raises(OptionError, match=r"The net computes in float16 \(table\); attacks need float32 or float64"):
        made(net=net)


def test_a_submodule_that_is_kept_in_eval_mode_stays_there(made: Maker, tiny_net: Net, tiny_batch: BatchOf) -> None:
    moved = []
    for frozen in (True, False):
        net = tiny_net(batch_norm=True).train()
        net[1].train(not frozen)
        step, _ = made(net=net)
        before = net[1].running_mean.clone()
        step(*tiny_batch(), epoch=0)
        assert (net.training, net[1].training) == (True, not frozen)
        moved.append(not torch.equal(before, net[1].running_mean))
    assert moved == [False, True]


def test_a_plugin_object_belongs_to_one_run(made: Maker) -> None:
    cat_eps = advkit.registry.load("plugin", "cat-eps")
    plugin = cat_eps(cat_eps.Options(eta=0.02, eps_max=0.1))
    made([plugin])
    with pytest.raises(OptionError, match="The plugin object cat-eps is in another run already; build a new one"):
        made([plugin])
    made([cat_eps]), made([cat_eps])  # a class is built anew


def test_an_optimizer_of_another_model_is_refused(tiny_net: Net) -> None:
    with pytest.raises(OptionError, match="none of the model's parameters; build it from"):
        Step(tiny_net(), sgd(tiny_net()), num_samples=N)


@pytest.mark.filterwarnings("ignore:The optimizer lacks trainable parameters of the model")
def test_gradients_of_parameters_that_the_optimizer_has_not_got_do_not_add_up(
    tiny_net: Net, tiny_batch: BatchOf
) -> None:
    net = tiny_net()
    step = Step(net, torch.optim.SGD(net[5].parameters(), lr=0.0), num_samples=N, settings={"attack.steps": 1})
    norms = set()
    for _ in range(3):
        step(*tiny_batch(), epoch=0)
        norms.add(float(net[0].weight.grad.norm()))
    assert len(norms) == 1 and norms != {0.0}


def test_plugins_may_be_named_in_one_string(made: Maker) -> None:
    step, _ = made("cat-eps,lsiw")
    assert [plugin.name for plugin in step.composition.plugins] == ["av-rank", "awp", "cat-eps", "lsiw"]


# ---------------------------------------------------------------------- what plugins see


class Shy(Plugin):
    """Lists clean_logits and success, and demands neither."""

    name = "shy"

    seen: ClassVar[list[Any]] = []

    def demands(self, hook: str, epoch: int) -> tuple[str, ...]:
        return ()

    @hookimpl
    def target_label(self, target: Tensor, clean_logits: Tensor | None) -> Tensor:
        self.seen.append(clean_logits)
        return target

    @hookimpl
    def perturbation_budget(self, batch: Batch) -> Budget:
        return Budget(*[batch.x.new_full((len(batch.y),), 0.1)] * 2)

    @hookimpl
    def commit_attack(self, budget: Budget, success: Tensor | None) -> tuple[Budget, Tensor | None]:
        self.seen.append(success)
        return budget, None


class Eager(Plugin):
    """Demands clean_logits in the attack."""

    name = "eager"
    seen: ClassVar[list[Any]] = []

    @hookimpl
    def budget_scale(self, batch: Batch, clean_logits: Tensor) -> BudgetScale:
        self.seen.append(clean_logits)
        return BudgetScale()


def test_what_another_demanded_is_not_seen(made: Maker, tiny_batch: BatchOf) -> None:
    for company in ([], [Eager]):
        Shy.seen.clear()
        Eager.seen.clear()
        step, _ = made([Shy, *company])
        step(*tiny_batch(), epoch=0)
        assert Shy.seen == [None, None, None]
    assert [type(value) for value in Eager.seen] == [Tensor]


# ---------------------------------------------------------------------- a step that fails, and one that goes on


class Counting(Plugin):
    """Counts in place, before the step can fail."""

    name = "counting"

    @hookimpl
    def setup(self, run: Run) -> None:
        self.count = run.tensor_state("count", torch.zeros(()))

    @hookimpl
    def target_label(self, target: Tensor) -> Tensor:
        self.count += 1
        return target


class Failing(Plugin):
    """Fails on request, after the attack."""

    name = "failing"
    now = False

    @hookimpl
    def base_loss(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return F.cross_entropy(adv_logits, batch.y, reduction="none") * (float("nan") if self.now else 1.0)


def test_a_failed_step_puts_tensors_samples_and_buffers_back(made: Maker, tiny_net: Net, tiny_batch: BatchOf) -> None:
    failing = Failing(Failing.Options())
    step, net = made([Counting, failing, "cat-eps"], tiny_net(batch_norm=True))
    step(*tiny_batch(), epoch=0)
    assert float(step.state_dict()["tensors/counting/count"]) == 2
    before = {name: value.clone() for name, value in step.state_dict().items()}, copy.deepcopy(bits(net))
    failing.now = True
    with pytest.raises(NonFinite):
        step(*tiny_batch(), epoch=0)
    assert all(torch.equal(value, before[0][name]) for name, value in step.state_dict().items())
    assert bits(net) == before[1]
    failing.now = False
    step(*tiny_batch(), epoch=0)
    assert float(step.state_dict()["tensors/counting/count"]) == 4


@pytest.mark.parametrize("restored", [True, False])
def test_a_loop_of_ones_own_resumes_mid_epoch_to_the_same_bits(
    made: Maker, tiny_net: Net, tiny_batch: BatchOf, restored: bool
) -> None:
    x, y, index = tiny_batch(N)
    parts = [slice(first, first + 2) for first in range(0, N, 2)]

    def ended(cut: int | None) -> dict[str, bytes]:
        step, net = made("cat-eps,dirichlet-ls,lsiw", tiny_net(dropout=0.5))
        for number, rows in enumerate(parts):
            if number == cut:
                kept = copy.deepcopy((net.state_dict(), step.optimizer.state_dict(), step.state_dict()))
                step, net = made("cat-eps,dirichlet-ls,lsiw", tiny_net(dropout=0.5))
                net.load_state_dict(kept[0])
                step.optimizer.load_state_dict(kept[1])
                if restored:
                    step.load_state_dict(kept[2])
            step(x[rows], y[rows], index[rows], epoch=0)
        return bits(net)

    # Without the step's own state dropout would start again with the masks of step 0.
    assert (ended(cut=2) == ended(cut=None)) is restored


# ---------------------------------------------------------------------- ascents and attacks of plugins


class Detached(Plugin):
    """Cross-entropy plus the distance to clean logits, which it takes without gradient."""

    name = "detached"

    def detached(self, hook: str, epoch: int) -> tuple[str, ...]:
        return ("clean_logits",)

    @hookimpl
    def base_loss(self, batch: Batch, adv_logits: Tensor, clean_logits: Tensor) -> Tensor:
        distance = (adv_logits - clean_logits).square().sum(1)
        return F.cross_entropy(adv_logits, batch.y, reduction="none") + distance


def test_the_objectives_ascent_takes_detached_views_detached(made: Maker, tiny_batch: BatchOf) -> None:
    step, _ = made([Detached, "awp"])
    (_, stage), *_ = step.composition.stages()
    passes = step(*tiny_batch(), epoch=0).passes
    assert passes == stage.passes
    # Two views, one with a gradient, in the ascent and again in the update.
    assert (passes["update"].forward, passes["update"].full_backward) == (4, 2)


class Inner(Plugin):
    """An attack that does not move."""

    name = "inner"

    @hookimpl
    def inner_attack(self, batch: Batch, radius: Tensor) -> AttackResult:
        return AttackResult(batch.x)


def budgets(**more: Callable[[Tensor], Tensor]) -> type[Plugin]:
    """An owner of the budget that also sets what `more` makes of the radius (B,)."""

    def perturbation_budget(self: Plugin, batch: Batch) -> Budget:
        rows = batch.x.new_full((len(batch.y),), 0.1)
        return Budget(rows, rows, **{name: make(rows) for name, make in more.items()})

    return type("Own", (Plugin,), {"name": "own", "perturbation_budget": hookimpl(perturbation_budget)})


@pytest.mark.parametrize(
    "more", [{"step_size": lambda rows: rows / 4}, {"steps": lambda rows: torch.ones_like(rows, dtype=torch.int64)}]
)
def test_steps_per_sample_beside_an_attack_with_its_own_are_refused(
    made: Maker, tiny_batch: BatchOf, more: dict[str, Any]
) -> None:
    step, _ = made([Inner, budgets(**more)])
    with pytest.raises(HookConflict, match="own sets steps or step sizes per sample, but the inner attack inner has"):
        step(*tiny_batch(), epoch=0)
    for fine in ([Inner, budgets()], [budgets(**more)]):
        assert made(fine)[0](*tiny_batch(), epoch=0).count == 4


def test_a_scaled_step_size_beside_an_attack_with_its_own_is_refused(made: Maker, tiny_batch: BatchOf) -> None:
    def scaled(**how: Tensor | float) -> type[Plugin]:
        return type("Pace", (Plugin,), {"name": "pace", "budget_scale": hookimpl(lambda self: BudgetScale(**how))})

    for how in ({"step_size": 0.5}, {"step_size": torch.ones(4)}):
        with pytest.raises(
            HookConflict, match=r"\(pace\) scales the step size, but the inner attack inner has its own"
        ):
            made([Inner, scaled(**how)])[0](*tiny_batch(), epoch=0)
    assert made([Inner, scaled(radius=0.5)])[0](*tiny_batch(), epoch=0).count == 4


@pytest.mark.parametrize("key", [f"{of}.{name}" for of in SECTIONS for name in SECTIONS[of].model_fields])
def test_a_step_takes_no_setting_that_it_does_not_use(key: str, tiny_net: Net) -> None:
    net, (section, _, name) = tiny_net(False), key.partition(".")
    used = section in ("attack", "update") or (name in USED[section] and section != "optimizer")  # no plugin, no decay
    value = SECTIONS[section].model_fields[name].get_default(call_default_factory=True)
    said = rf"^(A Step (takes|has no use for)|No plugin of this Step waits for) .*{name}"
    with nullcontext() if used else pytest.raises(OptionError, match=said):
        Step(net, torch.optim.SGD(net.parameters(), 0.1), num_samples=4, settings={key: value})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attack.eps": 0.2}, "eps 0.1 and settings attack.eps = 0.2 differ; they are the same setting, give one."),
        ({"attack.eps": "zz"}, "eps 0.1 and settings attack.eps = zz differ; they are the same setting, give one."),
        ({"run.seed": 4}, "seed 3 and settings run.seed = 4 differ; they are the same setting, give one."),
        (
            {"model.width": 3},
            "A Step has no use for model.width, since model, batches and loop are yours; leave it out.",
        ),
        ({"model.name": "small-cnn"}, "A Step has no use for model.name, since model, batches and loop are yours"),
    ],
)
def test_what_a_step_is_told_twice_or_in_vain_is_refused(given: dict[str, Any], sentence: str, tiny_net: Net) -> None:
    net = tiny_net(False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(OptionError, match=re.escape(sentence)):
        Step(net, optimizer, num_samples=4, eps=0.1, seed=3, settings=given)
    Step(net, optimizer, num_samples=4, eps=0.1, seed=3, settings={"attack.eps": "0.10", "run.seed": 3})


@pytest.mark.parametrize("option", ["te.start", "fosc.until", "gairat.burn_in"])
def test_a_share_of_a_run_of_unknown_length_is_refused(option: str, tiny_net: Net) -> None:
    """It would be a share of the default's 20 epochs, whatever the loop does."""
    net = tiny_net(False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    known: dict[str, Any] = {"num_samples": 4, "num_classes": 3, "eps": 0.1}
    plugin, _ = option.split(".")
    Step(net, optimizer, [plugin], settings={"run.epochs": 40}, **known)
    with pytest.raises(OptionError, match=rf"^{option} is a share of the run.*pass settings=.*run\.epochs.*: N"):
        Step(net, optimizer, [plugin], **known)


def test_a_share_of_nothing_is_the_beginning_of_any_loop(tiny_net: Net) -> None:
    net = tiny_net(False)
    optimizer, options = torch.optim.SGD(net.parameters(), 0.1), {"gairat": {"burn_in": 0}}
    step = Step(net, optimizer, ["gairat"], num_samples=4, options=options)
    assert [answer.plugin.name for answer in step.composition.at(0).answers["instance_weight"]] == ["gairat"]


def test_a_step_without_a_length_has_no_caution_of_it(tiny_net: Net) -> None:
    def said(settings: dict[str, object]) -> list[str]:
        options = {"eps-ramp": {"epochs": 25}, "iaat": {"warm_up": 30}}
        step = Step(tiny_net(False), None, [*options], num_samples=16, options=options, settings=settings)
        return [one for one in step.composition.cautions if "a run of 20" in one]

    assert not said({}) and len(said({"run.epochs": 20})) == 2


def test_epochs_that_count_from_one_are_told_once(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """They would put every schedule one epoch off. The controls: a loop from 0, and a length that nobody gave."""

    def said(epochs: Iterable[int], settings: dict[str, object]) -> list[str]:
        net = tiny_net(False)
        step = Step(net, torch.optim.SGD(net.parameters(), 0.1), num_samples=16, eps=0.1, settings=settings)
        x, y, index = tiny_batch()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for epoch in epochs:
                step.loss(x, y, index, epoch=epoch).backward()
        return [str(one.message) for one in heard if "run.epochs" in str(one.message)]

    (sentence,) = said(range(1, 5), {"run.epochs": 3})
    assert sentence.startswith("epoch = 3, but run.epochs is 3 and epochs count from 0, so the last is 2.")
    assert not said(range(3), {"run.epochs": 3}) and not said([0, 30], {})


def test_a_step_is_pickled_and_goes_on_alike(made: Maker, tiny_batch: BatchOf) -> None:
    one, net = made(["cat-eps", "lsiw"])
    x, y, index = tiny_batch()
    one(x, y, index, epoch=0)
    other = pickle.loads(pickle.dumps(one))
    assert other.model is not net
    assert torch.equal(one(x, y, index, epoch=1).loss, other(x, y, index, epoch=1).loss)
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in net.state_dict().items())
