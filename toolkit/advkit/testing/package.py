"""A new plugin as a package: a module, its entry point, its tests, all of them green."""

from __future__ import annotations

import keyword
import os
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from .. import __version__, registry
from ..api_version import API_VERSION
from ..errors import OptionError
from ..plugin import CORE
from ..storage import files

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 60


def new_package(name: str, into: Path, typed: bool = True) -> list[Path]:
    """Writes the package `name` into a new folder of that name in `into`; the files that are in it.

    Raises OptionError for a name that a plugin or its module can not have, a folder that is there already, or where
    `into` was `typed` and can not be written; CheckpointError where it was not.
    """
    module, folder = _module(name), into / name
    if os.path.lexists(folder):
        raise OptionError(f"{folder} is there already, and nothing is overwritten; choose another name or --in DIR.")
    words = {
        "name": name,
        "module": module,
        "class": "".join(part.capitalize() for part in name.split("-")),
        "version": __version__,
        "api": API_VERSION,
    }
    names = {"module.py": f"{module}.py", "test.py": f"test_{module}.py"}
    work = into / files.hidden("tmp", name)
    try:
        os.mkdir(work)
        for template in sorted(TEMPLATES.iterdir()):
            file = names.get(template.stem, template.stem)
            text = Template(template.read_text(encoding="utf-8")).substitute(words)
            files.write_new(work / file, text.encode())
        os.rename(work, folder)
    except OSError as error:
        raise files.unwritable(folder, error, "name a folder that is there with --in DIR", typed=typed) from error
    finally:
        files.delete(work)
    return sorted(folder.iterdir())


def _module(name: str) -> str:
    """The module of a plugin, or an OptionError where the two can not be called so."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST or name == CORE:
        raise OptionError(
            f"{name!r} is no name for a plugin; it takes small letters, digits and single hyphens, {LONGEST} at most, "
            "such as acme-margin."
        )
    if name in registry.names("plugin"):
        raise OptionError(f"A plugin {name} is installed already; choose another name.")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or find_spec(module) is not None:
        raise OptionError(f"{name} would be the module {module}, which Python has already; choose another name.")
    return module
