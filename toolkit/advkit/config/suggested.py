"""Settings that nobody has typed: what data sets and plugins suggest, and who it is where a setting can not be that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .. import registry
from ..errors import OptionError
from ..settings import known_setting

ATTRIBUTES = {"data set": "defaults", "plugin": "prefers"}
"""Where each says what it suggests."""


def of_data(name: str) -> Mapping[str, object]:
    """What a registered data set suggests. Raises OptionError for what are no settings, PluginLoad for no data set."""
    stated = getattr(registry.load("data set", name), "defaults", {})
    if not isinstance(stated, Mapping) or not all(isinstance(key, str) for key in stated):
        raise OptionError(
            f"{_whose(f'data set {name}')}: defaults must be settings and values, such as {{'attack.eps': 0.1}}, not "
            f"{stated!r:.80}."
        )
    for key in stated:
        refuse_unknown(key, f"data set {name}")
    return stated


def refuse_unknown(key: str, origin: str) -> None:
    """OptionError where `origin`, such as "plugin trades", suggests what is no setting."""
    try:
        known_setting(key)
    except OptionError as error:
        raise OptionError(f"{error} {_suggests(origin)}; mend that.") from None


@contextmanager
def told(origins: Mapping[str, str]) -> Iterator[None]:
    """The scope that validates settings: what it refuses of one that was suggested says who suggests it."""
    try:
        yield
    except OptionError as error:
        origin = origins.get(error.key, "")
        if not origin.startswith(tuple(ATTRIBUTES)):
            raise
        advice = "mend that" if error.unknown else f"set {error.key}, or mend that"
        raise OptionError(f"{error} {_suggests(origin)}; {advice}.") from None


def _suggests(origin: str) -> str:
    attribute = next(stated for group, stated in ATTRIBUTES.items() if origin.startswith(group))
    return f"{_whose(origin)} suggests it, in {attribute}"


def _whose(origin: str) -> str:
    group = next(group for group in ATTRIBUTES if origin.startswith(group))
    owner = registry.owners(group).get(origin.removeprefix(f"{group} "))
    return origin[0].upper() + origin[1:] + (f" of {owner}" if owner else "")
