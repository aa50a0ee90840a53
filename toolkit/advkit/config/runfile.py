"""Run files: TOML in, TOML out. What `dump` writes, `load` turns into the same run again."""

from __future__ import annotations

import errno
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from .. import reading, registry
from ..errors import OptionError, did_you_mean
from ..options import PLACE
from ..own_file import FLAGS, OwnFile
from ..settings import SECTIONS
from .layer import Layer
from .toml import parsed

if TYPE_CHECKING:
    from .resolve import Resolved

FORMAT = 1
CAP = 1 << 20  # bytes; nobody writes a longer one by hand, and a parser should not be fed more
TOP_LEVEL = (*SECTIONS, "model", "order", "options", "plugins", "no_companion", "companions", "files", "format")
OF_0_1_0: Mapping[str, Mapping[object, object]] = {"run.compile": {False: "off"}}
"""What values in files of 0.1.0 are called now."""


PLACES = ("data.root", "data.balance", "run.device", "run.threads")
"""Settings that may be others where a run lies elsewhere now; `data.balance` was none in 0.1.0."""


def text(path: Path) -> str:
    """A run file as it is written. Raises OptionError where there is none that can be read."""
    try:
        return reading.read(path, CAP).removeprefix(BOM_UTF8).decode()  # some editors begin a file with it
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise OptionError(f"{path} is larger than 1 MiB; that is no run file.") from None
        raise OptionError(f"{path} can not be read ({error.strerror}); give an existing run file.") from None
    except UnicodeDecodeError:
        raise OptionError(f"{path} is not in UTF-8, as PowerShell's > writes files; save it in UTF-8.") from None


def load(path: Path) -> Layer:
    """Read a run file. Raises OptionError, one sentence, for whatever is wrong with it."""
    try:
        table = parsed(text(path))
    except ValueError as error:
        raise OptionError(f"{path} is not valid TOML ({str(error).splitlines()[0]}); correct it.") from None
    return parse(table, path.name)


def parse(table: Mapping[str, Any], name: str, origin: str = "") -> Layer:
    """A parsed run file called `name`, as a layer of a run."""
    for key, value in table.items():
        if key not in TOP_LEVEL:
            raise OptionError(f"{name}: unknown section {key}.{did_you_mean(key, TOP_LEVEL)}")
        if key in (*SECTIONS, "model", "order", "options", "companions", "files") and not isinstance(value, dict):
            raise OptionError(f"{name}: {key} must be a table, [{key}].")
    if table.get("format", FORMAT) != FORMAT:
        raise OptionError(f"{name} has format {table['format']!r}; this advkit reads format {FORMAT}.")
    plugins, declined = (_names(table, name, key) if key in table else None for key in ("plugins", "no_companion"))
    options = table.get("options", {})
    for plugin, values in options.items():
        if not isinstance(values, dict):
            raise OptionError(f"{name}: options.{plugin} must be a table, [options.{plugin}].")
    settings = {
        f"{section}.{key}": _today(f"{section}.{key}", value)
        for section in (*SECTIONS, "model", "order")
        for key, value in table.get(section, {}).items()
    }
    files = _files(table.get("files", {}), settings, name)
    settings |= {key: file.short for key, file in files.items()}
    return Layer(origin or f"file {name}", settings, options, plugins, declined or (), table.get("companions"), files)


def _files(recorded: Mapping[str, Any], settings: Mapping[str, object], name: str) -> dict[str, OwnFile]:
    """What settings name as FILE.py:NAME, with the path and the SHA-256 that are recorded of it; nothing is opened."""
    files = {}
    for key in FLAGS:
        if file := OwnFile.written(key, settings.get(key)):
            known = recorded.get(key.partition(".")[0], {})
            if not (
                isinstance(known, dict) and all(isinstance(known.get(part, ""), str) for part in ("path", "sha256"))
            ):
                raise OptionError(f"{name}: files.{key.partition('.')[0]} must have a path and its sha256, as texts.")
            files[key] = replace(file, path=known.get("path", file.path), recorded=known.get("sha256", ""))
    return files


