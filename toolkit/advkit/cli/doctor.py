"""`advkit doctor`: does this installation work? A line a check; exit code 0 or 1."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ..errors import AdvkitError
from .main import echo
from .streams import data_stream

Probe = tuple[str, Callable[[], str]]
"""What is checked, and a function that says what it saw, or raises."""


@click.command("doctor")
def command() -> int:
    """Check the installation: torch, two steps of training twice, every plugin, the terminal. Takes seconds."""
    failed = 0
    for name, check in checks():
        try:
            line = f"ok    {name}: {check()}"
        except Exception as error:  # whatever it is, it is the finding
            failed += 1
            first = next(iter(str(error).splitlines()), "no message")
            said = isinstance(error, AdvkitError | RuntimeError)
            line = f"FAIL  {name}: {first}" if said else f"FAIL  {name}: {type(error).__name__}: {first}"
        echo(line)
    if failed:
        print(f"{failed} checks failed. `advkit env` shows what a bug report needs.", file=sys.stderr)
    return 1 if failed else 0


def checks() -> Iterator[Probe]:
    """All of them, in order. Names are asked for as late as possible: a broken one must not hide the others."""
    from .. import registry

    yield "requirements", requirements
    yield "torch", arithmetic
    yield "training", trained_twice
    for group in registry.GROUPS:
        for name in registry.names(group):
            yield f"{group} {name}", lambda group=group, name=name: loaded(group, name)  # type: ignore[misc]
    yield "recipes", recipes
    yield "terminal", terminal


def requirements() -> str:
    """Installed distributions against what advkit asks for."""
    import re
    from importlib.metadata import requires, version

    present = []
    for line in requires("advkit") or ():
        if "extra ==" in line:
            continue
        name, least = re.match(r"([\w.-]+)(?:>=([\d.]+))?", line).groups()  # type: ignore[union-attr]
        have = version(name)
        if least and _numbers(have) < _numbers(least):
            raise RuntimeError(f"{name} {have} is older than {least}; upgrade it")
        present.append(f"{name} {have}")
    return ", ".join(present)


def _numbers(version: str) -> list[int]:
    import re

    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def arithmetic() -> str:
    """A convolution and its gradient against numbers known in advance."""
    import torch

    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    loss = torch.nn.functional.conv2d(x, torch.full((1, 1, 2, 2), 0.5)).square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    expected = torch.tensor([[2.0, 4.0, 2.0], [4.0, 8.0, 4.0], [2.0, 4.0, 2.0]])
    if not gradient[0, 0].equal(expected):
        raise RuntimeError(f"the gradient of a convolution is {gradient.tolist()}; reinstall torch")
    return f"{torch.__version__}, {torch.get_num_threads()} threads, cuda {torch.cuda.is_available()}"


def trained_twice() -> str:
    """Two steps on the digits, written to a temporary folder, twice: the same bits."""
    from ..storage import checkpoint
    from ..training.launch import train

    stored = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="advkit-doctor-") as folder:
            out = Path(folder) / "run"
            train(epochs=1, batch_size=30, settings=SMALL, out=out)
            tensors, _ = checkpoint.load(checkpoint.resolve(out / "checkpoints", "last"))
            stored.append(tensors)
    one, two = stored
    different = [name for name in sorted({*one, *two}) if name not in one or not one[name].equal(two[name])]
    if different:
        raise RuntimeError(f"two runs of one seed differ in {different[0]}; set run.threads=1 and try again")
    return f"two steps on digits, twice: {len(one)} tensors, the same bits"


SMALL = {"data.limit": 60, "validation.fraction": 0, "attack.steps": 3, "attack.step_size": "eps/2"}


def loaded(group: str, name: str) -> str:
    """Imported; a plugin is also checked against the hooks and built with its default options."""
    from .. import registry
    from ..compose.registration import check, hooks_of, register
    from ..options import validate
    from ..plugin import Plugin

    registered = registry.load(group, name)
    if group != "plugin":
        return f"{registered.__module__}.{registered.__qualname__}"
    assert issubclass(registered, Plugin)
    check(registered)
    register([registered(validate(registered.Options, {}, where=name, eps=8 / 255, decays=range(1, 10_000)))])
    return ", ".join(hooks_of(registered)) or "no hooks"


def recipes() -> str:
    """Every file can be read."""
    from ..config import recipes

    return f"{len([recipes.load(name) for name in recipes.names()])} can be read"


def terminal() -> str:
    """What it can show; nothing here is wrong, so nothing fails."""
    import shutil

    where = "a terminal" if data_stream().isatty() else "no terminal"
    return f"stdout is {where}, {shutil.get_terminal_size().columns} columns, {data_stream().encoding}"
