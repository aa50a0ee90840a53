"""The page: sections in order, one style sheet, and nothing from anywhere else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from mimetypes import guess_type
from pathlib import Path

from ... import __version__
from ...arguments import checked
from ...data.base import Splits
from ...errors import AdvkitError, CheckpointError, OptionError, named
from ...global_state import one_at_a_time
from ...own_file import OwnFile
from ...reading import opened
from ...storage.files import unwritable, write_atomic
from ...storage.run_folder import RunFolder
from ...training.parts import data_of
from ...training.same_run import files_of_several
from . import sections
from .analyses import analyses
from .comparison import comparison
from .markup import Html, join, listing, section, tag
from .samples import SHOWN
from .sources import Source
from .verdict import verdict

# The browser itself refuses whatever would be fetched or run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Page:
    """A finished page, and what it lacks."""

    html: str
    sections: tuple[str, ...]
    """The ids of its sections, in order."""
    doubts: tuple[str, ...] = ()
    """What in a run's folder is otherwise than its newest checkpoint says, in sentences."""
    without_pictures: tuple[str, ...] = ()
    """Why it lacks pictures, and how they are made: a sentence each."""


@checked()
@one_at_a_time
def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    samples: int = SHOWN,
    *,
    data_root: str | Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
) -> Page:
    """The report of one or more run folders as one page, written to the file `out` where one is named.

    For the sample pictures: where data lies now, and the FILE.py:NAME of runs whose net or data came from one.

    What has not been made yet, such as an evaluation, is named with the command that makes it. Raises
    CheckpointError for a folder that is no run or is damaged and for a full disk, OptionError where `out` can not be
    written else.
    """
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    own = (model, dataset) != (None, None)
    files = files_of_several([RunFolder.open(Path(run)) for run in folders], model, dataset) if own else {}
    page = partial(build, folders, samples, data_root, files)
    return page() if out is None else written(Path(out), page)


def written(path: Path, make: Callable[[], Page], typed: bool = True) -> Page:
    """The page that is made, in a file; CheckpointError in place of OptionError where nobody `typed` its path."""
    is_folder = os.path.isdir(path)  # unlike Path's, false for what no disk could hold
    if is_folder or not os.path.isdir(path.absolute().parent):
        reason = "it is a folder" if is_folder else "its folder does not exist"
        raise _unwritable(path, OSError(errno.EISDIR, reason), typed)
    if guess_type(path.name)[0] not in (None, "text/html"):
        other = named("--out", str(path.with_suffix(".html")))
        raise OptionError(f"A report is a page of HTML, and {path.name} is no name of one; give {other}.")
    page = make()
    _refuse_other(path, typed)
    try:
        write_atomic(path, page.html.encode("utf-8"))
    except CheckpointError as error:
        raise _unwritable(path, error, typed) from None
    return page


def build(
    runs: Sequence[str | Path],
    samples: int = SHOWN,
    root: str | Path | None = None,
    files: Mapping[str, OwnFile] | None = None,
) -> Page:
    """The report of one or more run folders, with `samples` test images each; the same folders give the same page.

    Raises CheckpointError for a folder that is no run or is damaged. Whatever else is missing, such as evaluations,
    images or a plugin that is not installed, is said in its section.
    """
    twice = next((path for place, path in enumerate(runs) if _same(path, runs[:place])), None)
    if not runs or twice is not None:
        raise OptionError(f"{twice} is named twice; name each run once." if runs else "Name one or more runs.")
    sources = [Source(place, str(path), files or {}) for place, path in enumerate(runs, 1)]
    known: dict[tuple[object, ...], Splits] = {}

    def data(source: Source) -> Splits:
        if source.resolved is None:
            raise CheckpointError(source.unresolved)
        settings = source.resolved.data
        key = (settings.name, settings.root, settings.limit, settings.balance, settings.size)
        if key not in known:
            known[key] = data_of(source.resolved, root)
        return known[key]

    parts: list[tuple[str, str, Html]] = []
    listed: list[tuple[str, str, list[tuple[str, str]]]] = []
    for source in sources:
        inner = [
            ("settings", "Settings and plan", sections.settings(source)),
            ("curves", "Curves", sections.curves(source)),
            ("evaluations", "Evaluations", sections.evaluations(source)),
            ("audit", "Audit", sections.audit(source)),
            ("analyses", "Analyses", analyses(source)),
            *([("samples", "Sample pictures", sections.samples(source, data, samples))] if samples else []),
            ("environment", "Environment", sections.environment(source)),
        ]
        content = [section(f"{source.key}-{key}", heading, 3, body) for key, heading, body in inner]
        where = tag("p", tag("code", source.path), class_="where")
        title = f"Run {source.title}"
        doubted = [sections.caution(f"{sentence}.") for sentence in source.doubts]
        parts.append((source.key, title, section(source.key, title, 2, where, *doubted, verdict(source), *content)))
        listed.append((source.key, title, [(f"{source.key}-{key}", heading) for key, heading, _ in inner]))
    if len(sources) > 1:  # after the runs: it knows their data once their checkpoints have been read
        parts.insert(0, ("comparison", "Comparison", comparison(sources)))
        listed.insert(0, ("comparison", "Comparison", []))
    html = _document(sources, listed, [body for *_, body in parts])
    without = (f"{source.path}: {said}" for source in sources for said in source.without_pictures)
    doubts = (f"{sentence}." for source in sources for sentence in source.doubts)
    return Page(html, _ids(listed), tuple(doubts), tuple(without))


def _same(path: str | Path, earlier: Sequence[str | Path]) -> bool:
    return any(os.path.realpath(path) == os.path.realpath(other) for other in earlier)


def _ids(listed: Sequence[tuple[str, str, list[tuple[str, str]]]]) -> tuple[str, ...]:
    return tuple(key for outer, _, inner in listed for key in (outer, *(name for name, _ in inner)))


def _document(
    sources: Sequence[Source], listed: Sequence[tuple[str, str, list[tuple[str, str]]]], bodies: Sequence[Html]
) -> str:
    title = sources[0].name if len(sources) == 1 else f"{len(sources)} runs"
    contents = listing(
        join([tag("a", heading, href=f"#{key}"), _links(inner) if inner else None]) for key, heading, inner in listed
    )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"advkit {__version__}"),
        tag("title", f"advkit report: {title}"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#report", class_="skip"),
        tag("header", tag("h1", f"advkit report: {title}")),
        tag("nav", contents, aria_label="Contents"),
        tag("main", *bodies, id="report", tabindex=-1),
        tag("footer", tag("p", f"Made by advkit {__version__}. Nothing here is loaded from elsewhere.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _unwritable(path: Path, error: OSError | CheckpointError, typed: bool) -> AdvkitError:
    out = named("--out")
    what, advice = (f"{out} {path}", "name another file") if typed else (path, f"name one that can with {out}")
    return unwritable(what, error, advice, typed=typed)


def _refuse_other(path: Path, typed: bool) -> None:
    """Only an older report is replaced: not a file of a run, anybody's page or a device."""
    try:
        with opened(path) as file:
            head = file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error, typed) from None
    if head and not (head.startswith(b"<!doctype html>") and b'content="advkit ' in head):
        raise OptionError(f"{named('--out')} {path} is there and is no report of advkit; name another file.")


def _links(inner: Sequence[tuple[str, str]]) -> Html:
    return listing(tag("a", heading, href=f"#{key}") for key, heading in inner)
