"""What a machine is: what the bits of a run depend on beside its settings."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__


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
