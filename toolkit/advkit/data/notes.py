"""What a user should know of pictures to train on: which files were left out, and which were read in another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image


@dataclass(frozen=True)
class Notes:
    """Counted while the files below `root` are listed, split and decoded."""

    root: Path
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures, by suffix."""
    ways: Counter[str] = field(default_factory=Counter)
    """Files of a zip whose names are ways through it, by how they begin."""
    twice: Counter[str] = field(default_factory=Counter)
    """Names that a zip has more than once, by folder."""
    outside: Counter[str] = field(default_factory=Counter)
    """Pictures beside the class folders that are read, by the folder they lie in."""
    odd: Counter[str] = field(default_factory=Counter)
    """Pictures, by what `odd` tells."""

    def sentences(self) -> tuple[str, ...]:
        """One for each sort."""
        said = (
            _left(self.others, "files are no pictures and are left out"),
            _left(self.ways, "files have names that are absolute or lead through . or .. and are left out"),
            _left(self.twice, "files come again under the same name in the zip, and the last of each is taken"),
            _left(self.outside, "pictures lie beside the class folders that are read and are left out"),
            *(f"{count} {'picture' if count == 1 else 'pictures'} {what}" for what, count in self.odd.items()),
        )
        return tuple(f"{self.root}: {sentence}" for sentence in said if sentence)


def _left(counts: Mapping[str, int], what: str) -> str:
    listed = ", ".join(f"{count} {where}" for where, count in Counter(counts).most_common(4))
    return f"{sum(counts.values())} {what} ({listed})" if counts else ""


def hidden(name: str) -> bool:
    """Whether a file or a folder on the way to it is hidden, or what macOS puts into zips."""
    return any((part[:1] == "." and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def way(name: str) -> str:
    """What makes the name of a zip's member a way, such as `../` in it or `/` at its beginning; "" for a plain one."""
    if name.startswith("/"):
        return "/"
    return next((f"{part}/" for part in ("..", ".") if part in name.split("/")), "")


def odd(image: Image.Image) -> Iterator[str]:
    """What a viewer shows otherwise than its pixels are stored."""
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        yield "with transparent pixels, taken in the colours that are stored there"
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
        yield "with an EXIF orientation, taken as stored and not turned"
