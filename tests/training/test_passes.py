"""Passes counted by the model itself equal the ledger, the plan and the published table.

The witness hangs on the first layer and knows nothing of advkit's own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import combinations, permutations
from typing import Any

import methods
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advkit import AttackResult, Budget, Passes, Plugin, Step, hookimpl
from advkit.errors import HookConflict, HookContract, OptionError
from advkit.testing.witness import Witness

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def subsets(names: tuple[str, ...]) -> list[set[str]]:
    return [set(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]


def name_of(chosen: set[str]) -> str:
    return ",".join(sorted(chosen)) or "pgd-at"


SUBSETS = subsets(("av-rank", "awp", "cat-eps", "dirichlet-ls", "lsiw"))
EVERY_SUBSET = subsets(("av-rank", "awp", "cat-eps", "cat-margin", "dirichlet-ls", "lsiw", "mart", "trades"))
ALONE_REFUSED = "Plugin av-rank weighs the term lsiw, which no chosen plugin adds; the terms of this run are base_loss."


def refusal(chosen: Collection[str]) -> str | None:
    """The sentence with which a set of the eight is refused, companions being granted."""
    for first, second, hook in (("cat-margin", "trades", "attack_objective"), ("mart", "trades", "base_loss")):
        if first in chosen and second in chosen:
            return f"Plugins {first} and {second} both own {hook}, which takes one owner; leave one of them out."
    if "av-rank" in chosen and "lsiw" not in chosen:
        terms = ["base_loss", *sorted({"cat-margin", "mart", "trades"} & set(chosen))]
        return ALONE_REFUSED.replace("are base_loss.", f"are {', '.join(terms)}.")
    return None


# All four combinations of the two coefficients, one an epoch.
LAM = [[0, 0.0], [1, 0.1], [3, 0.0]]
GAMMA = [[0, 0.01], [2, 0.0]]
LAM_IS_ON, GAMMA_IS_ON = {1, 2}, {0, 1}


def updates(count: int) -> Passes:
    return Passes(forward=count, full_backward=count)


def table(plugins: Collection[str], epoch: int, steps: int) -> dict[str, Passes]:
    """What the documentation promises for built-ins, companions included, with the schedules above."""
    perturbed = "awp" in plugins and epoch in GAMMA_IS_ON
    regularized = "lsiw" in plugins and epoch in LAM_IS_ON
    clean = bool({"mart", "trades"} & set(plugins))  # f(x; theta+v); f(x; theta) is the same without awp
    at_theta = regularized and (perturbed or not clean)
    own = "lsiw" in plugins  # then awp.loss is adv_ce
    return {
        "attack": Passes(forward=steps + ("cat-eps" in plugins) + ("trades" in plugins), input_backward=steps),
        "update": updates(1 + clean + at_theta + perturbed * (1 + (clean and not own))),
    }


def scheduled(plugins: Collection[str]) -> dict[str, dict[str, object]]:
    options: Mapping[str, dict[str, object]] = {"lsiw": {"lam": LAM}, "awp": {"gamma": GAMMA}}
    return {name: given for name, given in options.items() if name in plugins}


def witnessed(
    net: nn.Sequential, plugins: Iterable[Any], batch: tuple[Tensor, Tensor, Tensor], **arguments: Any
) -> tuple[Step, Callable[[int], dict[str, Passes]]]:
    """A step, and a call of it that returns the witness's counts after comparing them with ledger and plan."""
    witness = Witness(net)
    told = {"num_samples": len(batch[1]), "num_classes": net[-1].out_features, "image_shape": batch[0].shape[1:]}
    arguments["settings"] = {"run.epochs": 20, **arguments.get("settings", {})}
    step = Step(net, torch.optim.SGD(net.parameters(), lr=0.01), plugins, **told, **arguments)
    witness.beside(step.state)

    def run(epoch: int) -> dict[str, Passes]:
        report = step(*batch, epoch=epoch)
        seen = witness.take()
        assert seen == report.passes
        assert seen == step.composition.at(epoch).passes
        assert witness.probes == 1
        return seen

    return step, run


