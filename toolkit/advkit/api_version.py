"""The version of what plugins rest on, and what a plugin that is written for another one is told.

docs/api.md says what changes it: major where something that worked may not any more, minor where something is new.
"""

from __future__ import annotations

import re

API_VERSION = "1.0"
"""MAJOR.MINOR of hooks, their arguments and rules, and the public names; what `Plugin.api_version` is held against."""


def unfit(plugin: str, stated: object) -> str | None:
    """Why a plugin that states this version can not be used here; None where it can."""
    if stated == "":
        return None
    if not isinstance(stated, str) or not (parts := re.fullmatch(r"(\d{1,9})\.(\d{1,9})", stated)):
        return f"Plugin {plugin}: api_version must be MAJOR.MINOR, such as '{API_VERSION}', not {stated!r:.80}."
    major, minor = map(int, parts.groups())
    here = tuple(map(int, API_VERSION.split(".")))
    if (major, minor) > here:
        return (
            f"Plugin {plugin} is written for API {stated} of advkit, and this advkit has {API_VERSION}; upgrade "
            f"advkit, or install an older {plugin}."
        )
    if major < here[0]:
        return (
            f"Plugin {plugin} is written for API {stated} of advkit, and this advkit has {API_VERSION}, where hooks or "
            f"names are other ones; upgrade {plugin}, or install an advkit of API {major}."
        )
    return None
