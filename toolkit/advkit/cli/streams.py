"""stdout and stderr as they may be: closed, full, ASCII only, or a terminal that obeys what a folder is called."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import Any, TextIO, cast

from ..errors import AdvkitError

_DATA: ContextVar[TextIO | None] = ContextVar("data_stream", default=None)


class Unwritable(AdvkitError):
    """stdout can not be written."""

    exit_code = 4


class _Stream(ABC):
    """A stream whose failures are told apart from those of files."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str | bytes) -> int:
        if not text:  # click tries what a stream takes, and would hide the failure
            return 0
        try:
            return self.stream.write(text if isinstance(text, str) else text.decode())
        except (OSError, ValueError) as error:
            self.failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.failed(error)

    @abstractmethod
    def failed(self, error: Exception) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write to it, past this class
            raise AttributeError(name)
        return getattr(self.stream, name)


class Unheard(_Stream):
    """stderr for a run that goes on when nobody listens: a pipe that broke, a full disk, a terminal that is gone."""

    def failed(self, error: Exception) -> None:
        silence(self.stream)


class Result(_Stream):
    """stdout: where it is full the command has failed, where its reader has gone it has not."""

    def failed(self, error: Exception) -> None:
        silence(self.stream)
        if isinstance(error, BrokenPipeError):
            raise error
        reason = getattr(error, "strerror", None) or error
        raise Unwritable(f"The result can not be written to stdout ({reason}); send it elsewhere.") from error


def silence(stream: TextIO) -> None:
    """Nothing more is written to `stream`, not even at exit, which would end with another code."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reopen_closed() -> None:
    """Where a standard stream is closed, the next file that is opened would take its place and get its output."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)


@contextmanager
def usable() -> Iterator[None]:
    """Streams that any text can be written to, for the scope; stderr may be lost, stdout may not."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nobody, open(os.devnull, encoding="utf-8") as closed:
        stdout, stderr = closed if sys.stdout is None else sys.stdout, nobody if sys.stderr is None else sys.stderr
        for stream in (stdout, stderr):
            if hasattr(stream, "reconfigure"):
                with suppress(OSError):  # what was a file when the stream was opened may be a terminal by now
                    stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = cast(TextIO, Result(stdout)), cast(TextIO, Unheard(stderr))
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


@contextmanager
def aside() -> Iterator[None]:
    """A scope in which stdout gets what is written to `data_stream()` alone, and stderr what anybody's code prints."""
    token = _DATA.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _DATA.reset(token)


def data_stream() -> TextIO:
    """Where the result of a command goes."""
    return _DATA.get() or sys.stdout
