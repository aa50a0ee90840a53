"""Whether a net's state_dict() holds all of it, as checkpoints must, and its load_state_dict() takes that back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..bits import lies_on_itself, same_bits
from ..errors import OptionError, says
from ..explained import raise_own
from ..hidden import without_trace
from ..precision import named
from .form import Form


def stored_by(model: nn.Module) -> Mapping[str, Any]:
    """Its state_dict(); OptionError where that raises."""
    try:
        return model.state_dict()
    except Exception as error:
        raise_own(error, "the model's own state_dict raised it")
        what = f"{type(error).__name__}: {says(error)}"
        raise OptionError(
            f"The model's own state_dict() raises {what}. Mend it: checkpoints are made of it."
        ) from error


def refuse_unstored(model: nn.Module) -> None:
    """OptionError for a net of which no checkpoint could be made, or that would not take one back.

    A tensor may have another name there, as in a wrapper that asks its inner net: it is known by its memory.
    """
    stored = stored_by(model)
    places = _places(stored)
    parameters = dict(model.named_parameters())
    for name, value in _tensors(model).items():
        there = stored.get(name)
        if place(value) in places or (there is None and name not in parameters):
            continue
        if there is None and (copy := _copied(name, value, stored, model)):
            raise OptionError(
                f"The model's state_dict() gives {copy} in place of {name}, a copy by another name, of which a "
                "checkpoint can not know what it is; let it give the tensor itself, without clone() or another type, "
                "or leave its name."
            )
        if there is None:
            raise OptionError(
                f"The model's state_dict() leaves out {name}, so that no evaluation and no resume of a run could have "
                "it; let it give all parameters, trained or not, and store a part of them (adapters, a head) apart."
            )
        if isinstance(there, Tensor) and not (
            there.layout == value.layout and same_bits(there.to(value.device), value)
        ):
            how = f" in {named(there.dtype)}" if there.dtype != value.dtype else ""
            raise OptionError(
                f"The model's state_dict() gives {name}{how or ' with other values'} and not as the model has it, so "
                "that a checkpoint would hold another net; let it give what the model computes with."
            )
    own_way = getattr(model.load_state_dict, "__func__", None) is not nn.Module.load_state_dict
    if (own_way or stored.keys() ^ _usual(model)) and (why := _not_taken_back(model, stored)):
        called = [(name, places.get(place(parameter), name)) for name, parameter in parameters.items()]
        other = "".join([f", {name} as {there}" for name, there in called if name != there][:1])
        raise OptionError(
            f"The model's load_state_dict() does not take what its state_dict() gives{other}, so that no checkpoint "
            f"could be read ({why}); let the one undo what the other does, a hook or a method of the model's own."
        )


def refuse_expanded(model: nn.Module, loaded: bool) -> None:
    """OptionError for a net into which no update can be written; where checkpoints are `loaded`, nor one of these."""
    own, apart = (*model.named_parameters(), *model.named_buffers()), unsaved(model)
    for name, tensor in own:
        if not tensor.requires_grad and (not loaded or name in apart):
            continue
        if lies_on_itself(tensor):
            raise OptionError(
                f"{name} of the model is one number in several places (expand), into which torch writes neither an "
                "update nor the values of a checkpoint; give it memory of its own, by .clone()."
            )


def unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that are not in the model's state_dict: constants, unless training moves them."""
    stored = model.state_dict()
    places = _places(stored)
    return {n: b.clone() for n, b in model.named_buffers() if n not in stored and place(b) not in places}


def refuse_moved(model: nn.Module, apart: Mapping[str, Tensor]) -> None:
    """OptionError where training has moved what was `unsaved`."""
    buffers = dict(model.named_buffers())
    for name, was in apart.items():
        if same_bits(buffers[name], was):
            continue
        owner, _, own = name.rpartition(".")
        if own in getattr(model.get_submodule(owner), "_non_persistent_buffers_set", ()):
            why, remedy = "it is registered with persistent=False", "register it as persistent"
        else:
            why, remedy = "the model's state_dict() leaves it out", "leave out what takes it away there"
        raise OptionError(
            f"The model's buffer {name} moves in training, but {why}, so that no checkpoint would hold it; {remedy}."
        )


def place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for one tensor; of a tensor without elements it is its own."""
    where = tensor.data_ptr() if tensor.numel() else id(tensor)
    return where, tensor.dtype, tensor.shape, tensor.stride()


def _places(stored: Mapping[str, Any]) -> dict[tuple[object, ...], str]:
    """The names of a state_dict by memory; of several for one tensor the first."""
    strided = [(n, v) for n, v in stored.items() if isinstance(v, Tensor) and v.layout == torch.strided]
    return {place(value): name for name, value in reversed(strided)}


def _copied(name: str, value: Tensor, stored: Mapping[str, Any], model: nn.Module) -> str:
    """What a state_dict calls a copy of a tensor, rounded or not, beside torch's own names; "" where it has none."""

    def alike(there: Any) -> bool:
        if not isinstance(there, Tensor) or (there.shape, there.layout) != (value.shape, value.layout):
            return False
        return same_bits(there.to(value), value.to(there.dtype).to(value.dtype))

    usual = _usual(model)
    copies = [other for other, there in stored.items() if other not in usual and alike(there)]
    return min(copies, key=lambda other: not other.endswith(name), default="")


def _usual(model: nn.Module) -> set[str]:
    """The names that torch gives in a state_dict."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules(remove_duplicate=False):
        apart = getattr(module, "_non_persistent_buffers_set", ())
        own = [name for name, buffer in module._buffers.items() if buffer is not None and name not in apart]
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            own.append("_extra_state")
        names |= {f"{prefix}.{name}" if prefix else name for name in own}
    return names


def _not_taken_back(model: nn.Module, stored: Mapping[str, Any]) -> str:
    """Why load_state_dict() does not put what state_dict() gives where it was, "" where it does.

    It is asked with other numbers, of which nothing stays.
    """
    own = {place(value): name for name, value in _tensors(model).items()}
    others = {
        name: value + 1 if isinstance(value, Tensor) and place(value) in own and value.is_floating_point() else value
        for name, value in stored.items()
    }
    form, before = Form(model, "load_state_dict"), _tensors(model)
    with without_trace(model):
        try:
            model.load_state_dict(others)
            now = _tensors(model)
            for name, value in stored.items():
                there = own.get(place(value)) if isinstance(value, Tensor) else None
                if there is not None and not same_bits(now[there], others[name]):
                    return f"{there} is not what was given"
                if there is not None and now[there] is not before[there]:
                    return f"{there} is another object afterwards, which no optimizer has"
        except Exception as error:
            raise_own(error, "the model's own load_state_dict raised it")
            return f"{type(error).__name__}: {' '.join(says(error).split())[:160]}"
        finally:
            form.put_back(set())
    return ""


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
