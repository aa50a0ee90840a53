"""What a value holds: what its `repr` tells, what stands in a container or behind a wrapper, and its fields.

Nothing of somebody's own is called. An address, or what a value keeps of what it was asked, is in none of it.
"""

from __future__ import annotations

import array
import datetime
import decimal
import functools
import io
import operator
import re
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    EllipsisType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    NoneType,
    NotImplementedType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any

PLAIN = (str, bytes, bool, int, float, complex)

_SHOWN = (
    *(NoneType, EllipsisType, NotImplementedType, range, PurePath, decimal.Decimal),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(MemberDescriptorType, GetSetDescriptorType, WrapperDescriptorType),
    *(MethodDescriptorType, ClassMethodDescriptorType),
)
_SHOWN_OF_OTHERS = (
    *("torch.dtype", "torch.device", "torch.Size", "torch.memory_format", "torch.layout", "torch.finfo", "torch.iinfo"),
    *("torch._ops.OpOverload", "numpy.ufunc", "numpy.dtype", "typing."),
)
"""Kinds of values, by how the names of their types begin, that their `repr` tells apart."""

HIDING = (
    *(io.IOBase, weakref.ProxyType, weakref.CallableProxyType),
    *(weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet),
)
"""Open files, and what refers to things that somebody else keeps and that may be gone: caches."""

_GETTERS = (operator.attrgetter, operator.itemgetter, operator.methodcaller)
_CACHED = type(functools.cache(len))
_ALIASES, _OF_NAMES = (GenericAlias, UnionType), ("__origin__", "__args__")
_NO_CODE = ("__doc__", "__annotations__", "__annotate__", "_inverted_")
"""Attributes that compute nothing: of wrappers, and of a flag whose ~ was taken."""


def told(value: Any) -> str | None:
    """What the `repr` of a value tells of it, where that is all; None elsewhere."""
    kind = type(value)
    of_others = f"{kind.__module__}.{kind.__qualname__}".startswith(_SHOWN_OF_OTHERS)
    known = kind in PLAIN or issubclass(kind, _SHOWN) or of_others
    return repr(value) if known and not issubclass(kind, type) and not hasattr(value, "__args__") else None


def parts(value: Any) -> list[Any] | None:
    """What stands in a container or behind a wrapper; None where it is none. Of a set in any order."""
    plain = next((base for base in PLAIN if isinstance(value, base)), None)
    if plain is not None:  # of a class of its own
        return [plain.__repr__(value)]
    if isinstance(value, Mapping):
        return [getattr(value, "default_factory", None), *(part for pair in value.items() for part in pair)]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, deque):
        return [value.maxlen, *value]
    if isinstance(value, bytearray | array.array):
        return [bytes(value)]
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, BuiltinFunctionType):
        return [value.__name__, value.__self__]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, classmethod | staticmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if isinstance(value, _GETTERS):
        return [*value.__reduce__()]
    if isinstance(value, _CACHED):
        return [value.__wrapped__]
    return [getattr(value, name, None) for name in _OF_NAMES] if isinstance(value, _ALIASES) else None


def fields(value: Any) -> list[tuple[str, Any]]:
    """Its attributes and filled slots, but for what Python keeps in them of what it was asked."""
    if isinstance(value, (*_ALIASES, functools.cached_property)):  # whose attributes are those of what they stand for
        return []
    own = [(name, held) for name, held in getattr(value, "__dict__", {}).items() if name not in _NO_CODE]
    return [(name, held) for name, held in own if not _is_cached(type(value), name)] + _slots(value)


def _is_cached(kind: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in kind.__mro__)


def _slots(value: object) -> list[tuple[str, Any]]:
    names = [
        f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name  # as Python does
        for base in type(value).__mro__
        for given in [vars(base).get("__slots__", ())]
        for name in ((given,) if isinstance(given, str) else given)
    ]
    return [(n, getattr(value, n)) for n in names if n not in ("__dict__", "__weakref__") and hasattr(value, n)]
