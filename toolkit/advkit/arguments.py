"""What a program or a plugin passes to advkit, and what it must be: one sentence where it is not."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

import torch
from torch import Tensor, nn

from .errors import HookContract, OptionError, shown, without_temporary_files
from .numerals import VANISHES
from .plain import plain
from .types import Batch


def a_number(what: str, value: object) -> float:
    """`value` as a float: a number, or a tensor or array of one. None that float64 makes 0."""
    try:
        number = plain(value)
        found = float(number if not isinstance(number, str | bytes | bool) else "no")
        vanishes = not found and bool(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise OptionError(f"{what} is {shown(value)}; pass a number.") from None
    if vanishes:
        raise OptionError(f"{what} = {shown(value)} {VANISHES}.")
    return found


def a_whole_number(what: str, value: object, least: int, most: int) -> int:
    """`value` as an int from `least` to `most`; numpy's integers count, truth values do not."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = least - 1
    if not least <= number <= most:
        raise OptionError(f"{what} = {shown(value)} must be an integer from {least} to {most}.")
    return number


def a_dense_tensor(what: str, value: object) -> Tensor:
    """`value` if a checkpoint can hold it: a dense tensor of real numbers, integers or truth values."""
    if not isinstance(value, Tensor):
        raise OptionError(f"{what} is a {type(value).__name__}; pass a tensor, such as torch.zeros(3).")
    layout = "nested" if value.is_nested else str(value.layout)  # a nested tensor may be strided
    if layout != str(torch.strided) or value.is_complex() or value.is_quantized or value.is_meta:
        raise OptionError(f"{what} is {value.dtype}, {layout}; pass a dense tensor of real numbers.")
    return value


# ---------------------------------------------------------------------- what an attack by hand is given


