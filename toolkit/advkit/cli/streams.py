"""stdout and stderr as they may be: closed, full, ASCII only, or a terminal that obeys what a folder is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def escaped(text: str) -> str:
    """`text` with everything that can not be printed spelled out, terminal escapes above all; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


class Unheard:
    """stderr for a run that goes on when nobody listens: a pipe that broke, a full disk, a terminal that is gone."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            silence(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


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
    with open(os.devnull, "w", encoding="utf-8") as nobody:
        stdout, stderr = (nobody if stream is None else stream for stream in before)
        for stream in (stdout, stderr):
            if hasattr(stream, "reconfigure"):
                with suppress(OSError):  # what was a file when the stream was opened may be a terminal by now
                    stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = stdout, cast(TextIO, Unheard(stderr))
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
