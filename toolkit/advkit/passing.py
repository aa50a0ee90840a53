"""Errors of anybody's class, as scopes can pass them on."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import FrozenInstanceError


def passable(error: BaseException) -> BaseException:
    """`error` as contextlib can pass it on, which notes on it where it has been; of its class still.

    Classes that let nothing be set refuse that, as frozen dataclasses do: FrozenInstanceError comes in place of theirs.
    """
    while isinstance(error, FrozenInstanceError) and "__traceback__" in str(error.args) and error.__context__:
        error = error.__context__
    kind = type(error)
    if kind.__setattr__ is not BaseException.__setattr__:
        body = {name: getattr(kind, name) for name in ("__module__", "__qualname__")}
        with suppress(Exception):  # of a class that lets none be made of it
            settable = type(kind.__name__, (kind,), body | {"__setattr__": BaseException.__setattr__})
            object.__setattr__(error, "__class__", settable)
    return error


def copied(error: BaseException) -> BaseException:
    """What a RuntimeError is raised from: contextlib takes one from a StopIteration itself for its own."""
    try:
        return copy(error).with_traceback(error.__traceback__)
    except Exception:  # of a class that is built otherwise
        return error
