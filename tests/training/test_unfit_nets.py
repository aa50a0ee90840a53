"""Nets that an attack can not follow, or that a step would train on something else, are refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dead import Dead
from heard import Heard
from methods import pictures
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import CheckpointError, NonFinite, OptionError, Step
from advkit.config.resolve import resolve
from advkit.modes import traced
from advkit.studies.analysis import Ascent, margins
from advkit.training.parts import unusual_type

BatchOf = Callable[..., tuple[Tensor, Tensor, Tensor]]
FEATURES = 2 * 4 * 4


def core(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, classes))


class Calls(nn.Module):
    """A net whose forward is a function of its core and the images."""

    def __init__(self, forward: Callable[[Calls, Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        self.core, self.function = core(classes), forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def step_of(net: nn.Module, plugins: Any = (), **settings: Any) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    defaults = {"attack.eps": 0.1, "attack.steps": 2}
    return Step(net, optimizer, plugins, num_samples=16, settings={**defaults, **settings})


def autocast(dtype: torch.dtype, scale: float) -> Callable[[Calls, Tensor], Tensor]:
    def forward(net: Calls, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            logits = net.core(x)
        return logits.float() * scale

    return forward


def rounded(net: Calls, x: Tensor) -> Tensor:
    return net.core(x.half().float())


def spectral(net: Calls, x: Tensor) -> Tensor:
    """Pairs of halves."""
    return net.core(torch.fft.irfft2(torch.fft.rfft2(x).to(torch.complex32).to(torch.complex64), s=x.shape[2:]))


def only_in_train_mode(net: Calls, x: Tensor) -> Tensor:
    return rounded(net, x) if net.training else net.core(x)


@pytest.mark.parametrize(
    ("forward", "where"),
    [
        (autocast(torch.float16, 1e4), r"float16 in aten\._to_copy\).*\(50% of the entries on this batch\)"),
        (autocast(torch.bfloat16, 1.0), r"bfloat16 in aten\._to_copy\).*\(\d+% of the entries on this batch\)"),
        (rounded, r"float16 in aten\._to_copy\)"),
        (spectral, r"complex32 in aten\._to_copy\)"),
        (only_in_train_mode, r"float16 in aten\._to_copy\); small input gradients round to 0 there, and no attack"),
    ],
)
def test_half_precision_inside_a_net_is_refused(tiny_batch: BatchOf, forward: Any, where: str) -> None:
    """The logits are float32, but what flows back through the net rounds to 0."""
    net = Calls(forward)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(OptionError, match=r"computes in half precision inside its forward \(" + where):
        step_of(net)(*tiny_batch(), epoch=0)
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


def test_float64_inside_a_net_is_fine(tiny_batch: BatchOf) -> None:
    doubled = Calls(lambda net, x: net.core(x).double().float())
    x, y, index = tiny_batch()
    assert not torch.equal(step_of(doubled)(x, y, index, epoch=0).x_train, x)


def through_data(net: Calls, x: Tensor) -> Tensor:
    x.data.sub_(0.5)
    return net.core(x)


def through_numpy(net: Calls, x: Tensor) -> Tensor:
    view = x.detach().numpy()
    view *= 0.5
    return net.core(x)


def in_train_mode_through_data(net: Calls, x: Tensor) -> Tensor:
    return through_data(net, x) if net.training else net.core(x)


@pytest.mark.parametrize("forward", [through_data, through_numpy, in_train_mode_through_data])
def test_writes_that_torch_does_not_count_are_seen(tiny_batch: BatchOf, forward: Any) -> None:
    x, y, index = tiny_batch()
    kept = x.clone()
    with pytest.raises(OptionError, match="changes its input in place"):
        step_of(Calls(forward))(x, y, index, epoch=0)
    assert torch.equal(x, kept)


def test_checked_hooks_see_such_writes_later(tiny_batch: BatchOf) -> None:
    now = False
    net = Calls(lambda net, x: (through_data if now else lambda net, x: net.core(x))(net, x))
    step = step_of(net, **{"run.check_hooks": True})
    x, y, index = tiny_batch()
    step(x, y, index, epoch=0)
    now = True
    with pytest.raises(OptionError, match="changes its input in place"):
        step(x, y, index, epoch=1)


def without_grad(net: Calls, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.core(x)


def under_inference_mode(net: Calls, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.core(x)


CUT = {
    "detach": lambda net, x: net.core(x.detach()),
    "gray levels": lambda net, x: net.core((x * 255).to(torch.uint8).float() / 255),
    "numpy": lambda net, x: net.core(torch.from_numpy(x.detach().numpy().copy())),
    "a backward that gives None": lambda net, x: net.core(Dead.apply(x)),  # type: ignore[no-untyped-call]
    "no_grad": without_grad,
    "inference_mode": under_inference_mode,
}


@pytest.mark.parametrize("name", CUT)
def test_a_net_that_cuts_its_gradient_is_one_sentence(tiny_batch: BatchOf, name: str) -> None:
    for plugins in ((), "trades"):  # which asks for clean logits first
        said = r"^The net has no gradient at its input, .*; train one that is differentiable, or set attack\.steps=0 "
        with pytest.raises(OptionError, match=said):
            step_of(Calls(CUT[name]), plugins)(*tiny_batch(), epoch=0)


@pytest.mark.parametrize(
    "cut", [lambda net, x: net.core(x.detach()), lambda net, x: net.core(x if net.training else x.detach())]
)
def test_such_a_net_is_refused_before_a_validation_attacks_it(cut: Callable[[Calls, Tensor], Tensor]) -> None:
    """And what the sentence names is enough."""
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    net, data = Calls(cut), advkit.Splits(toy, toy, "none")
    settings, before = {"attack.steps": 0, "validation.fraction": 0.5}, net.core[1].weight.detach().clone()
    with pytest.raises(OptionError, match=r"set attack\.steps=0 and, where .*, validation\.fraction=0 \(with"):
        advkit.train(net, data, epochs=1, batch_size=4, eps=0.1, settings=settings)
    assert torch.equal(net.core[1].weight, before)
    advkit.train(net, data, epochs=1, batch_size=4, eps=0.1, settings={**settings, "validation.fraction": 0.0})
    assert not torch.equal(net.core[1].weight, before)


def test_a_frozen_net_without_an_optimizer_is_told_as_one() -> None:
    with pytest.raises(OptionError, match="The model has no trainable parameter; nothing could be learnt"):
        Step(core(3).requires_grad_(False), None, num_samples=4)


class Reversed(torch.autograd.Function):
    """Computes its forward again in its backward and differentiates that, to its weights too, as reversible nets do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, net: nn.Module, *weights: Tensor) -> Tensor:
        ctx.net = net
        ctx.save_for_backward(x, *weights)
        with torch.no_grad():
            output: Tensor = net(x)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, *weights = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            own, *others = torch.autograd.grad(ctx.net(x), [x, *weights], gradients)
        return own, None, *others