@pytest.mark.filterwarnings("ignore:The attack moved 0 of 4:UserWarning")  # the KL has no gradient at x
@pytest.mark.parametrize("chosen", EVERY_SUBSET, ids=name_of)
def test_every_subset_of_the_eight_methods_is_refused_or_trains(
    tiny_net: Net, tiny_batch: BatchOf, chosen: set[str]
) -> None:
    """Two steps, in one of which every coefficient is on, and in one not; a step refuses NaN by itself."""
    net, everyone = tiny_net(True), chosen | ({"awp", "av-rank"} if "lsiw" in chosen else set())
    arguments: dict[str, Any] = {"options": scheduled(everyone), "settings": {"attack.steps": 2}}
    if sentence := refusal(chosen):
        with pytest.raises(HookConflict) as refused:
            witnessed(net, chosen, tiny_batch(), **arguments)
        assert str(refused.value) == sentence
        return
    before = net[0].weight.detach().clone()
    step, run = witnessed(net, chosen, tiny_batch(), **arguments)
    for epoch in (1, 3):
        assert run(epoch) == table(everyone, epoch, 2)
    assert {plugin.name for plugin in step.composition.plugins} == everyone
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert not net[0].weight.equal(before)


def test_how_many_of_the_256_are_legal() -> None:
    legal = [chosen for chosen in EVERY_SUBSET if refusal(chosen) is None]
    assert (len(EVERY_SUBSET), len(legal)) == (256, 120)


@pytest.mark.parametrize("steps", [3, 0])
@pytest.mark.parametrize("chosen", SUBSETS, ids=name_of)
def test_every_subset_of_the_built_ins(tiny_net: Net, tiny_batch: BatchOf, chosen: set[str], steps: int) -> None:
    everyone = chosen | ({"awp", "av-rank"} if "lsiw" in chosen else set())
    arguments: dict[str, Any] = {"options": scheduled(everyone), "settings": {"attack.steps": steps}}
    if "av-rank" in chosen and "lsiw" not in chosen:
        with pytest.raises(HookConflict) as refused:
            witnessed(tiny_net(True), chosen, tiny_batch(), **arguments)
        assert str(refused.value) == ALONE_REFUSED
        return
    _, run = witnessed(tiny_net(True), chosen, tiny_batch(), **arguments)
    for epoch in range(4):
        assert run(epoch) == table(everyone, epoch, steps)


@pytest.mark.parametrize("declined", [("weight_perturbation",), ("instance_weight:lsiw",), "both"], ids=str)
@pytest.mark.parametrize(
    "chosen", [names for names in SUBSETS if "lsiw" in names], ids=lambda names: ",".join(sorted(names))
)
def test_every_subset_with_companions_declined(
    tiny_net: Net, tiny_batch: BatchOf, chosen: set[str], declined: Any
) -> None:
    companions = {"weight_perturbation": "awp", "instance_weight:lsiw": "av-rank"}
    declined = tuple(companions) if declined == "both" else declined
    everyone = chosen | {name for hook, name in companions.items() if hook not in declined}
    step, run = witnessed(
        tiny_net(True),
        chosen,
        tiny_batch(),
        options=scheduled(everyone),
        settings={"attack.steps": 3},
        no_companion=declined,
    )
    assert {plugin.name for plugin in step.composition.plugins} == everyone
    for epoch in range(4):
        assert run(epoch) == table(everyone, epoch, 3)


def test_without_lsiw_there_is_no_companion_to_decline(tiny_net: Net, tiny_batch: BatchOf) -> None:
    with pytest.raises(OptionError) as refused:
        witnessed(tiny_net(), ["cat-eps"], tiny_batch(), no_companion=["weight_perturbation"])
    assert str(refused.value) == "no_companion weight_perturbation declines nothing: no plugin asks for one."