def _today(key: str, value: object) -> object:
    return OF_0_1_0.get(key, {}).get(value, value) if isinstance(value, bool) else value


def _as_today(run: Mapping[str, object]) -> dict[str, object]:
    """All values as they are called now; 0.1.0 limited data to as many of each class, always."""
    balance = {"data.balance": True} if run.get("data.limit") else {}
    return balance | {key: _today(key, value) for key, value in run.items()}


def _names(table: Mapping[str, Any], name: str, key: str) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise OptionError(f'{name}: {key} must be a list of names, such as ["cat-eps", "lsiw"].')
    return tuple(value)


def companions(resolved: Resolved) -> dict[str, dict[str, str]]:
    """Who was added, for which hook, and at whose wish."""
    return {name: {"hook": hook, "for": asker} for name, (hook, asker) in sorted(resolved.composition.added.items())}


def same_companions(recorded: Mapping[str, Any] | None, resolved: Resolved, name: str) -> None:
    """Refuse a file whose recorded companions are no longer those that its plugins get."""
    if recorded is not None and dict(recorded) != companions(resolved):
        raise OptionError(
            f"{name} records the companions {', '.join(recorded) or 'none'}, but its plugins now get "
            f"{', '.join(companions(resolved)) or 'none'}; install the recorded versions, or remove [companions]."
        )


def dump(resolved: Resolved) -> str:
    """The run in force, complete: every setting and option, whatever its origin."""
    table: dict[str, Any] = {
        "format": FORMAT,
        "plugins": list(resolved.chosen),
        "no_companion": list(resolved.no_companion),
    }
    table |= {name: options.model_dump() for name, options in resolved.sections.items()}
    table["model"] = {"name": resolved.model_name, **resolved.model_options}
    table["order"] = {hook: list(names) for hook, names in resolved.composition.setting.order.items()}
    table["options"] = {p.name: p.options.model_dump(exclude_none=True) for p in resolved.composition.plugins}
    table["companions"] = companions(resolved)
    if resolved.files:
        table["files"] = {
            key.partition(".")[0]: {"path": file.path, "sha256": file.sha256} for key, file in resolved.files.items()
        }
    return tomli_w.dumps(table)


def difference(stored: str, now: str) -> list[str]:
    """What two dumps disagree on: ["run.epochs: 3 in the run, 4 now"]."""
    try:
        before, after = (_as_today(_flat(parsed(each))) for each in (stored, now))
    except ValueError:
        return ["what is stored is no run file"]
    return [
        f"{key.removeprefix('options.')}: {before.get(key)!r} in the run, {after.get(key)!r} now"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        # Where data lie, or a net, their fingerprint decides; where code lies, `OwnFile.changed` tells.
        and not (key == "data.root" or key.startswith("files."))
        and not (key.startswith("options.") and is_place(*key.split(".")[1:3]))
        and not (key not in before and _is_default(key, after))
    ]


def is_place(plugin: str, option: str) -> bool:
    """Whether an option says where something lies (`advkit.Place`); of what is not installed nobody knows."""
    if plugin not in registry.names("plugin"):
        return False
    fields = registry.load("plugin", plugin).Options.model_fields  # type: ignore[attr-defined]
    return option in fields and PLACE in fields[option].metadata


def other_run(stored: str, now: str) -> list[str]:
    """As `difference`, of what makes another run; two versions of advkit may write one run, on two machines."""
    each_way = (difference(stored, now), difference(now, stored))
    return [line for line in min(each_way, key=len) if line.partition(":")[0] not in PLACES]


def _is_default(key: str, run: Mapping[str, object]) -> bool:
    """Whether a setting that an earlier advkit did not know is as if it were not there."""
    section, _, field = key.partition(".")
    options: Any = SECTIONS.get(section)
    name = str(run.get("model.name"))
    if section == "model" and name in registry.names("model"):
        options = getattr(registry.load("model", name), "Options", None)
    known = options.model_fields.get(field) if options is not None else None
    return known is not None and known.default == run[key]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