def test_a_net_that_differentiates_its_own_weights_is_one_sentence(tiny_batch: BatchOf) -> None:
    net = Calls(lambda net, x: Reversed.apply(x, net.core, *net.core.parameters()))  # type: ignore[no-untyped-call]
    with pytest.raises(OptionError, match="The model differentiates its own weights in a backward, as reversible nets"):
        step_of(net)(*tiny_batch(), epoch=0)


class Measures(nn.Module):
    """Begins as a net of quantization-aware training: its buffer has a size from its first batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.core = core()
        self.register_buffer("least", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.least):
            self.least.resize_(3).zero_()
        return self.core(x) + self.least


def test_a_buffer_that_takes_its_shape_from_the_first_batch(tiny_batch: BatchOf) -> None:
    net, (x, y, index) = Measures(), tiny_batch()
    with pytest.raises(
        OptionError, match=r"gives its buffer least another shape.* call the model on a batch of images"
    ):
        step_of(net)(x, y, index, epoch=0)
    assert net.least.shape == (0,)
    net(x)
    step_of(net)(x, y, index, epoch=0)


@pytest.mark.parametrize(
    "judge",
    [
        lambda net, data: advkit.evaluate(net, data, "clean,pgd-1", eps=0.1, audit=False),
        lambda net, data: advkit.audit(net, data, eps=0.1),
        lambda net, data: margins(net, data, Ascent(eps=0.1), cap=1.0),
    ],
    ids=["evaluate", "audit", "analysis"],
)
def test_such_a_net_is_not_judged_either(judge: Callable[[nn.Module, Any], object], tiny_batch: BatchOf) -> None:
    net, (x, y, _) = Measures().eval(), tiny_batch()
    with pytest.raises(
        OptionError, match=r"gives its buffer least another shape.* call the model on a batch of images"
    ):
        judge(net, pictures(8))
    assert net.least.shape == (0,)
    net(x)
    assert advkit.evaluate(net, (x, y), "clean", eps=0.1, audit=False).n == len(x)


class Caches(Measures):
    """Binds its buffer anew, once."""

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.least):
            self.least = torch.zeros(3)
        return self.core(x) + self.least


def test_a_buffer_that_is_bound_anew_once(tiny_batch: BatchOf) -> None:
    net, (x, y, index) = Caches(), tiny_batch()
    with pytest.raises(OptionError, match=r"^least moved in the attack.* Call the model on a batch of images before"):
        step_of(net)(x, y, index, epoch=0)
    assert net.least.shape == (0,)
    net(x)
    step_of(net)(x, y, index, epoch=0)


def test_what_is_computed_otherwise_in_the_backward_is_named(tiny_batch: BatchOf) -> None:
    """torch.utils.checkpoint saves other tensors when it calls the forward again."""

    def forward(net: Calls, x: Tensor) -> Tensor:
        calls = iter((net.core, lambda x: net.core(x.exp().log())))
        return checkpoint(lambda x: next(calls)(x), x, use_reentrant=False)

    with pytest.raises(OptionError, match=r"^A part of the model's forward is computed again in the backward \(torch"):
        step_of(Calls(forward))(*tiny_batch(), epoch=0)


def test_without_an_attack_only_the_weights_need_a_gradient(tiny_batch: BatchOf) -> None:
    step_of(Calls(CUT["detach"]), **{"attack.steps": 0})(*tiny_batch(), epoch=0)
    with pytest.raises(OptionError, match="The model's logits have no gradient, so nothing would be learnt"):
        step_of(Calls(without_grad), **{"attack.steps": 0})(*tiny_batch(), epoch=0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpoints_are_named(tiny_batch: BatchOf) -> None:
    net = Calls(lambda net, x: checkpoint(net.core, x, use_reentrant=True))
    with pytest.raises(OptionError, match=r"reentrant form.*use_reentrant=False"):
        step_of(net)(*tiny_batch(), epoch=0)
    with pytest.raises(OptionError, match=r"reentrant form.*use_reentrant=False"):
        advkit.evaluate(net, (tiny_batch()[0], tiny_batch()[1]), "pgd-2", eps=0.1)


def test_inference_mode_has_no_gradients(tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    step = step_of(core())
    with torch.inference_mode():
        made_there = core()
        with pytest.raises(OptionError, match=r"torch\.inference_mode is on"):
            step_of(core())
        with pytest.raises(OptionError, match=r"torch\.inference_mode is on"):
            step(x, y, index, epoch=0)
        with pytest.raises(OptionError, match=r"torch\.inference_mode is on"):
            advkit.evaluate(core(), (x, y), "clean", eps=0.1)
    for use in (step_of, lambda net: advkit.evaluate(net, (x, y), "clean", eps=0.1)):
        with pytest.raises(OptionError, match=r"1.weight of the model was made under torch.inference_mode"):
            use(made_there)


def test_a_lazy_module_is_built_before(tiny_batch: BatchOf) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    x, y, index = tiny_batch()
    for use in (step_of, lambda net: advkit.evaluate(net, (x, y), "clean", eps=0.1)):
        with pytest.raises(OptionError, match=r"1.weight of the model has no shape yet \(a lazy module\)"):
            use(net)
    with pytest.raises(OptionError, match=r"1.weight of the model has no shape yet \(a lazy module\)"):
        advkit.train(net, (x, y), epochs=1)
    net(x)
    step_of(net)(x, y, index, epoch=0)


def test_classes_are_the_same_in_both_modes(tiny_batch: BatchOf) -> None:
    net = Calls(lambda net, x: net.core(x) if net.training else net.core(x)[:, :3], classes=4)
    with pytest.raises(
        OptionError, match=r"returns 4 logits for each image here, and had 3 classes when .* in eval mode"
    ):
        step_of(net)(*tiny_batch(), epoch=0)


def test_another_head_needs_a_new_step(tiny_batch: BatchOf) -> None:
    net, (x, y, index) = nn.Sequential(*core()[:2], nn.Linear(8, 3)), tiny_batch()
    step = step_of(net)
    step(x, y, index, epoch=0)
    net[2] = nn.Linear(8, 5)
    step.optimizer.param_groups[0]["params"] = list(net.parameters())
    with pytest.raises(OptionError, match=r"returns 5 logits .* had 3 classes when this training began.* a new Step"):
        step(x, y, index, epoch=1)
    with pytest.raises(
        OptionError, match=r"y leaves 0\.\.2, the classes of the model's 3 logits when this training began"
    ):
        step(x, y + 2, index, epoch=1)


def test_batch_norm_of_the_batch_is_shown_two_images(tiny_batch: BatchOf) -> None:
    net = nn.Sequential(*core()[:2], nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    rows: list[int] = []
    net.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    with pytest.warns(UserWarning, match=r"depend on the other images of its batch \(BatchNorm with"):
        step_of(net, **{"attack.mode": "train"})(*tiny_batch(), epoch=0)
    assert rows[:2] == [1, 2] and {*rows[2:]} == {4}, "one alone is none to it"


def test_images_of_another_size_are_one_sentence() -> None:
    x, y = torch.rand(4, 2, 5, 4), torch.arange(4) % 3
    with pytest.raises(OptionError, match=r"can not be called on images \(4, 2, 5, 4\): RuntimeError: mat1 and mat2"):
        step_of(core())(x, y, torch.arange(4), epoch=0)


JIT = {"scripted": torch.jit.script, "traced": lambda net: torch.jit.trace(net, torch.rand(4, 2, 4, 4))}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is:FutureWarning")
@pytest.mark.parametrize("form", JIT)
def test_a_jitted_net_trains_where_nothing_is_put_in_its_place(form: str, tiny_batch: BatchOf) -> None:
    for plugins in ((), ("trades",), ("cat-eps", "dirichlet-ls")):
        net, eager = JIT[form](core()), core()
        for own in (net, eager):
            step = step_of(own, plugins)
            for epoch in range(2):
                step(*tiny_batch(), epoch=epoch)
        for one, other in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match=r"compiled by torch\.jit"):
        step_of(JIT[form](core()), ["awp"])(*tiny_batch(), epoch=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is:FutureWarning")
@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.Dropout(0.5)])
def test_a_traced_net_that_stays_in_its_mode_is_told(layer: nn.Module, tiny_batch: BatchOf) -> None:
    """The control: what torch.jit.script makes of it follows `training`."""
    net = nn.Sequential(layer, core())
    caution = "BatchNorm and dropout of the model's torch.jit graph are in eval mode whatever train"
    with pytest.warns(UserWarning, match=caution):
        step_of(JIT["traced"](net.eval()))(*tiny_batch(), epoch=0)
    assert (traced(net), traced(torch.jit.script(net))) == ("", "")
    assert traced(JIT["traced"](net)) and not traced(JIT["traced"](net.requires_grad_(False))), "a trunk that is held"
    net.requires_grad_()
    step_of(torch.jit.script(net.train()))(*tiny_batch(), epoch=0)  # warnings are errors in these tests


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is:FutureWarning")
def test_a_frozen_graph_inside_a_net_is_a_trunk(tiny_batch: BatchOf) -> None:
    """It has no mode, and needs none."""
    trunk = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval().requires_grad_(False)
    graph, (x, y, index), found = torch.jit.freeze(torch.jit.script(trunk)), tiny_batch(), []
    for inner in (graph, trunk):
        net = nn.Sequential(inner, core())
        step_of(net, ["trades"])(x, y, index, epoch=0)
        found.append([*net[1].parameters()])
    torch.testing.assert_close(*found)


class Within(nn.Module):
    """An exported module with dropout around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.drop(x))
        return logits


