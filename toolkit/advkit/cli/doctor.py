"""`advkit doctor`: does this installation work? A line a check; exit code 0 or 1."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ..errors import AdvkitError

Check = tuple[str, Callable[[], str]]
"""What is checked, and a function that says what was found, or raises."""


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
        click.echo(line)
    if failed:
        click.echo(f"{failed} checks failed. `advkit env` shows what a bug report needs.", err=True)
    return 1 if failed else 0


def checks() -> Iterator[Check]:
    """All of them, in order. Names are asked for as late as possible: a broken one must not hide the others."""
    from .. import registry

    yield "requirements", requirements
    yield "torch", arithmetic
    yield "training", trained_twice
    for kind in registry.GROUPS:
        for name in registry.names(kind):
            yield f"{kind} {name}", lambda kind=kind, name=name: loaded(kind, name)  # type: ignore[misc]
    yield "recipes", recipes
    yield "terminal", terminal


def requirements() -> str:
    """Installed distributions against what advkit asks for."""
    import re
    from importlib.metadata import requires, version

    found = []
    for line in requires("advkit") or ():
        if "extra ==" in line:
            continue
        name, least = re.match(r"([\w.-]+)(?:>=([\d.]+))?", line).groups()  # type: ignore[union-attr]
        have = version(name)
        if least and _numbers(have) < _numbers(least):
            raise RuntimeError(f"{name} {have} is older than {least}; upgrade it")
        found.append(f"{name} {have}")
    return ", ".join(found)


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


SMALL = {"data.limit": 60, "validation.fraction": 0, "attack.steps": 3}


def loaded(kind: str, name: str) -> str:
    """Imported; a plugin is also checked against the hooks and built with its default options."""
    from .. import registry
    from ..compose.registration import check, hooks_of, register
    from ..options import validate
    from ..plugin import Plugin

    found = registry.load(kind, name)
    if kind != "plugin":
        return f"{found.__module__}.{found.__qualname__}"
    assert issubclass(found, Plugin)
    check(found)
    register([found(validate(found.Options, {}, where=name, eps=8 / 255, decays=range(1, 10_000)))])
    return ", ".join(hooks_of(found)) or "no hooks"


def recipes() -> str:
    """Every file can be read."""
    from ..config import recipes

    return f"{len([recipes.load(name) for name in recipes.names()])} can be read"


def terminal() -> str:
    """What it can show; nothing here is wrong, so nothing fails."""
    import shutil

    kind = "a terminal" if sys.stdout.isatty() else "no terminal"
    return f"stdout is {kind}, {shutil.get_terminal_size().columns} columns, {sys.stdout.encoding}"
