"""Every failure advkit reports: one sentence with the next step, and the exit code of the command line."""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Number
from pathlib import PurePath

from .passing import copied, passable

TYPED: ContextVar[bool] = ContextVar("typed", default=False)
"""Whether it is the command line that is told."""


@contextmanager
def command_line() -> Iterator[None]:
    """The scope in which advice is given in the words of the command line; elsewhere it is in those of Python."""
    token = TYPED.set(True)
    try:
        yield
    finally:
        TYPED.reset(token)


def named(flag: str, value: str = "") -> str:
    """An argument as whoever is told of it writes it: "--model NAME" on the command line, model="NAME" from Python."""
    if TYPED.get():
        return f"{flag} {shlex.quote(value)}" if value else flag
    name = _OTHERWISE.get(flag) or flag.removeprefix("--").replace("-", "_")
    return f'{name}="{value}"' if value else name


_OTHERWISE = {"--set": "settings", "--resume": "resume_from", "--data-root": "data.root", "--limit": "data.limit"}
"""What Python calls otherwise; a setting where functions differ in what they call it."""


def arguments(words: Sequence[str]) -> str:
    """Several, given as ["--model", "NAME", "--out", "DIR"]."""
    return (" " if TYPED.get() else ", ").join(map(named, words[::2], words[1::2]))


def called(function: str, words: Sequence[str]) -> str:
    """A command with its arguments, as whoever is told of it writes it: `advkit train ...`, `advkit.train(...)`."""
    return f"advkit {function} {arguments(words)}" if TYPED.get() else f"advkit.{function}({arguments(words)})"


class Caution(UserWarning):
    """What is to be known of a run that goes on; `advkit.train(..., progress=...)` is told instead."""


class AdvkitError(Exception):
    """Base of all errors whose text is meant for the user. `exit_code` is what the command line returns."""

    exit_code = 1


class OptionError(AdvkitError):
    """A setting, plugin option or argument is unknown, malformed or out of range; `key` is which, where one is."""

    exit_code = 2

    def __init__(self, sentence: str = "", key: str = "", unknown: bool = False) -> None:
        super().__init__(sentence)
        self.key, self.unknown = key, unknown


class NotTyped(OptionError):
    """A run file or folder names code of a file, which runs only where a person names it: with `words`.

    It is read from no folder, for a folder may be anybody's.
    """

    def __init__(self, names: Iterable[str], words: Iterable[str]) -> None:
        self.words = list(words)
        super().__init__(f"The code of {' and '.join(names)} runs only where you name it: add {arguments(self.words)}.")


class HookConflict(AdvkitError):
    """The chosen plugins can not be combined: two owners, or an answer that nobody consumes."""

    exit_code = 2


class AmbiguousOrder(HookConflict):
    """Two plugins chain on one hook and neither says which comes first."""


class UnknownHook(AdvkitError):
    """A plugin is refused at registration: its hook methods do not fit the hook specification."""

    exit_code = 2


class PluginLoad(AdvkitError):
    """A named plugin, model or data set does not exist, is ambiguous or may not be loaded."""

    exit_code = 2


class PluginImport(PluginLoad):
    """A named plugin, model or data set exists, but importing or building it fails."""

    exit_code = 4


class ResumeMismatch(AdvkitError):
    """A run is to be continued with settings, data or plugins other than those it was started with."""

    exit_code = 2


class HookContract(AdvkitError):
    """A plugin answered a hook with the wrong shape, dtype or value, or ran passes it did not declare.

    `rule` is what was broken: "step", what an answer must be; "borrowed", "passes", "state" or "parts", what
    it must not do, by the check in `advkit.testing` that is about it.
    """

    def __init__(self, sentence: str, rule: str = "step") -> None:
        super().__init__(sentence)
        self.rule = rule

    @classmethod
    def broken(cls, plugin: str, hook: str, complaint: str, rule: str = "step") -> HookContract:
        """Of a hook's answer, or of what its plugin did while it was asked, such as giving run.probe no radius."""
        page = "writing-a-plugin" if "run." in hook else "hooks"
        return cls(f"Plugin {plugin} broke the contract of {hook}: {complaint}. See docs/{page}.md.", rule)


class NonFinite(AdvkitError):
    """NaN or Inf appeared in a loss, an input gradient or a parameter gradient. The step was not applied."""


class OutOfMemory(AdvkitError, MemoryError):
    """A net asks for more memory than there is, in a forward or a backward."""


class ProcessLost(AdvkitError):
    """Another process of a run has ended, or has not answered in time. What was saved is intact."""


class GateMissed(AdvkitError):
    """A figure that was asked for, such as a least robust accuracy, was not reached; everything else went well."""

    exit_code = 3


