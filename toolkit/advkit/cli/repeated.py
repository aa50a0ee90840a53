"""Lists that are given twice: click takes the last one without a word, and would run something else."""

from __future__ import annotations

from collections.abc import Sequence

import click


def refuse_repeated(command: click.Command, ctx: click.Context, words: Sequence[str]) -> None:
    """UsageError where an option that takes a list, A,B, is given twice: both might be meant.

    Of a single value the last one holds, as in any shell: scripts put theirs behind what they are given.
    """
    try:
        _, _, order = command.make_parser(ctx).parse_args(list(words))
    except click.UsageError:  # which click says itself
        return
    for option in {one.name: one for one in order if "," in (one.metavar or "")}.values():
        if order.count(option) > 1:
            name = max(option.opts, key=len)
            raise click.UsageError(f"{name} is given {order.count(option)} times; give all in one, {name} A,B.", ctx)
