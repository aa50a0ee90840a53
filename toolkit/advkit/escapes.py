"""Text of others as it can be shown and written: a terminal obeys none of it, and a page takes none for its own."""

from __future__ import annotations


def escaped(text: str) -> str:
    """`text` with everything that can not be printed spelled out, terminal escapes above all; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """`text` with the ends of its lines spelled out, too."""
    return escaped(text).replace("\n", "\\n")
