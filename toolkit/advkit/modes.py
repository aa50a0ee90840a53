"""Train and eval mode of nets whose own `train` does more than set it, as a loop by hand calls it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.fx import GraphModule

from .errors import AdvkitError, OptionError


def exported(module: nn.Module) -> bool:
    """Whether a module is of torch.export: it computes in the mode of its export, and its `train` and `eval` raise."""
    return isinstance(module, GraphModule) and "train" in vars(module)


def own_mode(modules: Iterable[nn.Module]) -> bool:
    """Whether one has a `train` of its own, which holds layers in eval mode, or merges and unmerges weights."""
    found = [*modules]
    return any(type(one).train is not nn.Module.train for one in found) and not any(map(exported, found))


def begin_training(model: nn.Module) -> None:
    """What a net's own `train` does, which nobody has called where it is as it was built. Owners' eval modes stay."""
    if getattr(model, "training", False) and own_mode(model.modules()):
        resting = [module for module in model.modules() if not module.training]
        model.train()
        for module in resting:
            module.training = False


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
        model.train(training)
    except AdvkitError:
        raise
    except Exception as error:
        modes_back(before)
        raise OptionError(
            f"The model's own train({training}) raises {type(error).__name__}: {error}. Mend it: a net is trained in "
            "one mode and judged in the other."
        ) from error
