"""Whether a method that is marked as a hook has the name, arguments and annotations of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UnknownHook, did_you_mean
from ..hookspec import HookSpec

_ORDERING = ("tryfirst", "trylast", "wrapper", "hookwrapper")


def check_method(
    hooks: Mapping[str, HookSpec], plugin: str, name: str, method: Callable[..., Any], marks: Mapping[str, Any]
) -> None:
    """Refuse a method that is marked as a hook and does not fit it. Raises UnknownHook."""
    where = f"Plugin {plugin}, hook {name}"
    if name not in hooks:
        raise UnknownHook(
            f"Plugin {plugin} marks {name} as a hook, but there is no such hook.{did_you_mean(name, hooks)}"
            " docs/hooks.md lists them."
        )
    used = [mark for mark in _ORDERING if marks.get(mark)]
    if used:
        raise UnknownHook(
            f"{where}: {used[0]} is refused, because results must not depend on call order; "
            "declare `order` on the class for chained hooks."
        )
    if isinstance(method, classmethod):
        raise UnknownHook(f"{where}: it is a classmethod; write it as an ordinary method, with self.")
    function = method.__func__ if isinstance(method, staticmethod) else method
    if inspect.isgeneratorfunction(function):
        raise UnknownHook(f"{where}: it yields, so that a call runs nothing of it; write it without yield.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UnknownHook(f"{where}: it is async, so that a call runs nothing of it; write it without async.")
    if marks.get("specname") or marks.get("optionalhook"):
        raise UnknownHook(
            f"{where}: specname and optionalhook are refused, because they silence misspellings; "
            "name the method like the hook."
        )
    specified = hooks[name].signature.parameters
    signature = inspect.signature(function)
    for position, (argument, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise UnknownHook(f"{where}: argument {argument} must be an ordinary one, not *, ** or keyword-only.")
        if position == 0 and function is method:
            continue  # self
        if parameter.default is not inspect.Parameter.empty:
            raise UnknownHook(
                f"{where}: argument {argument} has a default, and pluggy would never fill it in; remove the default."
            )
        if argument not in specified:
            raise UnknownHook(
                f"{where}: there is no argument {argument}.{did_you_mean(argument, specified)} "
                f"Known: {', '.join(list(specified)[1:])}."
            )
        _check_annotation(where, argument, parameter.annotation, specified[argument].annotation)
    _check_annotation(where, "return", signature.return_annotation, hooks[name].signature.return_annotation)


def _check_annotation(where: str, argument: str, given: object, specified: object) -> None:
    # `| None` is what a method sees whose `demands` leave an argument out.
    if given is inspect.Signature.empty or _plain(given).removesuffix("|None") == _plain(specified).removesuffix(
        "|None"
    ):
        return
    raise UnknownHook(
        f"{where}: {argument} is annotated {_plain(given)}, but the hook's is {_plain(specified)}; "
        "correct or remove the annotation."
    )


def _plain(annotation: object) -> str:
    """An annotation as text without module names: typing.Optional and quotes aside, what one would type."""
    if annotation is None or annotation is type(None):
        return "None"
    text = annotation if isinstance(annotation, str) else None
    if text is None:
        text = annotation.__name__ if isinstance(annotation, type) else repr(annotation)
    return re.sub(r"\b(?:\w+\.)+", "", text).replace("'", "").replace('"', "").replace(" ", "")