@pytest.mark.parametrize(
    ("chosen", "update", "more"),
    [
        ("", 1, 0),
        ("awp", 2, 0),
        ("lsiw", 3, 0),
        ("lsiw,awp,av-rank", 3, 0),
        ("cat-eps,dirichlet-ls", 1, 1),
        ("cat-eps,dirichlet-ls,lsiw", 3, 1),
        ("trades", 2, 1),
        ("mart", 2, 0),
        ("trades,awp", 4, 1),
        ("mart,awp", 4, 0),
        ("cat-margin", 1, 0),
        ("cat-eps,dirichlet-ls,cat-margin,lsiw", 3, 1),
    ],
)
def test_the_published_table_with_default_options(
    tiny_net: Net, tiny_batch: BatchOf, chosen: str, update: int, more: int
) -> None:
    _, run = witnessed(tiny_net(), chosen.split(",") if chosen else (), tiny_batch())
    assert run(0) == {"attack": Passes(10 + more, 10), "update": updates(update)}


IN_A_STEP = [name for name in methods.names() if not methods.needs_the_loop([name])]
"""The installed plugins that a loop of one's own can have."""


@pytest.mark.parametrize(
    "chosen",
    sorted(
        {methods.alone(name) for name in IN_A_STEP}
        | {*combinations(IN_A_STEP, 2)}
        | {tuple(name for name in chosen if name in IN_A_STEP) for chosen in methods.crowds()}
    ),
    ids=",".join,
)
def test_every_installed_plugin_every_two_and_all_that_fit(
    tiny_net: Net, tiny_batch: BatchOf, chosen: tuple[str, ...]
) -> None:
    refused_or_counted(tiny_net, tiny_batch, chosen)


@given(st.lists(st.sampled_from(IN_A_STEP), min_size=3, max_size=3, unique=True).map(tuple))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_three(tiny_net: Net, tiny_batch: BatchOf, chosen: tuple[str, ...]) -> None:
    """In any order: who is refused is refused with the same sentence."""
    assert len({methods.refusal(order) for order in permutations(chosen)}) == 1
    refused_or_counted(tiny_net, tiny_batch, chosen)


def refused_or_counted(tiny_net: Net, tiny_batch: BatchOf, chosen: tuple[str, ...]) -> None:
    """Refused as the plan refuses them, or the witness, the ledger and the plan agree."""
    if sentence := methods.refusal(chosen):
        with pytest.raises((HookConflict, OptionError)) as refused:
            witnessed(tiny_net(True), chosen, tiny_batch())
        assert str(refused.value) == sentence
        return
    # In eval mode, whatever a method prefers: by that the witness tells the phases apart.
    settings = {"attack.mode": "eval", "attack.steps": 2}
    step, run = witnessed(tiny_net(True), chosen, tiny_batch(), settings=settings)
    run(0)
    if step.composition.at(10) is not step.composition.at(0):  # whatever begins later has begun by then
        run(10)


def cautions(net: nn.Sequential, *plugins: Any, options: Any = None, **settings: object) -> list[str]:
    step, _ = witnessed(net, plugins, _ONE, settings=settings, options=options or {})
    return step.composition.cautions


