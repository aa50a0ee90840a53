"""What is refused before anything runs, word for word: plugins that do not fit the hooks, or each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advkit import AttackResult, Budget, Order, Passes, Plugin, PluginOptions, Step, hookimpl, option
from advkit.compose.registration import HOOKS, check, hooks_of
from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.errors import AdvkitError, AmbiguousOrder, HookConflict, OptionError, PluginLoad, UnknownHook
from advkit_plugins.lsiw import Lsiw

Net = Callable[..., nn.Sequential]
BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]


def plugin(name: str, **members: Any) -> type[Plugin]:
    """A plugin class; `members` named like hooks are marked."""
    marked = {key: hookimpl(value) if key in HOOKS and callable(value) else value for key, value in members.items()}
    return type("Anonymous", (Plugin,), {"name": name, **marked})


def sentence(kind: type[AdvkitError], act: Callable[[], Any]) -> str:
    with pytest.raises(AdvkitError) as refused:
        act()
    assert type(refused.value) is kind
    return str(refused.value)


# --- one plugin -----------------------------------------------------------------------------------


def test_the_base_class_declares_no_hook() -> None:
    assert not set(dir(Plugin)) & HOOKS.keys()
    assert hooks_of(Plugin) == ()
    assert hooks_of(Lsiw) == ("extra_regularizer",)


@pytest.mark.parametrize("mark", ["tryfirst", "trylast", "wrapper", "hookwrapper"])
def test_marks_that_order_calls(mark: str) -> None:
    class Early(Plugin):
        name = "early"

        @hookimpl(**{mark: True})
        def after_update(self, model):
            yield

    assert sentence(UnknownHook, lambda: check(Early)) == (
        f"Plugin early, hook after_update: {mark} is refused, because results must not depend on call order; "
        "declare `order` on the class for chained hooks."
    )


class Odd:
    """Methods a call of which runs nothing, or that are given something else than hooks are."""

    def after_update(self, model):
        yield

    async def setup(self, run): ...

    async def teardown(self, run):
        yield

    @staticmethod
    async def epoch_end(run): ...

    @classmethod
    def epoch_start(cls, run): ...

    @staticmethod
    def observe_update(bacth): ...


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("after_update", "it yields, so that a call runs nothing of it; write it without yield."),
        ("setup", "it is async, so that a call runs nothing of it; write it without async."),
        ("teardown", "it is async, so that a call runs nothing of it; write it without async."),
        ("epoch_end", "it is async, so that a call runs nothing of it; write it without async."),
        ("epoch_start", "it is a classmethod; write it as an ordinary method, with self."),
        ("observe_update", "there is no argument bacth. Did you mean batch? Known: batch, "),
    ],
)
def test_methods_that_would_not_run(hook: str, said: str) -> None:
    alone = type("Alone", (Plugin,), {"name": "odd", hook: hookimpl(vars(Odd)[hook])})
    assert sentence(UnknownHook, lambda: check(alone)).startswith(f"Plugin odd, hook {hook}: {said}")


@pytest.mark.parametrize("marks", [{"specname": "after_update"}, {"optionalhook": True}])
def test_marks_that_silence_misspellings(marks: dict[str, Any]) -> None:
    class Quiet(Plugin):
        name = "quiet"

        @hookimpl(**marks)
        def after_update(self, model): ...

    assert sentence(UnknownHook, lambda: check(Quiet)) == (
        "Plugin quiet, hook after_update: specname and optionalhook are refused, because they silence misspellings; "
        "name the method like the hook."
    )


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        (lambda self, *, batch: None, "batch"),
        (lambda self, *batch: None, "batch"),
        (lambda self, **known: None, "known"),
        (lambda self, batch, /: None, "self"),
        (lambda *everything: None, "everything"),
    ],
)
def test_arguments_that_are_not_ordinary(method: Callable[..., Any], argument: str) -> None:
    assert sentence(UnknownHook, lambda: check(plugin("odd", perturbation_budget=method))) == (
        f"Plugin odd, hook perturbation_budget: argument {argument} must be an ordinary one, not *, ** or keyword-only."
    )


def test_a_default_argument() -> None:
    assert sentence(UnknownHook, lambda: check(plugin("odd", perturbation_budget=lambda self, batch=None: None))) == (
        "Plugin odd, hook perturbation_budget: argument batch has a default, and pluggy would never fill it in; "
        "remove the default."
    )


def test_an_unknown_argument() -> None:
    assert sentence(UnknownHook, lambda: check(plugin("odd", after_update=lambda self, mode1: None))) == (
        "Plugin odd, hook after_update: there is no argument mode1. Did you mean model? Known: model, run."
    )
    assert sentence(UnknownHook, lambda: check(plugin("odd", after_update=lambda self, x_adv: None))) == (
        "Plugin odd, hook after_update: there is no argument x_adv. Known: model, run."
    )


def test_an_unknown_hook() -> None:
    class Misspelt(Plugin):
        name = "misspelt"

        @hookimpl
        def perturbation_bugdet(self): ...

    class Invented(Plugin):
        name = "invented"

        @hookimpl
        def qqq(self): ...

    assert sentence(UnknownHook, lambda: check(Misspelt)) == (
        "Plugin misspelt marks perturbation_bugdet as a hook, but there is no such hook. "
        "Did you mean perturbation_budget? docs/hooks.md lists them."
    )
    assert sentence(UnknownHook, lambda: check(Invented)) == (
        "Plugin invented marks qqq as a hook, but there is no such hook. docs/hooks.md lists them."
    )


def test_a_method_that_is_named_like_a_hook_but_unmarked() -> None:
    class Forgot(Plugin):
        name = "forgot"

        def base_loss(self, adv_logits): ...

    class Inherits(Forgot):
        name = "inherits"

    for kind in (Forgot, Inherits):
        assert sentence(UnknownHook, lambda kind=kind: check(kind)) == (
            f"Plugin {kind.name} has a method named like the hook base_loss, but it is not marked: "
            "put @hookimpl on it, or rename it."
        )


def test_annotations_that_differ() -> None:
    class Parameter(Plugin):
        name = "parameter"

        @hookimpl
        def target_label(self, target: Tensor, phase: int) -> Tensor: ...

    class Returns(Plugin):
        name = "returns"

        @hookimpl
        def perturbation_budget(self) -> Tensor: ...

    assert sentence(UnknownHook, lambda: check(Parameter)) == (
        "Plugin parameter, hook target_label: phase is annotated int, but the hook's is str; "
        "correct or remove the annotation."
    )
    assert sentence(UnknownHook, lambda: check(Returns)) == (
        "Plugin returns, hook perturbation_budget: return is annotated Tensor, but the hook's is Budget; "
        "correct or remove the annotation."
    )


def test_annotations_may_be_written_in_other_ways() -> None:
    def commit_attack(self, batch, budget):
        return budget, None

    def target_label(self, target):
        return target

    def extra_regularizer(self, adv_logits):
        return adv_logits

    commit_attack.__annotations__ = {"budget": Budget, "return": tuple[Budget, Tensor | None]}
    target_label.__annotations__ = {"target": torch.Tensor, "return": "torch.Tensor"}
    extra_regularizer.__annotations__ = {"adv_logits": "Tensor | None"}
    fine = plugin("fine", commit_attack=commit_attack, target_label=target_label, extra_regularizer=extra_regularizer)
    check(fine)
    target_label.__annotations__ = {"target": int}
    assert "target is annotated int" in sentence(UnknownHook, lambda: check(fine)), "they are read"


def test_a_class_that_has_changed_is_looked_at_anew() -> None:
    """Notebooks put new functions into the classes that are there."""
    changed = plugin("changed", target_label=lambda self, target: target)
    check(changed)
    changed.target_labels = hookimpl(lambda self, target: target)
    assert "there is no such hook" in sentence(UnknownHook, lambda: check(changed))


def test_a_base_beside_plugin_is_looked_at() -> None:
    class Mixin:
        def target_label(self, target):
            return target

    mixed = type("Mixed", (Plugin, Mixin), {"name": "mixed"})
    assert "not marked" in sentence(UnknownHook, lambda: check(mixed))


@pytest.mark.parametrize("name", ["CamelCase", "snake_case", "", "-a", "a-", "a--b", "1a", None, 3])
def test_names_that_are_not_kebab_case(name: Any) -> None:
    assert sentence(UnknownHook, lambda: check(plugin(name))) == (
        "Plugin class Anonymous needs a kebab-case class attribute `name`, such as 'my-plugin'."
    )


def test_names_that_are() -> None:
    for name in ("a", "cat-eps", "a1-2b"):
        check(plugin(name))
    nameless = type("Nameless", (Plugin,), {})
    assert "needs a kebab-case" in sentence(UnknownHook, lambda: check(nameless))


@pytest.mark.parametrize("kind", [int, 3])
def test_what_is_no_plugin(kind: Any) -> None:
    assert sentence(UnknownHook, lambda: check(kind)) == (
        f"{kind!r} is not a subclass of advkit.Plugin; derive it from advkit.Plugin."
    )


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_can_be_answered_with_all_its_arguments_or_none(hook: str) -> None:
    """A control to all refusals above."""
    arguments = HOOKS[hook].arguments
    full = eval(f"lambda self, {', '.join(arguments)}: None")
    check(plugin("full", **{hook: full}))
    check(plugin("none", **{hook: lambda self: None}))
    assert hooks_of(plugin("full", **{hook: full})) == (hook,)


# --- several plugins ------------------------------------------------------------------------------


@pytest.fixture
def compose(tiny_net: Net) -> Callable[..., Step]:
    def compose(*plugins: Any, **arguments: Any) -> Step:
        net = tiny_net()
        return Step(net, torch.optim.SGD(net.parameters(), 0.1), plugins, num_samples=8, **arguments)

    return compose


Compose = Callable[..., Step]


def constant(batch):
    return Budget(batch.x.new_full((len(batch.y),), 0.01), batch.x.new_zeros(len(batch.y)))


def owns_budget(name: str, **members: Any) -> type[Plugin]:
    return plugin(name, perturbation_budget=lambda self, batch: constant(batch), **members)


def test_two_owners_of_an_exclusive_hook(compose: Compose) -> None:
    for pair in (("cat-eps", owns_budget("iaat")), (owns_budget("iaat"), "cat-eps")):
        assert sentence(HookConflict, lambda pair=pair: compose(*pair)) == (
            "Plugins cat-eps and iaat both own perturbation_budget, which takes one owner; leave one of them out."
        )


def test_the_same_plugin_twice(compose: Compose) -> None:
    assert sentence(OptionError, lambda: compose("awp", "awp")) == ("Plugin awp is named twice; name it once.")


def labels(name: str, log: list[str], before: set[str] = frozenset(), after: set[str] = frozenset()) -> type[Plugin]:
    def target_label(self, target):
        log.append(name)
        return target

    place = Order(before=frozenset(before), after=frozenset(after))
    return plugin(name, target_label=target_label, order={"target_label": place})


def test_an_ambiguous_chain_prints_lines_that_work(compose: Compose, tiny_batch: BatchOf) -> None:
    log: list[str] = []
    pair = labels("soften", log), labels("bilateral", log)
    assert sentence(AmbiguousOrder, lambda: compose(*pair)) == (
        "Plugins bilateral and soften both change target_label and neither declares its place; "
        "set order.target_label=bilateral,soften or order.target_label=soften,bilateral."
    )
    for line in ("bilateral,soften", "soften,bilateral"):
        for chosen in (pair, pair[::-1]):
            log.clear()
            step = compose(*chosen, settings={"order.target_label": line})
            step(*tiny_batch(), epoch=0)
            assert log == line.split(",") * 2  # both phases


def test_among_three_each_printed_line_keeps_what_was_chosen(compose: Compose) -> None:
    """Whichever of the two lines is taken each time, it ends."""
    trio = [labels(name, []) for name in "abc"]

    def settle(line: str | None, which: int, tries: int) -> str:
        assert tries < 4
        try:
            step = compose(*trio, settings={"order.target_label": line} if line else {})
        except AmbiguousOrder as error:
            one, other = (part.strip(".").split(" ")[0] for part in str(error).split("order.target_label=")[1:])
            return settle((one, other)[which], which, tries + 1)
        return ",".join(step.composition.owners("target_label"))

    assert settle(None, 0, 0) == "a,b,c"
    assert settle(None, 1, 0) == "b,a,c"
    assert sentence(AmbiguousOrder, lambda: compose(*trio, settings={"order.target_label": "c,b"})) == (
        "Plugins a and c both change target_label and neither declares its place; "
        "set order.target_label=a,c,b or order.target_label=c,a,b."
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [({"before": {"one"}}, {}), ({}, {"after": {"two"}}), ({"before": {"one", "absent"}}, {"after": {"two"}})],
)
def test_declared_places(compose: Compose, first: dict[str, Any], second: dict[str, Any]) -> None:
    two, one = labels("two", [], **first), labels("one", [], **second)
    for chosen in ((one, two), (two, one)):
        assert compose(*chosen).composition.owners("target_label") == ("two", "one")
    overruled = compose(one, two, settings={"order.target_label": "one,two"})
    assert overruled.composition.owners("target_label") == ("one", "two")


def test_places_that_contradict_each_other(compose: Compose) -> None:
    pair = labels("a", [], before={"b"}), labels("b", [], before={"a"})
    assert sentence(AmbiguousOrder, lambda: compose(*pair)) == (
        "Plugins a and b declare places on target_label that contradict each other; set order.target_label=a,b."
    )
    trio = labels("a", [], before={"b"}), labels("b", [], before={"c"}), labels("c", [], before={"a"})
    assert sentence(AmbiguousOrder, lambda: compose(*trio)) == (
        "Plugins a and b and c declare places on target_label that contradict each other; set order.target_label=a,b,c."
    )
    for chosen, line in ((pair, "a,b"), (pair, "b,a"), (trio, "a,b,c"), (trio, "c,b,a")):
        step = compose(*chosen, settings={"order.target_label": line})
        assert step.composition.owners("target_label") == tuple(line.split(","))


def test_orders_of_nothing(compose: Compose) -> None:
    assert sentence(OptionError, lambda: compose("dirichlet-ls", settings={"order.target_label": "cat-eps"})) == (
        "order.target_label names cat-eps, which does not answer target_label in this run."
    )
    assert sentence(OptionError, lambda: compose("awp", settings={"order.extra_regularizer": "awp"})) == (
        "order.extra_regularizer orders nothing; only chained hooks have an order: train_dataset, target_label, "
        "attack_move."
    )


# --- nobody is ignored ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaces", "said"),
    [
        (
            {"inner_attack": ("attack.bogus",)},
            "replaces['inner_attack'] has attack.bogus, which no hook stands in for.",
        ),
        (
            {"inner_attack": ("optimizer.lr",)},
            "replaces['inner_attack'] has optimizer.lr, which no hook stands in for.",
        ),
        ({"base_loss": ("attack.steps",)}, "replaces has base_loss, which it does not answer; answer it, or take it"),
    ],
)
def test_a_setting_that_no_answer_stands_in_for(compose: Compose, replaces: dict[str, tuple[str]], said: str) -> None:
    assert said in sentence(UnknownHook, lambda: compose(attack("fgsm", replaces=replaces)))
    compose(attack("fgsm", replaces={"inner_attack": ("attack.steps",)}))


def attack(name: str, uses: str = "batch", **members: Any) -> type[Plugin]:
    """An inner attack that lists the arguments `uses`."""
    method = eval(f"lambda self, {uses}: None")  # never called
    return plugin(name, inner_attack=method, **members)


def everyone(self, logits):
    return torch.ones(len(logits), dtype=torch.bool)


WATCHER = plugin("watcher", attack_step=everyone)
OBJECTIVE = plugin("goal", attack_objective=lambda self, target: lambda logits: (target * logits).sum(1))


def test_an_observer_beside_an_attack_that_asks_none(compose: Compose) -> None:
    assert sentence(HookConflict, lambda: compose(WATCHER, attack("fgsm"))) == (
        "Plugin watcher observes attack steps, but the inner attack fgsm declares that it asks no observers; "
        "leave one of them out."
    )


def test_an_attack_that_lists_observe_really_asks_observers(compose: Compose, tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    asked = []

    def even(self, batch, x_adv, logits, loss, gradient, step):
        asked.append((step, tuple(logits.shape), logits.requires_grad, torch.equal(x_adv, batch.x)))
        return batch.index % 2 == 0

    def fgsm(self, model, batch, radius, objective, observe):
        moved = batch.x.clone().requires_grad_()
        logits = model(moved)
        loss = objective(logits)
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
        seen = {"x_adv": moved, "logits": logits, "loss": loss, "gradient": gradient}
        go = torch.ones(len(batch.y)) if observe is None else observe(**seen, step=0)
        size = (radius * go).view(-1, 1, 1, 1)
        return AttackResult((batch.x + size * gradient.sign()).clamp(0, 1))

    honest = plugin(
        "honest",
        inner_attack=fgsm,
        passes=lambda self, hook, costs: Passes(1, 1),
    )
    x_train = compose(honest, plugin("even", attack_step=even))(x, y, index, epoch=0).x_train
    assert asked == [(0, (4, 3), False, True)]
    assert (x_train != x).flatten(1).any(1).tolist() == [True, False, True, False]
    alone = compose(honest)(x, y, index, epoch=0).x_train
    assert (alone != x).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("ignored", "hook", "argument"),
    [
        (owns_budget("ours"), "perturbation_budget", "radius"),
        (plugin("ours", budget_scale=lambda self: None), "budget_scale", "radius"),
        (plugin("ours", attack_objective=lambda self: None), "attack_objective", "objective"),
    ],
)
def test_an_attack_that_ignores_the_answer(compose: Compose, ignored: type[Plugin], hook: str, argument: str) -> None:
    assert sentence(HookConflict, lambda: compose(ignored, attack("fgsm"))) == (
        f"Plugin ours answers {hook}, but the inner attack fgsm does not use `{argument}`, "
        "so nothing would come of it; leave one of them out."
    )
    compose(ignored, attack("fgsm", f"batch, {argument}"))


def test_soft_labels_that_nobody_or_one_phase_uses(compose: Compose) -> None:
    hard_loss = plugin("hard-loss", base_loss=lambda self, batch, adv_logits: None)
    hard_goal = plugin("hard-goal", attack_objective=lambda self, batch: None)
    assert sentence(HookConflict, lambda: compose("dirichlet-ls", hard_loss, hard_goal)) == (
        "Plugin dirichlet-ls changes the target label, but neither the attack objective of hard-goal nor the loss "
        "of hard-loss uses it; leave one of them out."
    )

    def cautions(*plugins: Any) -> list[str]:
        return compose("dirichlet-ls", *plugins).composition.cautions

    assert "the soft labels of dirichlet-ls do not reach the loss of hard-loss" in cautions(hard_loss)
    assert "the soft labels of dirichlet-ls do not reach the attack of hard-goal" in cautions(hard_goal)
    assert not [caution for caution in cautions() if "do not reach" in caution]


@pytest.mark.parametrize(
    ("idle", "hook"), [(WATCHER, "attack_step"), (OBJECTIVE, "attack_objective"), (attack("fgsm"), "inner_attack")]
)
def test_answers_about_an_attack_that_there_is_not(compose: Compose, idle: type[Plugin], hook: str) -> None:
    assert sentence(HookConflict, lambda: compose(idle, settings={"attack.steps": 0})) == (
        f"Plugin {idle.name} answers {hook}, but attack.steps is 0, so there is no attack; "
        "leave it out, or set attack.steps."
    )
    compose(idle, settings={"attack.steps": 1})
    compose(attack("own", replaces={"inner_attack": ("attack.steps",)}), settings={"attack.steps": 0})
    with pytest.raises(HookConflict, match=r"^Plugin ccat answers inner_attack, but attack\.steps is 0"):
        compose("ccat", settings={"attack.steps": 0})
    cautions = compose("cat-eps", settings={"attack.steps": 0}).composition.cautions
    assert "attack.steps is 0, so the budgets of cat-eps have no effect" in cautions


def test_a_commit_without_owning_the_budget(compose: Compose) -> None:
    commit = plugin("writer", commit_attack=lambda self, budget: (budget, None))
    for others, owner in (((), "core"), ((owns_budget("theirs"),), "theirs")):
        assert sentence(HookConflict, lambda others=others: compose(commit, *others)) == (
            f"Plugin writer answers commit_attack, but perturbation_budget is owned by {owner}; "
            "only the owner of the budget may write it."
        )
    compose(owns_budget("both", commit_attack=lambda self, budget: (budget, None)))


def test_a_weight_for_an_absent_term(compose: Compose) -> None:
    def weighs(*terms: str) -> type[Plugin]:
        return plugin("weighs", instance_weight=lambda self: torch.ones(4), terms=terms)

    tail = "which no chosen plugin adds; the terms of this run are base_loss."
    assert sentence(HookConflict, lambda: compose(weighs("lsiw"))) == f"Plugin weighs weighs the term lsiw, {tail}"
    assert sentence(HookConflict, lambda: compose(weighs())) == (
        "Plugin weighs answers instance_weight but names no loss term to weigh; set its `terms`, for example "
        "terms = ('base_loss',); the terms of this run are base_loss."
    )
    compose(weighs("base_loss"))
    compose(weighs("base_loss", "lsiw"), "lsiw")


# --- companions -----------------------------------------------------------------------------------


def asks(name: str, companion: str, options: dict[str, object], wish: str = "weight_perturbation") -> type[Plugin]:
    regularizer = {"extra_regularizer": lambda self, adv_logits: 0 * adv_logits.sum(1)}
    return plugin(name, companions={wish: (companion, options)}, **regularizer)


def test_companions_asked_for_differently(compose: Compose) -> None:
    """An installed plugin of another name stands in for a second weight perturbation."""
    pair = asks("first", "awp", {}), asks("second", "lsiw", {})
    assert sentence(HookConflict, lambda: compose(*pair)) == (
        "Plugins first and second ask for different companions on weight_perturbation (awp and lsiw); "
        "name the one you want among the plugins."
    )
    assert compose(*pair, "awp").composition.company.owner("weight_perturbation") == "awp"
    assert (
        compose(*pair, no_companion=["weight_perturbation"]).composition.company.owner("weight_perturbation") == "core"
    )


def test_one_companion_with_different_options(compose: Compose) -> None:
    pair = asks("first", "awp", {"gamma": 0.001}), asks("second", "awp", {"gamma": 0.002})
    for chosen in (pair, (*pair, "awp")):
        assert sentence(HookConflict, lambda chosen=chosen: compose(*chosen)) == (
            "Plugins first and second give awp different options; decline one with "
            "no_companion weight_perturbation and set awp.KEY=VALUE."
        )
    agreed = compose("awp", *pair, no_companion=["weight_perturbation"], options={"awp": {"gamma": 0.003}})
    assert agreed.composition.plugins[0].options.gamma.at(0) == 0.003
    same = compose(pair[0], asks("third", "awp", {"gamma": 0.001}))
    assert same.composition.added == {"awp": ("weight_perturbation", "first")}


def test_a_companion_yields_to_a_chosen_plugin_that_matches(compose: Compose) -> None:
    rwp = plugin("rwp", weight_perturbation=lambda self: {})
    weights = plugin("weights", instance_weight=lambda self: torch.ones(4), terms=("base_loss",))
    step = compose("lsiw", rwp, weights)
    assert step.composition.company.owner("weight_perturbation") == "rwp"
    assert step.composition.owners("instance_weight") == ("av-rank", "weights")  # another term, so it is no match
    matching = plugin("weights", instance_weight=lambda self: torch.ones(4), terms=("lsiw",))
    assert compose("lsiw", matching).composition.owners("instance_weight") == ("weights",)


def test_options_reach_companions_but_not_strangers(compose: Compose) -> None:
    step = compose("lsiw", options={"awp": {"gamma": 0.5}})
    awp = step.composition.plugins[1]
    assert (awp.options.gamma.at(0), awp.options.loss) == (0.5, "adv_ce")
    assert sentence(OptionError, lambda: compose("lsiw", options={"cat-eps": {"eta": 1.0}})) == (
        "Options are given for cat-eps, which is not in this run. Its plugins: av-rank, awp, lsiw."
    )


# --- preferences ----------------------------------------------------------------------------------


def prefers(name: str, hook: str, **wishes: object) -> type[Plugin]:
    wishes = {key.replace("__", "."): value for key, value in wishes.items()}
    if hook == "perturbation_budget":
        return owns_budget(name, prefers=wishes)
    return plugin(name, prefers=wishes, **{hook: lambda self, target, clean_logits: None})


def test_unanimous_preferences_apply_and_an_explicit_setting_wins(compose: Compose) -> None:
    one = prefers("one", "perturbation_budget", attack__init="uniform", attack__steps=3)
    two = prefers("two", "base_loss", attack__init="uniform")
    step = compose(one, two)
    assert (step.attack.init, step.attack.steps) == ("uniform", 3)
    explicit = compose(one, two, settings={"attack.init": "normal"})
    assert (explicit.attack.init, explicit.attack.steps) == ("normal", 3)
    assert compose().attack.init == "zero"


def test_preferences_that_disagree_keep_the_default_with_a_caution() -> None:
    own = {"model.name": "python:model", "data.name": "python:data"}
    pair = [
        prefers("one", "perturbation_budget", attack__init="uniform"),
        prefers("two", "base_loss", attack__init="normal"),
    ]
    caution = (
        "one prefers attack.init=uniform and two attack.init=normal; the default is used unless you set attack.init"
    )
    resolved = resolve(pair, [Layer("python", own)])
    assert resolved.attack.init == "zero"
    assert caution in resolved.cautions
    explicit = resolve(pair, [Layer("python", own | {"attack.init": "uniform"})])
    assert explicit.attack.init == "uniform"
    assert caution not in explicit.cautions


def test_only_owners_of_the_attack_and_the_base_loss_may_prefer(compose: Compose) -> None:
    biased = plugin("biased", prefers={"attack.steps": 3}, extra_regularizer=lambda self, adv_logits: adv_logits.sum(1))
    assert sentence(PluginLoad, lambda: compose(biased)) == (
        "Plugin biased prefers attack.steps, but owns none of perturbation_budget, attack_objective, inner_attack, "
        "attack_start, base_loss; it may only state a caution."
    )


def test_a_preference_must_be_a_setting(compose: Compose) -> None:
    assert sentence(OptionError, lambda: compose(owns_budget("odd", prefers={"attack.int": "zero"}))) == (
        "Unknown setting attack.int. Did you mean attack.init? `advkit plan` lists them all. Plugin odd suggests it, "
        "in prefers; mend that."
    )
    assert sentence(OptionError, lambda: compose(owns_budget("odd", prefers={"attack.init": "one"}))) == (
        "attack.init = 'one' must be 'zero', 'uniform' or 'normal'. Plugin odd suggests it, in prefers; set "
        "attack.init, or mend that."
    )


# --- answers that only the training loop asks for, and options ------------------------------------


def test_a_step_of_ones_own_refuses_hooks_of_the_training_loop(compose: Compose) -> None:
    assert sentence(HookConflict, lambda: compose(plugin("swa", evaluation_weights=lambda self, model: {}))) == (
        "Plugin swa answers evaluation_weights, which only advkit.train asks; "
        "train with advkit.train, or leave the plugin out."
    )


def test_options_of_a_plugin_passed_as_an_object(compose: Compose) -> None:
    class Sized(Plugin):
        name = "sized"

        class Options(PluginOptions):
            size: int = option(1, ge=1, help="a size")

    built = Sized(Sized.Options(size=2))
    assert compose(built).composition.plugins == (built,)
    assert compose(Sized, options={"sized": {"size": 3}}).composition.plugins[0].options.size == 3
    assert sentence(OptionError, lambda: compose(built, options={"sized": {"size": 3}})) == (
        "Plugin sized was passed as an object; set its options on the object."
    )
    assert sentence(OptionError, lambda: compose(Sized, options={"sized": {"sise": 3}})) == (
        "Unknown option sized.sise. Did you mean size? Known: size."
    )
