"""Plugins that break their contract, for tests."""

from __future__ import annotations

from typing import Any

from advkit import Plugin, hookimpl
from advkit.compose.registration import HOOKS


def bad(**members: Any) -> type[Plugin]:
    """A plugin called "bad": functions named like a hook are marked."""
    for name in members.keys() & HOOKS.keys():
        members[name].__annotations__ = {}  # those of these tests are not the specification's
    marked = {name: hookimpl(value) if name in HOOKS else value for name, value in members.items()}
    return type("Bad", (Plugin,), {"name": "bad", **marked})
