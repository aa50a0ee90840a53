"""`advkit completion`: the script for a shell, and what it completes. Names are read without importing anything."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from .streams import data_stream

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete(group: str, comma: bool = False) -> Completer:
    """Completes names of a group: plugin, data set, model or recipe; with `comma` the last of a comma list."""

    def names(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        from .. import registry
        from ..config import recipes

        before, _, last = typed.rpartition(",") if comma else ("", "", typed)
        known = recipes.names() if group == "recipe" else registry.names(group)
        free = [name for name in known if name.startswith(last) and name not in before.split(",")]
        return [CompletionItem(f"{before},{name}" if before else name) for name in free]

    return names


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(advkit completion bash)" in ~/.bashrc
    zsh:  eval "$(advkit completion zsh)" in ~/.zshrc
    fish: advkit completion fish > ~/.config/fish/completions/advkit.fish
    """
    from .main import cli

    script = get_completion_class(shell)
    assert script is not None  # click has these three
    click.echo(script(cli, {}, "advkit", "_ADVKIT_COMPLETE").source(), data_stream())