def test_an_exported_net_is_judged_and_not_trained(tiny_batch: BatchOf) -> None:
    images = torch.arange(12 * 32, dtype=torch.uint8).reshape(12, 2, 4, 4)
    toy = advkit.Dataset("toy", images, torch.arange(12) % 3, ("a", "b", "c"))
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(core().eval(), (torch.rand(4, 2, 4, 4),), dynamic_shapes=dynamic).module()

    def withstands(net: nn.Module) -> list[float]:
        return [one.accuracy for one in advkit.evaluate(net, toy, "clean,pgd-2", eps=0.1, n=0).attacks]

    assert withstands(exported) == withstands(core())
    around = Within(exported)  # in train mode
    assert withstands(around) == withstands(core()), "dropout is off"
    assert around.training and around.drop.training
    for net in (exported, around):
        with pytest.raises(OptionError, match=r"of torch\.export, whose graph computes in one mode; train the module"):
            step_of(net)


# ---------------------------------------------------------------------- attacks that stand still


def of_zeros() -> nn.Module:
    net = core()
    nn.init.zeros_(net[-1].weight)
    return net


def sure() -> nn.Module:
    """Of every image, so that its cross-entropy has no gradient in float32: nothing is wrong with that."""
    return Calls(lambda net, x: torch.tensor([[200.0, 0, 0]]).roll(0) * torch.ones(len(x), 1) + 0 * net.core(x))


