"""Precision and memory format: settings that no plugin sees, and what they may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
from methods import pictures, tiny_net
from torch import Tensor, nn

import advkit
from advkit import Costs, OptionError, Passes, Plugin, Splits, Step, hookimpl
from advkit.errors import Stopped
from advkit.training.progress import Silent


class Seen(Plugin):
    """Notes in which types everything arrives."""

    name = "seen"
    types: set[tuple[str, torch.dtype]] = set()

    @hookimpl
    def attack_step(self, x_adv: Tensor, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        self.types |= {(name, value.dtype) for name, value in locals().items() if isinstance(value, Tensor)}
        return torch.ones(len(logits), dtype=torch.bool)

    @hookimpl
    def weight_perturbation(
        self, params: Mapping[str, Tensor], gradient_at: Callable[..., Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        gradients = gradient_at()
        self.types |= {("shift", value.dtype) for value in gradients.values()}
        return {name: 0.01 * value for name, value in gradients.items()}

    def passes(self, hook: str, costs: Costs) -> Passes:
        return costs.adv_ce if hook == "weight_perturbation" else Passes()

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor, clean_logits_base: Tensor, x_train: Tensor) -> Tensor:
        self.types |= {(name, value.dtype) for name, value in locals().items() if isinstance(value, Tensor)}
        return (adv_logits - clean_logits_base).square().sum(1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_plugin_sees_half_precision(layout: str) -> None:
    Seen.types = set()
    conv: list[torch.dtype] = []
    net = tiny_net(batch_norm=True, dropout=0.3, dtype=torch.float32)
    net[0].register_forward_hook(lambda module, args, output: conv.append(output.dtype))
    settings = {"attack.steps": 2, "run.precision": "bf16", "validation.fraction": 0.25, "validation.steps": 1}
    settings["run.memory_format"] = layout
    result = advkit.train(
        net, Splits(pictures(), pictures(), "none"), [Seen], epochs=1, batch_size=4, eps=0.1, settings=settings
    )
    assert {kind for _, kind in Seen.types} == {torch.float32} and len({name for name, _ in Seen.types}) == 8
    # Training computes in half precision; the look at one image before it and validation after it do not.
    assert conv[0] == conv[-1] == torch.float32 and conv.count(torch.bfloat16) > 12
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in result.model.parameters() if p.grad is not None)


def test_a_step_takes_precision_and_leaves_the_layout_to_its_loop() -> None:
    def step(net: nn.Module, **settings: object) -> Step:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        return Step(net, optimizer, ["trades", "awp"], num_samples=8, eps=0.1, settings={"attack.steps": 2, **settings})

    def stepped(net: nn.Module, **settings: object) -> Tensor:
        x = pictures(8).images[:, :, :4, :4] / 255
        step(net, **settings)(x, torch.arange(8) % 3, torch.arange(8), epoch=0)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    def net(dtype: torch.dtype = torch.float32) -> nn.Module:
        return tiny_net(batch_norm=True, dropout=0.0, dtype=dtype)

    own_layout = net().to(memory_format=torch.channels_last)
    assert torch.allclose(stepped(own_layout), stepped(net()), atol=1e-5)
    assert not torch.equal(stepped(net(), **{"run.precision": "bf16"}), stepped(net()))
    with pytest.raises(OptionError, match=r"call model\.to\(memory_format=\.\.\.\)"):
        step(net(), **{"run.memory_format": "channels_last"})
    with pytest.raises(OptionError, match=r"weights in float32, and the model's are in float64"):
        step(net(torch.float64), **{"run.precision": "bf16"})


def test_the_precision_of_products_is_that_of_the_run_and_goes_with_it() -> None:
    inside = []

    class Look(Plugin):
        name = "look"

        @hookimpl
        def after_update(self) -> None:
            inside.append(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision()
    for matmul in ("highest", "high"):
        methods.trained([Look], epochs=(0,), settings={"run.matmul": matmul}, by_the_loop=True)
        assert set(inside) == {matmul} and torch.get_float32_matmul_precision() == before
        inside.clear()


class Exact(nn.Module):
    """A net that notes in which precision its forwards find products and convolutions, by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.found = tiny_net(True, 0.0, torch.float32), dict[bool, set[tuple[str, str]]]()

    def forward(self, x: Tensor) -> Any:
        cudnn: Any = torch.backends.cudnn
        found = torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision
        self.found.setdefault(self.training, set()).add(found)
        return self.net(x)


@pytest.mark.parametrize(("matmul", "steps"), [("highest", "ieee"), ("high", "tf32")])
def test_whatever_is_judged_is_exact(matmul: str, steps: str) -> None:
    """torch's own convolutions have TF32 on a GPU, which a run has where it says so, and its figures never."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    net, data = Exact(), Splits(pictures(16), pictures(), "none")
    settings = {"attack.steps": 1, "attack.mode": "train", "run.matmul": matmul}
    try:
        cudnn.conv.fp32_precision = "tf32"
        advkit.train(net, data, epochs=1, batch_size=6, eps=0.1, settings=settings)
        trained = dict(net.found)
        advkit.evaluate(net, data.test, "clean,pgd-1", eps=0.1)
        assert cudnn.conv.fp32_precision == "tf32"
    finally:
        cudnn.conv.fp32_precision = before
    exact = ("highest", "ieee")
    assert trained[True] == {(matmul, steps)} and exact in trained[False]
    assert net.found == {True: {(matmul, steps)}, False: {exact} | ({(matmul, steps)} & trained[False])}


@pytest.mark.parametrize("settings", [{"run.memory_format": "channels_last"}, {"run.precision": "bf16"}])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(
    settings: dict[str, object], tmp_path: Path
) -> None:
    class Stop(Silent):
        left = 5

        def stop_requested(self) -> type[Stopped] | None:
            self.left -= 1
            return Stopped if self.left == 0 else None

    def train(**arguments: Any) -> dict[str, Tensor]:
        net = tiny_net(batch_norm=True, dropout=0.3, dtype=torch.float32)
        given = {"attack.steps": 2, "validation.steps": 1, "validation.fraction": 0.25} | settings
        advkit.train(
            net, Splits(pictures(), pictures(), "none"), ["cat-eps", "lsiw", "ema"], epochs=3, batch_size=4, eps=0.1,
            settings=given, **arguments,
        )  # fmt: skip
        return net.state_dict()

    whole = train()
    with pytest.raises(Stopped):
        train(out=tmp_path / "run", progress=Stop())
    assert methods.same(train(resume_from=tmp_path / "run"), whole)
