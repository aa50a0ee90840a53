"""Train and eval mode of nets whose own `train` does more than set it, as a loop by hand calls it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

from .errors import AdvkitError, OptionError, says
from .explained import raise_own


def exported(module: nn.Module) -> bool:
    """Whether a module is of torch.export: it computes in the mode of its export, and its `train` and `eval` raise."""
    return isinstance(module, GraphModule) and "train" in vars(module)


_LAYERS = {"batch_norm": 5, "instance_norm": 5, "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}
"""Operators that compute otherwise in train mode, and which of their inputs says so."""


def traced(model: nn.Module) -> str:
    """The mode, "train" or "eval", that torch.jit.trace has made a constant of a graph that is trained; else "".

    Where a model is scripted its graph reads `training`. Statistics of the batch alone, and dropout, may always be
    meant.
    """
    for module in model.modules():
        learns = isinstance(module, ScriptModule) and any(p.requires_grad for p in module.parameters())
        graph: Any = module.inlined_graph if learns else None
        for kind, place in _LAYERS.items() if graph else ():
            for node in graph.findAllNodes(f"aten::{kind}"):
                constant = node.inputsAt(place).node().kind() == "prim::Constant"
                training = constant and node.inputsAt(place).toIValue()
                if constant and not training:
                    return "eval"
                if training and place == 5 and node.inputsAt(3).type().kind() != "NoneType":
                    return "train"
    return ""


def own_mode(modules: Iterable[nn.Module]) -> bool:
    """Whether one has a `train` of its own, which holds layers in eval mode, or merges and unmerges weights."""
    found = [*modules]
    return any(type(one).train is not nn.Module.train for one in found) and not any(map(exported, found))


def has_mode(module: nn.Module) -> bool:
    """Whether it is in train or eval mode: a graph of torch.jit.freeze is in none, unless somebody has set one."""
    return hasattr(module, "training")


def begin_training(model: nn.Module) -> None:
    """What a net's own `train` does, which nobody has called where it is as it was built. Owners' eval modes stay."""
    if getattr(model, "training", False) and own_mode(model.modules()):
        resting = [module for module in model.modules() if has_mode(module) and not module.training]
        _train(model, True)
        for module in resting:
            module.training = False


def refuse_resting(model: nn.Module) -> None:
    """OptionError for a net in eval mode whose own `train` moves weights, perhaps, and whose update is its owner's."""
    if not getattr(model, "training", True) and own_mode(model.modules()):
        raise OptionError(
            "The model is in eval mode and has a train() of its own, which may merge weights; call model.train() "
            "before step.loss(...), for the update after it is yours and is one of train mode."
        )


def modes_back(before: Sequence[tuple[nn.Module, bool]]) -> None:
    """Every module in its mode of `before`, the whole net first."""
    if own_mode(module for module, _ in before) and any(module.training != was for module, was in before):
        net, was = before[0]
        net.train(was)
    for module, was in before:
        module.training = was


def put(model: nn.Module, training: bool, before: Sequence[tuple[nn.Module, bool]]) -> None:
    """The model in train or eval mode by its own `train`, which may be anybody's."""
    try:
        _train(model, training)
    except Exception:
        modes_back(before)
        raise


def _train(model: nn.Module, training: bool) -> None:
    try:
        model.train(training)
    except AdvkitError:
        raise
    except Exception as error:
        raise_own(error, "the model's own train raised it")
        raise OptionError(
            f"The model's own train({training}) raises {type(error).__name__}: {says(error)}. Mend it: a net is "
            "trained in one mode and judged in the other."
        ) from error