@pytest.mark.parametrize("net", [lambda: Calls(lambda net, x: net.core((x * 255).round() / 255)), of_zeros])
def test_an_attack_that_moves_nothing_says_so(tiny_batch: BatchOf, net: Callable[[], nn.Module]) -> None:
    step = step_of(net())
    said = r"The attack moved 0 of 4 images of a batch, though .* input gradients are 0 \(100%\), or its steps too"
    with pytest.warns(UserWarning, match=said):
        step(*tiny_batch(), epoch=0)


@pytest.mark.parametrize("init", ["zero", "uniform"])
def test_an_attack_that_moves_half_of_a_batch_says_so(tiny_batch: BatchOf, init: str) -> None:
    def cut(of: int) -> Step:
        net = Calls(lambda net, x: net.core(torch.cat([x[: 4 - of], x[4 - of :].detach()])))
        return step_of(net, **{"attack.init": init, "attack.steps": 3})

    with pytest.warns(UserWarning, match=r"The attack moved 2 of 4 images of a batch, though their radius"):
        cut(2)(*tiny_batch(), epoch=0)
    cut(1)(*tiny_batch(), epoch=0)  # warnings are errors in these tests


def test_gradients_that_are_nan_are_no_attack_that_stands_still(tiny_batch: BatchOf) -> None:
    broken = Calls(lambda net, x: net.core(x) + 0 * ((x - x) ** 0.5).flatten(1).sum(1, keepdim=True))
    with pytest.raises(NonFinite, match="NaN or Inf in an input gradient of the attack"):
        step_of(broken)(*tiny_batch(), epoch=0)