_ONE = (torch.zeros(1, 2, 4, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


def test_two_losses_are_refused_word_for_word(tiny_net: Net) -> None:
    with pytest.raises(HookConflict) as refused:
        cautions(tiny_net(), "trades", "mart")
    assert str(refused.value) == (
        "Plugins mart and trades both own base_loss, which takes one owner; leave one of them out."
    )


def test_soft_labels_that_a_phase_does_not_use_are_cautioned_word_for_word(tiny_net: Net) -> None:
    assert cautions(tiny_net(), "mart", "dirichlet-ls") == [
        "the soft labels of dirichlet-ls do not reach the loss of mart"
    ]
    assert cautions(tiny_net(), "trades", "dirichlet-ls") == [
        "the soft labels of dirichlet-ls do not reach the attack of trades"
    ]
    assert cautions(tiny_net(), "cat-margin", "dirichlet-ls") == []
    # Weights by rank may read them; the loss still does not.
    assert cautions(tiny_net(), "mart", "dirichlet-ls", "lsiw")[0] == (
        "the soft labels of dirichlet-ls do not reach the loss of mart"
    )


def test_awp_cautions_of_the_attack_mode_where_its_code_has_another(tiny_net: Net) -> None:
    """The official TRADES-AWP attacks in eval mode; MART-AWP was never released."""
    assert cautions(tiny_net(), "awp") == [
        "the official AWP code attacks in train mode from a uniform start; this run in eval mode"
    ]
    assert cautions(tiny_net(), "awp", **{"attack.mode": "train"}) == []
    assert cautions(tiny_net(), "trades", "awp") == cautions(tiny_net(), "mart", "awp") == []


@pytest.mark.parametrize("owner", ["trades", "mart"])
def test_lsiw_lets_v_increase_another_loss_than_the_runs(tiny_net: Net, owner: str) -> None:
    """ISEAT's v is for the cross-entropy; `awp` alone takes the loss of the run."""
    other = f"awp.loss is adv_ce, so v increases the cross-entropy on x_adv and not the loss of {owner}"
    iseat = "the official ISEAT code attacks in train mode; this run attacks in eval mode"
    early = (
        "lsiw.lam is 0.1 from epoch 0 on; ISEAT on CIFAR has 0 until the first decay of the learning rate, "
        "as lsiw.lam='0.1 after decay 1'"
    )
    assert cautions(tiny_net(), owner, "lsiw") == [other, iseat, early]
    late = {"lsiw": {"lam": [[0, 0.0], [1, 0.1]]}}
    assert cautions(tiny_net(), owner, "lsiw", options=late) == [other, iseat]
    assert cautions(tiny_net(), owner, "awp", options={"awp": {"loss": "adv_ce"}}) == [other]
    assert cautions(tiny_net(), owner, "lsiw", options={"awp": {"loss": "objective"}})[0] == (
        "awp.loss is objective, but lsiw needs logits at theta, so v does not see it"
    )


class OwnAttack(Plugin):
    """With a start of its own."""

    name = "own-attack"

    @hookimpl
    def inner_attack(self, batch, radius, objective):
        return AttackResult(batch.x)


START = (
    "attack.init is zero, where the KL of trades has no gradient beyond rounding, so some samples may never be "
    "attacked; set attack.init=normal"
)


@pytest.mark.filterwarnings("ignore:The attack moved 0 of 4:UserWarning")  # the KL has no gradient at x
def test_trades_has_no_gradient_at_the_image_itself(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """Which is what `attack.init=zero` starts from, the default that stands where `cat-eps` prefers otherwise."""
    assert START in cautions(tiny_net(), "trades", "cat-eps")
    assert cautions(tiny_net(), "trades", **{"attack.init": "zero"}) == [START]
    for silent in (("trades",), ("mart", "cat-eps"), ("trades", OwnAttack)):
        assert START not in cautions(tiny_net(), *silent)
    moved = {}
    for init in ("zero", "normal"):
        net, batch = tiny_net(dtype=torch.float64), tiny_batch(dtype=torch.float64)
        settings = {"attack.init": init, "attack.norm": "l2", "attack.steps": 1}
        with torch.no_grad():
            net[5].weight.zero_()  # a net so flat that nothing is left but rounding
            net[5].weight[0, 0] = 1e-3
        step = Step(net, torch.optim.SGD(net.parameters(), lr=0.01), ["trades"], num_samples=4, settings=settings)
        moved[init] = (step(*batch, epoch=0).x_train != batch[0]).flatten(1).any(1)
    assert not moved["zero"].all() and moved["normal"].all()


@pytest.mark.parametrize("mode", ["train", "train-frozen"])
def test_the_counts_do_not_depend_on_the_attack_mode(tiny_net: Net, tiny_batch: BatchOf, mode: str) -> None:
    net = tiny_net(True)
    witness = Witness(net)
    step = Step(
        net,
        torch.optim.SGD(net.parameters(), 0.01),
        ["cat-eps", "lsiw"],
        num_samples=4,
        settings={"attack.mode": mode},
    )
    report = step(*tiny_batch(), epoch=0)
    assert report.passes == {"attack": Passes(11, 10), "update": updates(3)}
    assert witness.take()["update"] == Passes(14, 10, 3)  # every forward is in train mode here: the two phases' sum


def test_the_witness_would_notice_an_unbooked_forward(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """A negative control: a plugin that runs the model after the update, where nobody watches it."""
    net, batch = tiny_net(), tiny_batch()

    class Sly(Plugin):
        name = "sly"

        @hookimpl
        def after_update(self):
            net(batch[0])

    _, run = witnessed(net, [Sly], batch)
    with pytest.raises(AssertionError):
        run(0)


def test_each_forward_names_who_demanded_it(tiny_net: Net, tiny_batch: BatchOf) -> None:
    net = tiny_net()
    step = Step(net, torch.optim.SGD(net.parameters(), 0.01), ["cat-eps", "lsiw"], num_samples=4)
    assert step(*tiny_batch(), epoch=0).demanded_by == {
        "attack.iterates": ["core"],
        "attack.success": ["cat-eps"],
        "update.adv_logits": ["av-rank", "core", "lsiw"],
        "update.clean_logits_base": ["av-rank", "lsiw"],
        "update.gradient_at adv_logits": ["awp"],
    }


# --- methods that advkit does not ship, as their authors would write them --------------------------


def divergence(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    clean = clean_logits.log_softmax(1)
    return (clean.exp() * (clean - adv_logits.log_softmax(1))).sum(1)


class Trades(Plugin):
    name = "trades-like"
    prefers = {"attack.init": "normal"}

    @hookimpl
    def attack_objective(self, clean_logits):
        return lambda logits: divergence(clean_logits, logits)

    @hookimpl
    def base_loss(self, batch, clean_logits):
        return F.cross_entropy(clean_logits, batch.y, reduction="none")

    @hookimpl
    def extra_regularizer(self, adv_logits, clean_logits):
        return 6 * divergence(clean_logits, adv_logits)


class Rwp(Plugin):
    """Ten random or uphill moves, each with a gradient of its own."""

    name = "rwp-like"

    def passes(self, hook, costs):
        return costs.adv_ce * 10

    @hookimpl
    def weight_perturbation(self, params, gradient_at):
        shift = {name: torch.zeros_like(p) for name, p in params.items()}
        for _ in range(10):
            gradient = gradient_at(shift, select=lambda logits, y: logits.argmax(1) != y)
            shift = {name: shift[name] + 1e-3 * gradient[name] for name in shift}
        return shift


class Stability(Plugin):
    """On the base weights, whatever perturbs them."""

    name = "stability"

    @hookimpl
    def extra_regularizer(self, adv_logits_base, clean_logits_base):
        return (adv_logits_base - clean_logits_base).square().sum(1)


class Anchored(Plugin):
    """Pulls the adversarial logits to the clean ones, which it takes as given."""

    name = "anchored"

    def detached(self, hook, epoch):
        return {"clean_logits"}

    @hookimpl
    def extra_regularizer(self, adv_logits, clean_logits):
        assert not clean_logits.requires_grad
        return (adv_logits - clean_logits).square().sum(1)


class Margin(Plugin):
    """A budget from the clean margin, as MMA or IAAT would ask for."""

    name = "margin"

    @hookimpl
    def perturbation_budget(self, clean_logits, run):
        eps = clean_logits.softmax(1).amax(1) * run.attack.eps
        return Budget(attack=eps, label=eps)


class Fgsm(Plugin):
    """One step of its own, instead of the core's K."""

    name = "fgsm"

    def passes(self, hook, costs):
        return Passes(forward=1, input_backward=1)

    @hookimpl
    def inner_attack(self, model, batch, radius, objective):
        x = batch.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
        return AttackResult((batch.x + radius.view(-1, 1, 1, 1) * gradient.sign()).clamp(0, 1))


class Jacobian(Fgsm):
    """Takes the gradients of all three logits at once, which are three backwards."""

    name = "jacobian"

    def passes(self, hook, costs):
        return Passes(forward=1, input_backward=3)

    @hookimpl
    def inner_attack(self, model, batch, radius):
        x = batch.x.clone().requires_grad_()
        logits = model(x)
        each = torch.eye(3)[:, None].expand(3, *logits.shape)
        (gradients,) = torch.autograd.grad(logits, x, each, is_grads_batched=True)
        way = -gradients[batch.y, torch.arange(len(x))].sign()
        return AttackResult((batch.x + radius.view(-1, 1, 1, 1) * way).clamp(0, 1))


class Recomputes(Fgsm):
    """Keeps nothing of its forward for its backward."""

    name = "recomputes"

    @hookimpl
    def inner_attack(self, model, batch, radius, objective):
        return super().inner_attack(lambda x: checkpoint(model, x, use_reentrant=False), batch, radius, objective)


class Watcher(Plugin):
    """Looks at every iterate and stops nobody."""

    name = "watcher"

    @hookimpl
    def attack_step(self, logits):
        return torch.ones(len(logits), dtype=torch.bool)


K = Passes(10, 10)


@pytest.mark.parametrize(
    ("plugins", "options", "attack", "update"),
    [
        ([Trades], {}, Passes(11, 10), updates(2)),
        ([Trades, "awp"], {}, Passes(11, 10), updates(4)),  # auto: the objective, as TRADES-AWP
        ([Trades, "awp"], {"awp": {"loss": "adv_ce"}}, Passes(11, 10), updates(3)),
        ([Trades, "cat-eps"], {}, Passes(12, 10), updates(2)),
        ([Trades, Margin], {}, Passes(11, 10), updates(2)),  # one clean forward in the attack, shared
        ([Rwp], {}, K, updates(11)),
        (["lsiw", Rwp], {}, K, updates(12)),
        ([Stability], {}, K, updates(2)),  # base views are the plain ones where nobody perturbs
        ([Stability, "awp"], {}, K, updates(4)),
        ([Stability, "awp"], {"awp": {"loss": "objective"}}, K, updates(4)),  # v never sees base views
        (["lsiw"], {"lsiw": {"clean_at": "theta+v"}}, K, Passes(4, 0, 3)),  # av-rank's clean forward is at theta
        (["lsiw"], {"lsiw": {"clean_at": "theta+v"}, "awp": {"loss": "objective"}}, K, Passes(5, 0, 4)),
        (["lsiw"], {"lsiw": {"adv_at": "theta"}}, K, updates(4)),
        ([Anchored], {}, K, Passes(forward=2, full_backward=1)),
        ([Anchored, Trades], {}, Passes(11, 10), updates(2)),  # somebody else wants that gradient
        ([Margin], {}, Passes(11, 10), updates(1)),
        ([Fgsm], {}, Passes(1, 1), updates(1)),
        ([Jacobian], {}, Passes(1, 3), updates(1)),
        ([Fgsm, "cat-eps", "lsiw"], {}, Passes(2, 1), updates(3)),
        ([Watcher], {}, K, updates(1)),
    ],
    ids=lambda value: ",".join(p if isinstance(p, str) else p.name for p in value) if isinstance(value, list) else "",
)
def test_other_methods(
    tiny_net: Net, tiny_batch: BatchOf, plugins: list[Any], options: Any, attack: Passes, update: Passes
) -> None:
    _, run = witnessed(tiny_net(), plugins, tiny_batch(), options=options)
    for _ in range(2):
        assert run(0) == {"attack": attack, "update": update}


def test_detached_may_change_with_the_epoch(tiny_net: Net, tiny_batch: BatchOf) -> None:
    class Thawing(Plugin):
        name = "thawing"

        def detached(self, hook, epoch):
            return {"clean_logits"} if epoch == 0 else ()

        @hookimpl
        def extra_regularizer(self, adv_logits, clean_logits):
            return (adv_logits - clean_logits).square().sum(1)

    _, run = witnessed(tiny_net(), [Thawing], tiny_batch())
    assert run(0)["update"] == Passes(forward=2, full_backward=1)
    assert run(1)["update"] == updates(2)


# --- declarations that do not hold ----------------------------------------------------------------


class Secretive(Rwp):
    name = "secretive"

    def passes(self, hook, costs):
        return costs.adv_ce * 9


class Boastful(Rwp):
    name = "boastful"

    def passes(self, hook, costs):
        return costs.adv_ce * 11


class Hungry(Fgsm):
    name = "hungry"

    @hookimpl
    def inner_attack(self, model, batch, radius, objective):
        model(batch.x)
        return super().inner_attack(model, batch, radius, objective)


class Silent(Plugin):
    """Drops a gradient without saying so in `detached`."""

    name = "silent"

    @hookimpl
    def extra_regularizer(self, adv_logits, clean_logits):
        return (adv_logits - clean_logits.detach()).square().sum(1)


class Silenced(Plugin):
    """The same in a loss of its own."""

    name = "silenced"

    @hookimpl
    def base_loss(self, batch, adv_logits, clean_logits):
        return F.cross_entropy(adv_logits, batch.y, reduction="none") + (adv_logits - clean_logits.detach()).sum(1)


def test_an_attack_through_a_checkpoint_is_the_attack_without_it(tiny_net: Net, tiny_batch: BatchOf) -> None:
    """torch ends the second forward by an exception, as soon as it has what the backward needs; it is booked once."""
    nets = [tiny_net(), tiny_net()]
    for net, plugin in zip(nets, (Fgsm, Recomputes), strict=True):
        step = Step(net, torch.optim.SGD(net.parameters(), 0.1), [plugin], num_samples=16, eps=0.1)
        assert step(*tiny_batch(), epoch=0).passes["attack"] == Passes(1, 1)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("company", ["awp", "rwp", "lsiw"])
def test_undeclared_passes_are_not_blamed_on_the_company(tiny_net: Net, tiny_batch: BatchOf, company: str) -> None:
    for plugins, who in (
        ([Silent], "Plugin silent"),
        ([Silenced], "Plugin silenced"),
        ([Silent, Silenced], "One of the plugins silenced, silent"),
    ):
        with pytest.raises(HookContract, match=f"^{who} ran other passes than declared"):
            witnessed(tiny_net(), [*plugins, company], tiny_batch())[1](0)


@pytest.mark.parametrize(
    ("plugin", "who", "ran", "phase", "plan"),
    [
        (Secretive, "Plugin secretive", updates(11), "update", updates(10)),
        (Boastful, "Plugin boastful", updates(11), "update", updates(12)),
        (Hungry, "Plugin hungry", Passes(2, 1), "attack", Passes(1, 1)),
        (Silent, "Plugin silent", Passes(2, 0, 1), "update", updates(2)),
    ],
)
def test_undeclared_passes_are_refused_before_the_update(
    tiny_net: Net, tiny_batch: BatchOf, plugin: type[Plugin], who: str, ran: Passes, phase: str, plan: Passes
) -> None:
    net = tiny_net()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(HookContract) as refused:
        witnessed(net, [plugin], tiny_batch())[1](0)
    assert str(refused.value) == (
        f"{who} ran other passes than declared: {ran.as_dict()} in the {phase} phase, where the plan says "
        f"{plan.as_dict()}. Declare them in Plugin.passes or Plugin.detached."
    )
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))