def per_image(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """(B,), one for each of images x (B, C, H, W); a number is that of all. OptionError, without a look at values."""
    if not isinstance(x, Tensor) or not x.dim() or not x.is_floating_point():
        raise OptionError(f"x must be images (B, C, H, W), floats in [0, 1], not {described(x)}.")
    if not isinstance(value, Tensor) or not value.dim():
        return x.new_full((len(x),), a_number(name, value))
    if (value.shape, value.device) != ((len(x),), x.device) or not value.is_floating_point():
        expected = f"({len(x)},) floating point{where(x)}, one for each image"
        raise OptionError(f"{name} must be a number or {expected}, not {described(value)}.")
    return value


# ---------------------------------------------------------------------- what a plugin gives to `run`


def a_name(plugin: str, what: str, value: object) -> str:
    """`value` as a text of a plugin's own, which screens, tables and files can hold."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise OptionError(f"Plugin {plugin}: {what} is {shown(value)}; pass a text that can be printed.")
    return value


def a_batch(plugin: str, service: str, value: object) -> Batch:
    """`value` if it is one."""
    if not isinstance(value, Batch):
        raise OptionError(f"Plugin {plugin}: {service} takes an advkit.Batch, not {type(value).__name__}.")
    return value


def a_whole_batch(plugin: str, service: str, value: object, dtype: torch.dtype) -> Batch:
    """`value` if a net of this type can be attacked on it: a row of everything for each image, where gradients are."""
    refuse_inference(plugin, service)
    batch = a_batch(plugin, service, value)
    x = images(plugin, service, batch.x, dtype)
    for name in ("y", "index", "occurrence"):
        rows = getattr(batch, name)
        whole = isinstance(rows, Tensor) and (rows.shape, rows.dtype) == (x.shape[:1], torch.int64)
        if not whole or rows.device != x.device:
            expected = f"({len(x)},) int64{where(x)}, a row for each image"
            raise HookContract.broken(plugin, service, f"{name} must be {expected}, not {described(rows)}")
    return batch


def refuse_inference(plugin: str, service: str) -> None:
    """HookContract under torch.inference_mode, for what takes gradients."""
    if torch.is_inference_mode_enabled():
        complaint = "it is called in torch.inference_mode, where nothing has a gradient; call it outside of that"
        raise HookContract.broken(plugin, service, complaint)


def images(plugin: str, service: str, value: object, dtype: torch.dtype) -> Tensor:
    """`value` if a net of this type can be called on it."""
    if not isinstance(value, Tensor) or not value.dim() or value.dtype != dtype:
        expected = f"images (B, C, H, W) {str(dtype).removeprefix('torch.')} are expected"
        raise HookContract.broken(plugin, service, f"{expected}, not {described(value)}")
    return value


def described(value: object) -> str:
    """(8, 3, 32, 32) float32 on cuda"""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{where(value)}"


def where(value: Tensor) -> str:
    """What is unusual about its place in memory."""
    return (" sparse" if value.is_sparse else "") + ("" if value.device.type == "cpu" else f" on {value.device.type}")


# ---------------------------------------------------------------------- the arguments of public functions


def refuse_unused(why: str, **given: object) -> None:
    """OptionError for the arguments that are not None, where nothing would use them for the reason `why`."""
    if unused := [name for name, value in given.items() if value is not None]:
        raise OptionError(f"{', '.join(unused)}: {why}; leave it out.")


P = ParamSpec("P")
R = TypeVar("R")

SUCH_AS = {
    "options": 'options by plugin, such as {"cat-eps": {"eta": 0.005}}',
    "settings": 'settings by name, such as {"attack.steps": 10}',
    "plugins": 'names of plugins, their classes or objects, such as ["cat-eps", "lsiw"]',
    "no_companion": 'names of hooks, such as ["weight_perturbation"]',
}
"""What an argument must be, where its type says too little."""

NAMES_ALONE = {"plugins": 'names of installed plugins, such as ["cat-eps", "lsiw"], as each run is started by them'}
"""Of one whose type is text."""

WORDS: dict[object, str] = {
    str: "text",
    Path: "a path",
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    type(None): "None",
    object: "anything",
    Mapping: "a mapping",
    nn.Module: "a torch Module",
    torch.optim.Optimizer: "a torch Optimizer",
    Tensor: "a tensor",
}


def checked(*others: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse what a function is called with where it is not of the annotated types: an OptionError, before it runs.

    Numbers of numpy and torch count as Python's, truth values not as numbers; what is iterated is iterated once. A path
    has to be one that a disk could hold. The function itself judges `others`, and what is annotated `Any`.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checking(*args: P.args, **kwargs: P.kwargs) -> R:
            hints = _hints(function)
            call = signature.bind(*args, **kwargs)
            for name in [one for one in call.arguments if one in hints and one not in others]:
                call.arguments[name] = _an_argument(name, call.arguments[name], hints[name])
            with nullcontext() if function.__name__ == "__init__" else with_values():
                try:
                    return function(*call.args, **call.kwargs)
                except FileNotFoundError as error:
                    raise (without_temporary_files(error) or error) from error.__cause__

        return checking

    return decorated


def with_values() -> AbstractContextManager[object]:
    """A scope whose new tensors hold values: under torch.set_default_device("meta") they are made on the CPU."""
    return torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()


@functools.cache
def _hints(function: Callable[..., object]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _an_argument(name: str, value: Any, hint: Any) -> Any:
    try:
        if isinstance(value, Iterator) and _any(hint, lambda part: get_origin(part) is Iterable):
            value = tuple(value)
        right = fits(value, hint)
    except Exception:  # of an object that can not be iterated or compared: it is none of what was asked for
        right = False
    if not right:
        texts = hint == (str | Sequence[str] | None)
        must = (NAMES_ALONE.get(name) if texts else None) or SUCH_AS.get(name) or words(hint)
        raise OptionError(f"{name} must be {must}, not {shown(value)}.")
    several = not isinstance(value, str) and _any(hint, lambda part: Path in _parts(next(iter(get_args(part)), None)))
    if several or _any(hint, lambda part: part is Path):
        for place in value if several and isinstance(value, Sequence) else [value]:
            _refuse_no_path(name, place)
    return value


def _refuse_no_path(name: str, value: object) -> None:
    if not isinstance(value, str | Path):
        return
    text = str(value)
    try:
        right = bool(text) and b"\0" not in os.fsencode(text)
    except ValueError:
        right = False
    if not right:
        raise OptionError(f"{name} = {text!r:.80} is no path that a disk could hold; name a file or folder.")


def _any(hint: Any, judge: Callable[[Any], bool]) -> bool:
    return any(map(judge, _parts(hint)))


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    return get_args(hint) if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, with what is in it."""
    if len(_parts(hint)) > 1:
        return _any(hint, lambda part: fits(value, part))
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any or hint is object:
        return True
    if hint in (int, float):
        number = plain(value)
        return isinstance(number, (int, float) if hint is float else int) and not isinstance(number, bool)
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner)
    if origin is Callable:
        return callable(value) and _takes(value, inner)
    if isinstance(value, type) or not isinstance(value, origin):  # a class has the methods of its objects
        return False
    if origin is Mapping:
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if origin in (Sequence, Iterable, tuple):
        return not isinstance(value, str | bytes | Mapping) and all(fits(each, inner[0]) for each in value)
    return True


def _takes(function: Callable[..., Any], inner: tuple[Any, ...]) -> bool:
    """Whether it can be called with as many arguments as it will be."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of one written in C
        return True
    try:
        signature.bind(*inner[0])
    except TypeError:
        return False
    return True


def words(hint: Any) -> str:
    """A type for people."""
    *others, last = dict.fromkeys(_words(part) for part in _parts(hint))
    return f"{', '.join(others)} or {last}" if others else last


def _words(part: Any) -> str:
    origin, inner = get_origin(part) or part, get_args(part)
    if origin in (Sequence, Iterable, tuple):
        return f"a list, each {words(inner[0])}"
    if origin is Callable:
        return f"a function of {len(inner[0])} argument{'s' * (len(inner[0]) != 1)}"
    if origin is type:
        return f"a class of {inner[0].__name__}"
    return WORDS.get(origin) or f"an advkit.{origin.__name__}"
