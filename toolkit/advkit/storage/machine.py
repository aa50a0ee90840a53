"""What a machine is: what the bits of a run depend on beside its settings."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__, registry, torchrun
from ..code_digest import FORM
from ..config.resolve import Resolved


def environment(resolved: Resolved, code: Mapping[str, str]) -> dict[str, Any]:
    """What bits depend on beside run.toml. `code` are digests of what is not advkit's own, by what it is."""
    used = {plugin.name for plugin in resolved.composition.plugins}
    owners = registry.owners("plugin")
    return {
        **versions("numpy", "safetensors", "torchvision", "timm"),
        **hardware(resolved.run.device),
        "plugins": {name: owners.get(name, "passed from Python") for name in sorted(used)},
        "packages": packages(resolved),
        "code": dict(code),
        "digests": FORM,
        "processes": torchrun.processes(),
        "command": sys.argv[1:],
    }


def packages(resolved: Resolved) -> dict[str, str]:
    """Distribution and version, by "model NAME" and "data set NAME", of those registered that are not advkit's."""
    named = {"model": resolved.model_name, "data set": resolved.data.name}
    owners = {f"{kind} {name}": registry.owners(kind).get(name, "") for kind, name in named.items()}
    return {what: owner for what, owner in owners.items() if owner.partition(" ")[0] not in ("", "advkit")}


def versions(*distributions: str) -> dict[str, str]:
    """Of advkit, Python, torch (with its build) and those of `distributions` that are installed."""
    present = {name: number for name in distributions if (number := installed(name))}
    return {"advkit": __version__, "python": platform.python_version(), "torch": torch.__version__, **present}


@lru_cache(maxsize=32)
def installed(distribution: str) -> str | None:
    """Its version; None where it is not installed, or its metadata are damaged."""
    try:
        return version(distribution)
    except (PackageNotFoundError, KeyError, UnicodeDecodeError):
        return None


def hardware(device: str) -> dict[str, Any]:
    """Platform, processor, the instructions torch uses, and the GPU where `device` is one."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
    }


def processor() -> str:
    """As /proc/cpuinfo names it, else as Python does."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor()
