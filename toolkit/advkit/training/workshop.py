"""Nets beside the model, `run.module`: made from a module, a run's folder, a file of weights or by a plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from ..config.layer import Layer
from ..config.request import Request, registered
from ..config.resolve import Resolved
from ..data.base import Dataset
from ..errors import NonFinite, OptionError, shown
from ..judging import refuse_unjudgeable, refuse_unready
from ..models.base import Normalize
from ..modules import own_generator
from ..optimizers import OptimizerSettings
from ..options import PLACE, validate
from ..rates import SHAPES
from ..rng import derive_seed
from ..run import RunState
from ..storage.foreign import refuse_export, refuse_others
from ..storage.run_folder import RunFolder
from ..storage.weights import digest, put_weights
from .auxiliary import FrozenNet
from .beginning import listed, put_file
from .by_itself import copied
from .code_told import changes
from .engine import LAYOUTS, Engine
from .inherited import handed_on
from .parts import build_model, judged_weights
from .ranks import here
from .trained import TrainedNet


@dataclass(frozen=True)
class Workshop:
    """Makes the nets beside the model of one run; `train` and `rows` are None in a loop of one's own."""

    resolved: Resolved
    model: nn.Module
    state: RunState
    warn: Callable[[str], None]
    train: Dataset | None = None
    rows: int | None = None
    """Of the batches that nets are compiled for."""
    left_out: list[tuple[str, object]] = field(default_factory=list)
    """By net, hooks of the model that it, a copy, has not."""
    notes: list[str] = field(default_factory=list)
    """What results of their weights have to say."""

    def __call__(self, name: str, source: str | Path | nn.Module, model: str) -> FrozenNet:
        """From a module, a run's folder or a file of weights. Raises OptionError, CheckpointError and NonFinite."""
        if isinstance(source, nn.Module):
            where = f"a {type(source).__name__} passed from Python"
            net = self._copied(name, where, source)
        else:
            if not isinstance(source, str | Path) or "\0" in str(source):
                raise OptionError(
                    f"{name} is {shown(source)}; give the folder of a run, a file of weights or a torch Module."
                )
            make = self._of_run if os.path.isdir(source) else self._of_file
            net, where = make(name, Path(source), model), str(source)
        values = {**dict(net.named_buffers()), **net.state_dict()}
        sha256 = digest({key: value for key, value in values.items() if isinstance(value, Tensor)})
        net.requires_grad_(False).to(device=self.state.device, dtype=self.state.dtype)
        net.to(memory_format=LAYOUTS[self.resolved.run.memory_format])
        try:
            refuse_unjudgeable(net)
        except (OptionError, NonFinite) as error:
            raise type(error)(f"{name}, {where}: {error}") from None
        engine = Engine(self.resolved.run, net)
        if self.train is not None and self.rows is not None:
            engine.compile(
                (self.rows, *self.train.shape), lambda sentence: self.warn(f"{name}: {sentence}"), trains=False
            )
        return FrozenNet(engine, where, sha256)

    def trained(
        self, name: str, build: Callable[[nn.Module], nn.Module], optimizer: Mapping[str, object]
    ) -> TrainedNet:
        """The net that `build` makes, of a copy of the model; what it draws depends on the run's seed and its name."""
        source, plugin = f"built by {name.partition('/')[0]}", name.partition("/")[0]
        rates = {"schedule": "constant", **(optimizer if isinstance(optimizer, Mapping) else {"name": optimizer})}
        settings = validate(OptimizerSettings, rates, where=f"{name}: optimizer")
        self._refuse_unknown_rate(name, settings, rates)
        if isinstance(build, nn.Module) or not callable(build):
            raise OptionError(f"{name}: {shown(build)} builds no net; give a function of a copy of the model.")
        with own_generator(self.state.device) as seed:
            seed(derive_seed(self.state.seed, plugin, "module", name))
            known, copy = len(self.left_out), self._copied(name, "of the model", self.model)
            net = build(copy)
        if not isinstance(net, nn.Module):
            raise OptionError(f"{name}, {source}, is {shown(net)}; return a torch Module.")
        if not {*net.modules()} & {*copy.modules()}:
            del self.left_out[known:]  # a net of its own, which misses none
        own = {id(parameter) for parameter in self.model.parameters()}
        if any(id(parameter) in own for parameter in net.parameters()):
            raise OptionError(
                f"{name}, {source}, has weights of the model itself; take those of the copy that it gets."
            )
        try:
            refuse_unjudgeable(net)
        except (OptionError, NonFinite) as error:
            raise type(error)(f"{name}, {source}: {error}") from None
        net.to(device=self.state.device, dtype=self.state.dtype)
        net.to(memory_format=LAYOUTS[self.resolved.run.memory_format])
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise OptionError(f"{name}, {source}, has no trainable parameter; claim it without an optimizer.")
        run = self.resolved.run
        engine = Engine(run, net, here(run.batchnorm == "synchronised").batch_norm)
        return TrainedNet(name, engine, source, settings, run.epochs)

    def _refuse_unknown_rate(self, name: str, settings: OptimizerSettings, given: Mapping[str, object]) -> None:
        """OptionError for a rate by what the schedule does not take, or a loop of one's own does not tell."""
        for key in [key for key in given if settings.schedule not in SHAPES.get(key, (settings.schedule,))]:
            raise OptionError(
                f"{name}: optimizer.{key} is of schedule={SHAPES[key][0]}, and the schedule is {settings.schedule}; "
                f"name the schedule too, or leave {key} out."
            )
        if self.train is None and settings.within_epochs:
            raise OptionError(
                f"{name}: the optimizer's rate changes within an epoch (schedule={settings.schedule}, "
                f"per={settings.per}, warmup={settings.warmup:g}), and a Step is not told how many steps an epoch has; "
                "say per=epoch, or take schedule=constant without a warm-up."
            )
        if settings.by_length and not self.resolved.composition.company.epochs_known:
            raise OptionError(
                f"{name}: optimizer.schedule={settings.schedule} depends on the length of the run, and a Step is not "
                'told how long your loop is; pass settings={"run.epochs": N}.'
            )

    def _copied(self, name: str, where: str, net: nn.Module) -> nn.Module:
        """A copy of a module that is passed. OptionError for one that has no values yet, or can not be copied."""
        if isinstance(net, ScriptModule):
            raise OptionError(f"{name}, {where}, is of torch.jit, which can not be frozen; give what it was made of.")
        try:
            refuse_unready(net)
            return self._without_hooks(name, net)
        except OptionError as error:
            raise OptionError(f"{name}, {where}: {error}") from None
        except Exception as error:  # of its own code, or of torch for weights that are computed from others
            raise OptionError(
                f"{name}, {where}, can not be copied ({type(error).__name__}); give it as plain weights: of "
                "torch.nn.utils.weight_norm, take that of torch.nn.utils.parametrizations."
            ) from error

    def _without_hooks(self, name: str, net: nn.Module) -> nn.Module:
        """A copy: who has put a hook on the model reads the model."""
        copy, hooks = copied(net, self.model)
        self.left_out.extend((name, hook) for hook in hooks)
        return copy

    def refuse_left_out(self, computing: Container[object]) -> None:
        """OptionError where one of the model's hooks that compute is one that a copy has not."""
        for name, hook in self.left_out:
            if hook in computing:
                raise OptionError(
                    f"{name} is a copy of the model without the hooks on it, and {_named(hook)} of them computes; put "
                    "what it does into a method of the net."
                )

    def _of_run(self, name: str, path: Path, model: str) -> nn.Module:
        """The net of a run with the weights that are judged. Of what its folder names, only an installed net is built.

        Code of a file is never run for it: such a net is a copy of this run's own, where that is of the same code.
        """
        refuse_export(path)
        if model:
            raise OptionError(f"{name}: {path} is a run, which has a net of its own; leave {model} out.")
        folder = RunFolder.open(path)
        layer, (tensors, state) = folder.file(), judged_weights(folder)
        settings = {key: value for key, value in layer.settings.items() if key.startswith("model.")}
        architecture = str(settings["model.name"])
        then, now = layer.files.get("model.name"), self.resolved.files.get("model.name")
        own = {"model.name": self.resolved.model_name} | {
            f"model.{key}": value for key, value in self.resolved.model_options.items()
        }
        if then and now and then.recorded == now.sha256 and settings == own:
            net, built = self._without_hooks(name, self.model), replace(self.resolved, files={})
        elif not registered(architecture):
            raise OptionError(
                f"{name}: {architecture}, the net of {path}, is code of a file or was passed from Python, and is not "
                "this run's own net too; a folder runs no code here, so pass the module itself from Python."
            )
        else:
            net, built = self._built(name, settings), self._named(settings)
        for sentence in changes(folder, built, net):
            self.warn(f"{name}, {path}: {sentence}")
        self._note(name, path, handed_on(folder))
        if self.train is not None:
            self._refuse_other_data(name, path, net, state)
        self._tell(put_weights(net, tensors, str(path), averaged=True).said)
        return net

    def _refuse_other_data(self, name: str, path: Path, net: nn.Module, state: Mapping[str, Any]) -> None:
        """OptionError for a net of other classes, or one that does not say by which other images it normalises."""
        assert self.train is not None
        then, now = state.get("classes"), list(self.train.classes)
        if isinstance(then, list) and then != now:
            raise OptionError(
                f"{name}: {path} was trained on the classes {listed(then)}, and this run is on {listed(now)}; give a "
                "net of the same classes, in that order."
            )
        layers = [layer for layer in net.modules() if isinstance(layer, Normalize) and not layer.state_dict()]
        if layers and state.get("data") not in (None, self.train.fingerprint()):
            raise OptionError(
                f"{name}: {path} was trained on other images, by whose mean and deviation its net normalises, and they "
                "are not among its weights; pass the module itself from Python."
            )

    def _of_file(self, name: str, path: Path, model: str) -> nn.Module:
        """A file of weights in the registered net `model`, or in one such as the run's own."""
        net = self._built(name, {"model.name": model}) if model else self._without_hooks(name, self.model)
        resolved = self._named({"model.name": model}) if model else self.resolved
        placed = put_file(net, path, resolved, classes=self.train.classes if self.train else ())
        self._tell(placed.said)
        self._note(name, path, placed.notes)
        return net

    def _built(self, name: str, settings: Mapping[str, object]) -> nn.Module:
        """An installed net for the images of this run."""
        architecture = settings["model.name"]
        if self.train is None:
            raise OptionError(
                f"{name}: a Step knows no images to build {architecture} for; pass the module itself, with its weights "
                "by advkit.load_weights."
            )
        if not registered(str(architecture)):
            raise OptionError(
                f"{name}: {architecture} is no installed net (`advkit models list`); pass the module itself, with its "
                "weights, from Python."
            )
        return build_model(self._named(settings), self.train)

    @staticmethod
    def _named(settings: Mapping[str, object]) -> Resolved:
        return Resolved.of(Request((Layer("net beside the model", settings),)))

    def _note(self, name: str, path: Path, sentences: Iterable[str]) -> None:
        self.notes.extend(f"of {path}, which {name} is from: {sentence}" for sentence in sentences)

    def _tell(self, sentence: str) -> None:
        if sentence:
            self.warn(sentence)


def refuse_absent(resolved: Resolved, sources: Iterable[object]) -> None:
    """CheckpointError, as a run has it, where nets beside the model do not lie where an option of a plugin says."""
    places = {
        getattr(plugin.options, key)
        for plugin in resolved.composition.plugins
        for key, known in type(plugin.options).model_fields.items()
        if PLACE in known.metadata
    }
    for source in sorted(places & {*map(str, sources)}):
        if os.path.isdir(source):
            refuse_export(Path(source))
            RunFolder.open(Path(source))
        else:
            refuse_others(Path(source))


def _named(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__)).rpartition("<locals>.")[2]
