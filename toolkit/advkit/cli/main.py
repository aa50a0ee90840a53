"""`advkit`: the group, its exit codes, and what every command shares."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from .. import __version__
from ..errors import (
    AdvkitError,
    CheckpointError,
    NotTyped,
    OptionError,
    blames,
    by_others,
    command_line,
    did_you_mean,
    says,
    without_temporary_files,
)
from ..escapes import escaped, one_line
from ..explained import place
from ..registry import points
from ..torchrun import rank, several
from .repeated import refuse_repeated
from .signals import AtOnce, over
from .streams import aside, data_stream, reopen_closed, usable


class Group(click.Group):
    """Loads a command's module only when it is called, and turns every failure into one sentence on stderr."""

    commands_in = {
        name: name
        for name in (
            *("train", "plan", "evaluate", "audit", "compare", "analyze", "ablate", "sweep", "report", "export"),
            *("runs", "plugins", "models", "attacks", "recipes", "data"),
            *("env", "doctor", "completion"),
        )
    }
    """The module of each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_in)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.commands_in:
            return None
        from importlib import import_module

        points("")  # before torch, which ends at an installed distribution that is broken
        command: click.Command = import_module(f".{self.commands_in[name]}", __package__).command
        for one in (command, *getattr(command, "commands", {}).values()):
            one.context_class = _Context
        return command

    def invoke(self, ctx: click.Context) -> object:
        with AtOnce():
            try:
                return super().invoke(ctx)
            except BaseException as error:
                if isinstance(error, AdvkitError | KeyboardInterrupt) or not _of_strangers(error):
                    raise
                raise _Strange(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands_in:
            hint = did_you_mean(args[0], self.commands_in)
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        if several() and args and args[0] in self.commands_in and args[0] not in ("train", "evaluate", "audit"):
            raise OptionError(f"advkit {args[0]} runs in one process; start it without torchrun.")
        try:
            os.getcwd()
        except FileNotFoundError:
            raise CheckpointError("The working folder has been deleted; change to one that is there.") from None
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            refuse_repeated(command, click.Context(command, ctx, name), rest)
        return name, command, rest


class _Context(click.Context):
    """Runs a command; --help and the like are over before."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        with aside():  # whatever plugins, nets and data sets print
            return super().invoke(*args, **kwargs)


class _Strange(Exception):
    """Around what code of others raised: click would take some for its own and end without a word, or with 0."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _of_strangers(error: BaseException) -> bool:
    """Whether it came out of a plugin, a net or a data set. A pipe breaks where click or rich write, too."""
    return bool(blames(error)) or (by_others(error) and not isinstance(error, OSError))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="advkit")
def cli() -> None:
    """Adversarial training as composition.

    \b
    advkit train --plugins cat-eps,dirichlet-ls,lsiw
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exit codes: 0 ok, 1 the run failed, 2 what was typed, 4 data or files, 75 and 130 stopped."""
    reopen_closed()
    code = run(arguments)
    over()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never a traceback."""
    with usable(), command_line():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(
            args=list(arguments) if arguments is not None else None, prog_name="advkit", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except NotTyped as error:
        words = arguments if arguments is not None else sys.argv[1:]
        return _complain(f"{error} That is: {shlex.join(['advkit', *words, *error.words])}", error.exit_code)
    except AdvkitError as error:
        whose = "".join(f" ({note})" for note in blames(error))  # of a plugin that raised it
        return _complain(f"{error}{whose}", error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        message = error.format_message() + _by_one_dash(error, arguments if arguments is not None else sys.argv[1:])
        return _complain(message + ("" if message.endswith((".", "?")) else ".") + hint, 2)
    except _Strange as error:
        return _unexpected(error.error)
    except (click.Abort, KeyboardInterrupt):
        return _complain("Interrupted.", 130)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except BrokenPipeError:
        return 0  # the reader of stdout has gone
    except SystemExit as error:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            return 0  # as above, but click noticed it
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        return _unexpected(error)


EXTRA = re.compile(r"Got unexpected extra arguments? \((\S+?)[ )]")
"""What click says of words that no argument takes."""


def _by_one_dash(error: click.UsageError, words: Sequence[str]) -> str:
    """Which option -epochs is, of which click sees -e, or epochs, which it takes for one more argument."""
    if error.ctx is not None and (extra := EXTRA.match(error.message)):
        options = [name for option in error.ctx.command.params for name in option.opts if name.startswith("--")]
        near = did_you_mean(extra[1].lstrip("-"), [name.lstrip("-") for name in options], likeness=0.7)
        return near and f".{near.replace('mean ', 'mean --')}"
    if not isinstance(error, click.NoSuchOption) or error.option_name.startswith("--") or error.ctx is None:
        return ""
    typed = next((word for word in words if word.startswith(error.option_name)), "").partition("=")[0]
    options = [name for option in error.ctx.command.params for name in option.opts if name.startswith("--")]
    return did_you_mean(f"-{typed}", options) if len(typed) > len(error.option_name) else ""


def _unexpected(error: BaseException) -> int:
    if os.environ.get("ADVKIT_TRACEBACK"):
        raise error
    if known := without_temporary_files(error):
        return _complain(str(known), known.exit_code)
    text = next(iter(says(error).splitlines()), "")
    what = ": ".join(filter(None, [type(error).__name__, text.rstrip(".")]))
    whose = "; ".join(filter(None, [place(error), *blames(error)]))
    return _complain(f"{what}{whose and f' ({whose})'}. ADVKIT_TRACEBACK=1 shows the traceback.", 1)


def _complain(sentence: str, code: int) -> int:
    if rank() and code in (75, 130):  # as the first process says
        return code
    prefix = "" if code in (75, 130) else f"Error in process {rank()}: " if rank() else "Error: "
    print(f"{prefix}{one_line(sentence)}", file=sys.stderr, flush=True)
    return code


class Place(click.ParamType[str]):
    """The name of a file or folder. Of no text Path makes the current folder, which nobody has named.

    A shell leaves ~ to the program in --out=~/runs.
    """

    name = "place"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            named = param.opts[0] if isinstance(param, click.Option) else "What is to be read"
            raise OptionError(f"{named} is empty; name a file or folder, the current one by a dot.")
        return os.path.expanduser(value)


PLACE = Place()


def is_typed(option: str) -> bool:
    """Whether the command that runs was given the option, by its parameter's name."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def echo(line: str) -> None:
    """One line on stdout, terminal escapes in it shown."""
    click.echo(escaped(line), data_stream())


def parse_value(text: str) -> object:
    """A value as TOML would read it, else the text itself: `0.1`, `true`, `[[0, 0.0], [10, 0.1]]`, `8/255`."""
    from ..config.toml import parsed

    try:
        return parsed(f"value = {text}")["value"] if "\n" not in text else text
    except ValueError:
        return text


def assignments(pairs: Iterable[str], flag: str, example: str) -> dict[str, object]:
    """{"a.b": value} of repeated `a.b=value`."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and section and dot and name):
            raise OptionError(f"{flag} {pair!r} is not of the form {example}.")
        value = parse_value(text.strip())
        if key.strip() in values and values[key.strip()] != value:
            raise OptionError(f"{flag} gives {key.strip()} twice, {values[key.strip()]!r} and {value!r}; give it once.")
        values[key.strip()] = value
    return values


def names(text: str | None) -> tuple[str, ...] | None:
    """`a,b` as names; None where nothing was typed."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    click.echo(json.dumps(value, indent=2, allow_nan=False), data_stream())
