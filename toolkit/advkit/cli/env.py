"""`advkit env`: versions, machine and plugins, which a bug report needs."""

from __future__ import annotations

from typing import Any

import click

from .main import echo, print_json


@click.command("env")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show what a bug report needs: versions, machine, threads, plugins."""
    facts = environment()
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        lines = [f"{name} {fact}" for name, fact in value.items()] if isinstance(value, dict) else [str(value)]
        for number, line in enumerate(lines or ["none"]):
            echo(f"{key if number == 0 else '':<16}{line}")


def environment() -> dict[str, Any]:
    """What a run would record on this machine, for all that is installed."""
    import os
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .. import registry
    from ..config.resolve import resolve
    from ..storage import machine

    def installed(distribution: str) -> str:
        try:
            return version(distribution)
        except PackageNotFoundError:
            return "not installed"

    recorded = machine.environment(resolve(()), {})
    for key in ("command", "code", "digests", "packages"):  # the first may hold what is nobody's business
        del recorded[key]
    others = {
        name: installed(name) for name in ("torchvision", "timm", "pydantic", "pluggy", "click", "rich", "pillow")
    }
    registered = {
        f"{group}s": {one.name: f"({one.distribution} {one.version})" for one in registry.describe(group)}
        for group in ("plugin", "data set", "model")
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    variables = {name: value for name, value in os.environ.items() if name.startswith(("ADVKIT_", "OMP_", "MKL_"))}
    return {**recorded, "gpu": gpu, **others, **threads, **registered, "variables": variables}
