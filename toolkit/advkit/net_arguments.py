"""Settings as arguments of a net of FILE.py, which has no options that could say what they must be."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from inspect import Parameter

from .errors import OptionError, shown
from .plain import plain


def arguments(given: Mapping[str, object]) -> dict[str, object]:
    """Settings of the net, by key, as a run file can hold them. OptionError for others.

    So for a text that Python reads as a truth value, a list or None: to a net False would be true.
    """
    found = {key: plain(value) for key, value in given.items()}
    for key, value in found.items():
        said = f"model.{key} = {shown(value)}"
        if not _writable(value):
            raise OptionError(f"{said} must be a number, a text, true or false, or a list.", f"model.{key}")
        if isinstance(value, str) and (instead := _instead(value)):
            raise OptionError(f"{said} is a text to the net; {instead}.", f"model.{key}")
    return found


def refuse_texts(net: str, given: Mapping[str, object], parameters: Mapping[str, Parameter]) -> None:
    """OptionError for a text such as off where the `net`, FILE.py:NAME, has a truth value by default."""
    for name, value in given.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(default, bool) and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", ""):
            raise OptionError(
                f"model.{name} = {shown(value)} is a text, and {net} has {default} there; give true or false."
            )


def _writable(value: object) -> bool:
    """Whether a run file can hold it."""
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list | tuple) and all(map(_writable, value))
    )


def _instead(text: str) -> str:
    """What to write for a text that Python reads as a truth value, a list in brackets or None; "" for another one."""
    try:
        meant = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    if meant is None:
        return "leave it out, since no run file holds None"
    listed = isinstance(meant, list | tuple) and text[:1] in "[(" and _writable(meant)
    return f"write {json.dumps(meant)}" if listed or isinstance(meant, bool) else ""