def test_steps_below_rounding_move_nothing(tiny_batch: BatchOf) -> None:
    with pytest.warns(UserWarning, match=r"The attack moved 0 of 4 .* input gradients are 0 \(0%\), or its steps too"):
        step_of(core(), **{"attack.step_size": 1e-12})(*tiny_batch(), epoch=0)


def test_images_that_need_not_move_are_no_alarm(tiny_batch: BatchOf) -> None:
    x, _, index = tiny_batch()
    step_of(sure())(x, torch.zeros(4, dtype=torch.int64), index, epoch=0)
    step_of(core(), **{"attack.eps": 0})(*tiny_batch(), epoch=0)
    with pytest.warns(UserWarning, match="The attack moved 0 of 4 images"):  # sure, and wrong
        step_of(sure())(x, torch.ones(4, dtype=torch.int64), index, epoch=0)


def test_a_run_says_both(tiny_batch: BatchOf) -> None:
    drawn = torch.randint(0, 256, (12, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    toy = advkit.Dataset("toy", drawn, torch.arange(12) % 3, ("a", "b", "c"))
    heard, net = Heard(), Calls(lambda net, x: net.core((x * 255).round() / 255))
    settings = {"attack.steps": 1, "validation.fraction": 0.0}
    advkit.train(net, advkit.Splits(toy, toy, "none"), (), settings=settings, epochs=2, batch_size=4, progress=heard)
    first, epoch = heard.said
    assert first.startswith("The attack moved 0 of 4 images")
    assert epoch.startswith("100% of the attack's input gradients in epoch 1 were zero")


def at_edges(tiny_batch: BatchOf) -> tuple[Tensor, Tensor, Tensor]:
    """Two thirds of the pixels are exactly 0 or 1."""
    x, y, index = tiny_batch()
    return (3 * x - 1).clamp(0, 1), y, index


@pytest.mark.parametrize("init", ["zero", "uniform"])
@pytest.mark.parametrize("clip", [lambda x: x.clamp(0, 1), nn.Hardtanh(0, 1), lambda x: 1 - (1 - x.relu()).relu()])
def test_a_net_that_clips_its_images_is_told(tiny_batch: BatchOf, clip: Callable[[Tensor], Tensor], init: str) -> None:
    step = step_of(Calls(lambda net, x: net.core(clip(x))), **{"attack.init": init})
    with pytest.warns(UserWarning, match=r"^100% of the pixels at exactly 0 or 1 .* remove the clamp\.$"):
        step(*at_edges(tiny_batch), epoch=0)
    step(*at_edges(tiny_batch), epoch=1)  # once; warnings are errors in these tests
    step_of(Calls(lambda net, x: net.core(clip(x))), **{"attack.steps": 0})(*at_edges(tiny_batch), epoch=0)
    step_of(Calls(lambda net, x: net.core(clip(x))))(*tiny_batch(), epoch=0)  # no pixel is there


@pytest.mark.parametrize("clip", [torch.relu, nn.functional.relu6, lambda x: 1 - (1 - x).relu()])
def test_a_net_that_clips_one_end_is_told(tiny_batch: BatchOf, clip: Callable[[Tensor], Tensor]) -> None:
    end = int(clip(torch.full((), 2.0)) == 1)
    with pytest.warns(UserWarning, match=rf"^100% of the pixels at exactly {end} have"):
        step_of(Calls(lambda net, x: net.core(clip(x))))(*at_edges(tiny_batch), epoch=0)


def test_it_is_looked_for_in_a_part_of_a_batch(tiny_batch: BatchOf) -> None:
    def clipping(net: Calls, x: Tensor) -> Tensor:
        assert len(x) <= 2
        logits: Tensor = net.core(x.clamp(0, 1))
        return logits

    with pytest.warns(UserWarning, match="remove the clamp"):
        step_of(Calls(clipping), **{"run.accumulate": 2})(*at_edges(tiny_batch), epoch=0)


def framed(net: Calls, x: Tensor) -> Tensor:
    """Sees the inner pixels alone."""
    return net.core(nn.functional.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1)))


