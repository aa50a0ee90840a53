"""Averages of the weights: exponential (`ema`), and equal over epochs (`swa`, Izmailov et al. 2018), as
torch.optim.swa_utils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advkit import Company, OptionError, Plugin, PluginOptions, Real, Run, call_at, hookimpl, option


class AverageOptions(PluginOptions):
    """What both averages are told."""

    start: Real = option(0.0, ge=0, lt=1, help="share of the run's epochs after which the average begins")
    buffers: Literal["copied", "averaged", "re-estimated"] = option(
        "copied",
        help="statistics of BatchNorm in the average: those of the net, averaged as the weights are, or measured anew "
        "at the averaged weights on images that were trained on last",
    )
    images: int = option(
        1024,
        ge=2,
        le=1 << 20,
        under="buffers=re-estimated",
        help="number of images kept to re-estimate statistics",
    )


class Average(Plugin, ABC):
    """Weights that are averaged beside training and judged in its place. Subclasses say when, and with which weight."""

    options: AverageOptions

    def join(self, company: Company) -> list[str]:
        self.parts = company.parts
        self.first = ceil(company.share_of_run(f"{self.name}.start", self.options.start) - 1e-9)
        if self.first < company.epochs:
            return []
        late = f"{self.name}.start = {self.options.start:g} of {company.epochs} epochs is after the last begins"
        return [f"{self.name} averages nothing: {late}; lower it, or train longer"]

    def active(self, hook: str, epoch: int) -> bool:
        return hook != "observe_update" or self.options.buffers == "re-estimated"

    @abstractmethod
    def takes(self, run: Run) -> bool:
        """Whether the weights after this step go into the average."""

    @abstractmethod
    def weight(self, count: Tensor) -> Tensor:
        """() float64: that of the newest weights, where `count` were averaged before."""

    @hookimpl
    def setup(self, model: nn.Module, run: Run) -> None:
        self.count = run.tensor_state("count", torch.zeros((), dtype=torch.int64), least=0)
        stored = model.state_dict()  # without buffers that are not persistent, which nobody could put back
        parts = {name: value.detach() for name, value in model.named_parameters()}
        if renamed := sorted(parts.keys() - stored.keys()):
            raise OptionError(
                f"{self.name} keeps averages by the names of parameters, and the model's state_dict() has none called "
                f"{renamed[0]}; leave out what renames them there, or {self.name}."
            )
        if self.options.buffers == "averaged":
            parts |= {n: value for n, value in model.named_buffers() if n in stored and value.is_floating_point()}
        # A mask of -inf and a tensor without entries have no average: they stay the model's own.
        parts = {name: value for name, value in parts.items() if value.numel() and bool(value.isfinite().all())}
        self.average: Mapping[str, Tensor] = {
            name: run.tensor_state(f"average/{name}", value) for name, value in parts.items()
        }
        if self.options.buffers == "re-estimated":
            empty = torch.zeros(self.options.images, *run.image_shape, dtype=run.dtype)
            self.images = run.tensor_state("images", empty)
            self.seen = run.tensor_state("seen", torch.zeros((), dtype=torch.int64), least=0)
            self.batch_size = run.tensor_state("batch_size", torch.zeros((), dtype=torch.int64), least=0)

    @hookimpl
    def observe_update(self, x_train: Tensor) -> None:
        newest = x_train[-len(self.images) :]
        places = torch.arange(len(newest), device=newest.device) + self.seen
        self.images[places % len(self.images)] = newest
        self.seen += len(newest)
        self.batch_size.clamp_(min=len(x_train))

    @hookimpl
    def after_update(self, model: nn.Module, run: Run) -> None:
        if not self.takes(run):
            return
        # Tensors throughout: nothing here waits for the device.
        share = torch.where(self.count == 0, 1.0, self.weight(self.count))
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        now, before = [held[name].detach() for name in self.average], [*self.average.values()]
        torch._foreach_lerp_(before, now, [share.to(value.dtype) for value in before])
        self.count += 1

    @hookimpl
    def evaluation_weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        if not self.count:
            return {}
        return {**self.average, **(self._statistics(model) if self.options.buffers == "re-estimated" else {})}

    def _statistics(self, model: nn.Module) -> dict[str, Tensor]:
        """BatchNorm's, of the images that are kept, at the average: as torch.optim.swa_utils.update_bn."""
        norms, count = _trained_norms(model), min(int(self.seen), len(self.images))
        if not norms or not count:
            return {}
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}  # one of a buffer that has several names
        buffers = {name: copies[id(buffer)] for name, buffer in model.named_buffers(remove_duplicate=False)}
        own = {name: value for name, value in buffers.items() if name.startswith(tuple(norms))}
        for name, value in own.items():
            value.fill_(1 if name.endswith("running_var") else 0)
        with torch.no_grad(), _only_these_train(model, norms.values()):
            # As many at once as BatchNorm has seen in training: a part, where a batch is computed in parts.
            for chunk in torch.split(self.images[:count], -(-int(self.batch_size) // self.parts)):
                if len(chunk) > 1 or count == 1:
                    call_at(model, {**self.average, **buffers}, chunk)
        return own


class Ema(Average):
    """Judges an exponential moving average of the weights (mean teachers; Gowal et al. 2020 for robust training)."""

    name = "ema"

    class Options(AverageOptions):
        decay: Real = option(0.999, ge=0, lt=1, help="share of the average that stays at a step")
        ramp: bool = option(True, help="decay is at most (1 + n) / (10 + n) after n steps, so the average starts short")

    options: Options

    def takes(self, run: Run) -> bool:
        return run.epoch >= self.first

    def weight(self, count: Tensor) -> Tensor:
        steps = count.double()
        decay = torch.full_like(steps, self.options.decay)
        return 1 - (torch.minimum(decay, (1 + steps) / (10 + steps)) if self.options.ramp else decay)


class Swa(Average):
    """Judges the mean of the weights at the ends of the last epochs (Izmailov et al. 2018)."""

    name = "swa"

    class Options(AverageOptions):
        start: Real = option(0.75, ge=0, lt=1, help="share of the run's epochs after which the average begins")
        every: int = option(1, ge=1, le=10_000, help="epochs between averaged weights")

    options: Options

    def join(self, company: Company) -> list[str]:
        cautions = super().join(company)
        if len(range(self.first, company.epochs, self.options.every)) == 1:
            cautions.append("swa takes the weights of one epoch, which is no average; lower swa.start or swa.every")
        return cautions

    def takes(self, run: Run) -> bool:
        due = run.epoch >= self.first and (run.epoch - self.first) % self.options.every == 0
        return due and run.step + 1 == run.epoch_steps

    def weight(self, count: Tensor) -> Tensor:
        return 1 / (count.double() + 1)


def _trained_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """By prefix, the layers that keep statistics and train where the model does: its owner may hold some in eval."""
    modes = [(module, module.training) for module in model.modules()]
    if not (training := model.training):
        model.train()
    norms = {
        f"{name}.": layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.training
    }
    if not training:
        model.train(training)  # its own may do more than set modes
    for module, was in modes:
        module.training = was
    return norms


@contextmanager
def _only_these_train(model: nn.Module, norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Eval mode, so that nothing is drawn, but for layers that shall average all batches alike."""
    modes, training = [(module, module.training) for module in model.modules()], model.training
    momenta = [(layer, layer.momentum) for layer in norms]
    try:
        model.eval()
        for layer, _ in momenta:
            layer.train()
            layer.momentum = None
        yield
    finally:
        model.train(training)
        for module, was in modes:
            module.training = was
        for layer, momentum in momenta:
            layer.momentum = momentum
