"""HTML from Python: whatever is not `Html` already is text, and escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup that may go into the page as it is."""

    __slots__ = ()


VOID = frozenset({"img", "meta", "link"})


def text(value: object) -> Html:
    """Any value as text. What can not be printed, controls and direction overrides included, is spelled out."""
    if isinstance(value, Html):
        return value
    plain = str(value)
    if not plain.isprintable():
        plain = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in plain)
    return Html(html.escape(plain))


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other; None is nothing."""
    return Html("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """`tag("a", "x < y", class_="k", aria_label="l")`. True is a bare attribute; None and False are left out."""
    written = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    head = f"<{name}{''.join(written)}>"
    return Html(head if name in VOID else f"{head}{join(content)}</{name}>")


def paragraph(*content: object, kind: str | None = None) -> Html:
    """A paragraph; `kind` "missing" or "caution" sets it off."""
    return tag("p", *content, class_=kind)


def sentences(text_with_code: str) -> Html:
    """Plain text in which `words` between backticks are code, as in advkit's messages."""
    parts = text_with_code.split("`")
    if len(parts) % 2 == 0:  # a backtick that is no quotation
        return text(text_with_code)
    return join(tag("code", part) if number % 2 else part for number, part in enumerate(parts))


def listing(items: Iterable[object], **attributes: object) -> Html:
    """An unordered list."""
    return tag("ul", *(tag("li", item) for item in items), **attributes)


def details(summary: object, *content: object, kind: str | None = None) -> Html:
    """What is long: closed on the screen, open on paper, or left out there if it is of the kind "defaults"."""
    return tag("details", tag("summary", summary), *content, class_=kind)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names its rows. A column that starts with ">" is of numbers."""
    kinds = ["n" if column.startswith(">") else None for column in columns]
    head = tag(
        "tr",
        *(tag("th", c.removeprefix(">"), scope="col", class_=kind) for c, kind in zip(columns, kinds, strict=True)),
    )
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=kinds[0]),
            *(tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    content = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    # The box scrolls where the page is narrow, so the keyboard must reach it.
    return tag("div", content, class_="scroll", role="group", aria_label=caption, tabindex=0)


def section(key: str, heading: str, level: int, *content: object) -> Html:
    """A landmark with its heading."""
    head = tag(f"h{level}", heading, id=f"{key}-h")
    return Html("\n" + tag("section", head, *content, id=key, aria_labelledby=f"{key}-h"))


def figure(value: object, digits: int = 4) -> str:
    """A setting or measured number as a short text; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, (list, tuple)):
        inner = (
            f"[{figure(each, digits)}]" if isinstance(each, (list, tuple)) else figure(each, digits) for each in value
        )
        return ", ".join(inner) or "none"
    return str(value)


def share(value: float | None) -> str:
    """An accuracy, three decimals as the command line prints it."""
    return "–" if value is None else f"{value:.3f}"


def span(interval: Sequence[float] | None) -> str:
    """0.707 to 0.789"""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