@pytest.mark.parametrize(
    "see",
    [
        lambda net, x: net.core(x),
        framed,
        lambda net, x: net.core(x.clamp(-1, 2)),
        lambda net, x: net.core(nn.functional.max_pool2d(x, 2).repeat(1, 4, 1, 1).view_as(x)),
        lambda net, x: net.core(nn.functional.conv2d(x, torch.eye(2).view(2, 2, 1, 1) - 0.5).relu()),  # at its kink
        lambda net, x: net.core(x + (x.clamp(0, 1) - x).detach()),
        lambda net, x: net.core(x**2),  # its gradient is 0 at 0, and next to nothing beside it
        lambda net, x: net.core((x - x.amin((1, 2, 3), True)) / (x.amax((1, 2, 3), True) - x.amin((1, 2, 3), True))),
    ],
)
def test_pixels_without_a_gradient_elsewhere_are_no_clipping(
    tiny_batch: BatchOf, see: Callable[[Calls, Tensor], Tensor]
) -> None:
    step_of(Calls(see))(*at_edges(tiny_batch), epoch=0)  # warnings are errors in these tests
    x, y, index = at_edges(tiny_batch)
    step_of(Calls(see))(x * (torch.arange(4) < 2), y, index, epoch=0)  # half of each image is black


def in_eval_mode(net: Calls, x: Tensor) -> Tensor:
    return net.core(x) if net.training else net.core(x).softmax(1)


def squashed_in_eval_mode(net: Calls, x: Tensor) -> Tensor:
    logits = net.core(x).repeat(1, 4)
    return logits if net.training else logits.sigmoid()


@pytest.mark.parametrize("of", ["softmax", "sigmoid"])
def test_it_is_said_of_one_whose_classes_are_masked_afterwards_too(tiny_batch: BatchOf, of: str) -> None:
    def masked(net: Calls, x: Tensor) -> Tensor:
        logits = net.core(x).index_fill(1, torch.tensor([3]), -torch.inf)
        odds = logits.softmax(1) if of == "softmax" else logits.sigmoid()
        return odds.index_fill(1, torch.tensor([3]), -torch.inf)

    step = step_of(Calls(masked, classes=4), **{"attack.init": "uniform"})
    with pytest.warns(UserWarning, match=f"returns probabilities: .* remove the {'one at' if of == 'softmax' else of}"):
        step(*tiny_batch(11), epoch=0)