class DataError(AdvkitError):
    """Images, labels or files of a data set are absent, damaged or do not fit together."""

    exit_code = 4


def without_temporary_files(error: BaseException) -> DataError | None:
    """What to say where tempfile has no folder, which torch asks for in its own time; None of other errors."""
    if not isinstance(error, FileNotFoundError) or "temporary directory" not in says(error):
        return None
    return NoTemporaryFiles("No folder for temporary files can be used; set TMPDIR to one that can be written.")


class NoTemporaryFiles(DataError):
    """Nothing can be written where temporary files go."""


class Blame(str):
    """Whose code raised an error: a note on it."""


def blame(error: BaseException, where: str) -> None:
    """Note on `error`, which may be of anybody's class, whose code raised it; that class need not take notes."""
    held = object.__getattribute__(error, "__dict__")
    notes = held.get("__notes__")
    held["__notes__"] = [*(notes if isinstance(notes, list) else ()), Blame(where)]


def blames(error: BaseException) -> list[Blame]:
    """What `blame` has noted on an error, the innermost first."""
    notes = object.__getattribute__(error, "__dict__").get("__notes__")
    return [note for note in notes if isinstance(note, Blame)] if isinstance(notes, list) else []


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Whose code the scope runs, as a note on what it raises.

    What says that a run was saved or a gate missed is an error there, as `refuse_ends` has others. Other errors of
    advkit's own have their place in the sentence, unless they are of data, or that code raises them.
    """
    try:
        yield
        return
    except BaseException as raised:
        error = passable(raised)
    refuse_ends(error, where)
    placed = isinstance(error, AdvkitError) and not isinstance(error, DataError) and not by_others(error)
    if isinstance(error, KeyboardInterrupt) or placed:
        raise error
    if isinstance(error, AdvkitError) and error.exit_code not in (1, 2, 4):
        raise _failure(error, where) from error
    blame(error, where)
    raise error


def refuse_ends(error: BaseException, where: str) -> None:
    """RuntimeError in place of SystemExit, for nobody else ends a run, and of what would end a generator around it."""
    if type(error) is SystemExit or isinstance(error, GeneratorExit | StopIteration | StopAsyncIteration):
        raise _failure(error, where) from copied(error)


def says(error: BaseException) -> str:
    """The text of an error that may be of anybody's class; "" of one that fails at telling it."""
    try:
        return str(error)
    except Exception:
        return ""


def _failure(error: BaseException, where: str) -> RuntimeError:
    """What ends a run in place of an exception that would say something else of it, or nothing."""
    name, text = type(error).__name__, says(error)
    failure = RuntimeError(f"{name}: {text}" if text else name)
    blame(failure, where)
    return failure


def by_others(error: BaseException) -> bool:
    """Whether the frame that raised it is of somebody else's code."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] not in ("advkit", "advkit_plugins", "click")


class CheckpointError(AdvkitError):
    """A checkpoint or run folder is absent, damaged or belongs to something else."""

    exit_code = 4


class Stopped(AdvkitError):
    """The run was stopped by a signal after its state had been saved; `--resume` continues it."""

    exit_code = 75


class Interrupted(Stopped):
    """As `Stopped`, by Ctrl-C."""

    exit_code = 130


STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals that say so: Ctrl-C; what `kill`, Slurm and a dropped ssh send."""


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """' Did you mean X?' for a near miss, else ''. The same wording for every kind of name."""
    names, typed = {spoken(name): name for name in known}, spoken(word)
    slips = [name for name in names if len(typed) > 1 and _one_slip(typed, name)]
    near = difflib.get_close_matches(typed, slips or list(names), n=1, cutoff=likeness) or slips[:1]
    return f" Did you mean {names[near[0]]}?" if near else ""


def _one_slip(typed: str, name: str) -> bool:
    """Whether one letter too many, too few, wrong, or two that have changed places are all that is between them."""
    least = min(len(typed), len(name))
    first = next((place for place in range(least) if typed[place] != name[place]), least)
    one, other = typed[first:], name[first:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return typed != name and (one[1:] == other or one == other[1:] or one[1:] == other[1:] or swapped)


def spoken(name: str) -> str:
    """A name as it is compared with others: however it is capitalised, and joined by - or _."""
    return name.casefold().replace("_", "-")


def cut(text: str) -> str:
    """A name as somebody has typed it, as far as a sentence can hold it."""
    return text if len(text) <= 80 and text.isprintable() else shown(text)


def shown(value: object) -> str:
    """A value for people; of what has no short one, its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if not isinstance(value, str | bytes | Number | list | tuple | Mapping | Set | PurePath | None):
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    try:
        text = repr(value)
    except Exception:  # of an object in it
        return f"a {name}"
    return text if len(text) <= 80 else f"{text[:77]}..."