@pytest.mark.parametrize("plugins", [(), ("trades",), ("awp",)])
def test_a_softmax_at_the_end_is_said_once_a_stage(tiny_batch: BatchOf, plugins: tuple[str, ...]) -> None:
    step = step_of(Calls(lambda net, x: net.core(x).softmax(1)), plugins, **{"attack.init": "uniform"})
    with pytest.warns(UserWarning, match=r"returns probabilities: .* remove the one at the end of the model\.$"):
        step(*tiny_batch(), epoch=0)
    step(*tiny_batch(), epoch=1)  # warnings are errors in these tests
    judged = step_of(Calls(in_eval_mode), plugins, **{"attack.init": "uniform"})
    with pytest.warns(UserWarning, match=r"^The model returns probabilities in eval mode: .* validation take them as"):
        judged(*tiny_batch(), epoch=0)
    judged(*tiny_batch(), epoch=1)
    logs = step_of(Calls(lambda net, x: net.core(x).log_softmax(1)), plugins, **{"attack.init": "uniform"})
    logs(*tiny_batch(), epoch=0)  # are logits
    sigmoid = step_of(Calls(lambda net, x: net.core(x).sigmoid()), plugins, **{"attack.init": "uniform"})
    with pytest.warns(UserWarning, match=r"every value is between 0 and 1, .* remove the sigmoid at the end"):
        sigmoid(*tiny_batch(11), epoch=0)
    later = step_of(Calls(squashed_in_eval_mode), plugins, **{"attack.init": "uniform"})
    with pytest.warns(UserWarning, match=r"probabilities in eval mode: every value is between 0 and 1, .* the sigmoid"):
        later(*tiny_batch(11), epoch=0)
    small = step_of(Calls(lambda net, x: 0.1 + 0.1 * net.core(x)), plugins, **{"attack.init": "uniform"})
    small(*tiny_batch(11), epoch=0)  # between 0 and 1 as well, as logits near 0 can be


# ---------------------------------------------------------------------- images that see each other


def centred(net: Calls, x: Tensor) -> Tensor:
    return net.core(x - x.mean(0))


def centred_while_it_trains(net: Calls, x: Tensor) -> Tensor:
    return centred(net, x) if net.training else net.core(x)


def numbered(net: Calls, x: Tensor) -> Tensor:
    return net.core(x) + torch.arange(len(x)).view(-1, 1) * torch.eye(3)[0]


def noisy(net: Calls, x: Tensor) -> Tensor:
    return net.core(x + 0.1 * torch.rand_like(x))


def test_a_net_whose_images_see_each_other_is_told_of(tiny_batch: BatchOf) -> None:
    for unfit in (centred, numbered):
        with pytest.warns(UserWarning, match="logits of an image depend on the other images of its batch"):
            step_of(Calls(unfit))(*tiny_batch(), epoch=0)
    for fine in (centred_while_it_trains, noisy):  # as BatchNorm does; draws are of the place in a batch
        step_of(Calls(fine))(*tiny_batch(), epoch=0)


# ---------------------------------------------------------------------- types, devices, masks


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.core = core()

    def forward(self, x: Tensor) -> Tensor:
        return self.core(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=4))


def test_complex_weights_are_told_as_what_they_are() -> None:
    with pytest.raises(OptionError, match=r"Complex weights are not supported; .* torch.view_as_complex"):
        step_of(Fourier())


TINY = {"data.limit": 60, "model.width": 4, "attack.steps": 1, "validation.fraction": 0.0}


def test_a_default_dtype_is_told_of_and_a_default_device_decides_nothing() -> None:
    plain = advkit.train("small-cnn", "digits", (), epochs=1, batch_size=30, settings=TINY).history[0]["loss"]
    torch.set_default_device("meta")
    try:
        run = advkit.train("small-cnn", "digits", (), epochs=1, batch_size=30, settings=TINY)
    finally:
        torch.set_default_device(None)
    assert run.history[0]["loss"] == plain
    heard = Heard()
    torch.set_default_dtype(torch.float64)
    try:
        advkit.train("small-cnn", "digits", (), epochs=1, batch_size=30, settings=TINY, progress=heard)
    finally:
        torch.set_default_dtype(torch.float32)
    assert any(said.startswith("small-cnn is built in float64, torch's default dtype in") for said in heard.said)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_default_dtype_is_told_of_where_it_is_the_nets(default: torch.dtype) -> None:
    """Of what is built here: a net of a package or a file is of another type where its code says so."""
    torch.set_default_dtype(default)
    try:
        for name in ("small-cnn", "net.py:Net", "python:Net"):
            resolved = replace(resolve(()), model_name=name)
            said = unusual_type(resolved, nn.Linear(1, 1).double())
            assert bool(said) == (default is torch.float64 and name != "python:Net")
            assert not unusual_type(resolved, nn.Linear(1, 1).half())
    finally:
        torch.set_default_dtype(torch.float32)


MASK = torch.tensor([0, 0, 0, -torch.inf])


def by_image(logits: Tensor) -> Tensor:
    """Without the least of each image."""
    return logits.masked_fill(logits == logits.amin(1, keepdim=True), -torch.inf)


@pytest.mark.parametrize(
    ("plugins", "forward", "advice"),
    [
        (["label-smoothing"], lambda net, x: net.core(x) + MASK, "masks classes .* share of the target .* leave out"),
        ((), lambda net, x: net.core(x) + MASK.flip(0), "masks classes with -Inf to which images of this batch belong"),
        (
            ["label-smoothing"],
            lambda net, x: by_image(net.core(x)),
            "masks classes .* share of the target .* leave out",
        ),
        (["label-smoothing"], lambda net, x: net.core(x) * 1e9 + MASK, "applied; no update was made yet"),
        ((), lambda net, x: net.core(x) * 1e38 - (x[:, :1, 0, 0] > 0.5) / 0.0, "applied; no update was made yet"),
        (["label-smoothing"], lambda net, x: net.core(x) + MASK.clamp(min=-100), ""),
        ((), lambda net, x: net.core(x) + MASK, ""),
    ],
    ids=["softened", "of images", "by image", "of a net that diverges", "overflow", "finite", "of no image"],
)
def test_labels_on_masked_classes_are_told_of_and_an_overflow_is_no_mask(
    tiny_batch: BatchOf, plugins: Any, forward: Callable[..., Tensor], advice: str
) -> None:
    step = step_of(Calls(forward, classes=4), plugins)
    if advice:
        with pytest.raises(advkit.NonFinite, match=advice):
            step(*tiny_batch(), epoch=0)
    else:
        step(*tiny_batch(), epoch=0)


def nothing_in(net: Calls, x: Tensor) -> Tensor:
    return net.core(x) + x.new_zeros(len(x), 0) @ net.nothing


def test_a_parameter_without_entries_is_finite(tiny_batch: BatchOf) -> None:
    net = Calls(nothing_in)
    net.nothing = nn.Parameter(torch.zeros(0, 3))
    x, y, index = tiny_batch()
    reports = [step_of(net, plugins)(x, y, index, epoch=0) for plugins in ("", "awp")]
    assert all(bool(report.loss.isfinite()) for report in reports)


@pytest.mark.parametrize("plugins", ["awp", "lsiw"])
def test_sparse_gradients_are_those_of_dense_ones(tiny_batch: BatchOf, plugins: str) -> None:
    def net(sparse: bool) -> Calls:
        made = Calls(lambda net, x: net.core(x) + net.table((x.mean((1, 2, 3)) * 9).long()))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            made.table = nn.Embedding(10, 3, sparse=sparse)
        return made

    x, y, index = tiny_batch()
    sparse, dense = net(True), net(False)
    for one in (sparse, dense):
        step_of(one, plugins)(x, y, index, epoch=0)
    assert sparse.table.weight.grad.is_sparse  # the control
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


def in_another_mode(net: Calls, x: Tensor) -> Tensor:
    net.core[2].eval()
    return net.core(x)


def test_the_model_is_blamed_for_the_modes_that_it_sets(tiny_batch: BatchOf) -> None:
    x, y, index = tiny_batch()
    step_of(Calls(in_another_mode))(x, y, index, epoch=0)
    with pytest.raises(OptionError, match=r"model puts core\.2 into another mode in its forward, and plugin awp"):
        step_of(Calls(in_another_mode), "awp")(x, y, index, epoch=0)


def test_a_net_that_changes_its_type_is_told_so(tiny_batch: BatchOf) -> None:
    def forward(net: Calls, x: Tensor) -> Tensor:
        net.double() if not net.training else net.float()
        weight = net.core[1].weight
        return net.core(x.to(weight.dtype)).float()

    net = Calls(forward)
    net.register_buffer("mean", torch.zeros(1))
    x, y, index = tiny_batch()
    with pytest.raises(OptionError, match="the model changes its own type in its forward"):
        step_of(net)(x, y, index, epoch=0)


def test_what_is_no_number_before_the_first_step(tmp_path: Path) -> None:
    """A head that nobody uses, made by torch.empty; a file of weights is named. The control: -Inf masks a class."""
    net = core()
    net.spare = nn.Parameter(torch.tensor([0.0, torch.nan]), requires_grad=False)
    with pytest.raises(NonFinite, match="spare of the model holds NaN or Inf before the first step"):
        step_of(net)
    torch.save(core().state_dict() | {"3.bias": torch.full((3,), torch.inf)}, tmp_path / "net.pt")
    data = advkit.Splits(pictures(8), pictures(), "none")
    with pytest.raises(CheckpointError, match=r"net\.pt holds NaN or Inf in 3\.bias; give weights from before that"):
        advkit.train(core(), data, init_from=tmp_path / "net.pt", out=tmp_path / "run", epochs=1, batch_size=8, eps=0.1)
    assert not (tmp_path / "run").exists()
    net.spare.data.fill_(-torch.inf)
    step_of(net)
