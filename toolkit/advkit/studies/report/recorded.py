"""The analyses in a run's folder: the record and the picture of each, or a sentence where one can not be read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ...errors import OptionError
from ...storage.files import entries, there
from ..documents import content
from ..records import AnalysisRecord

ANALYSES = ("vulnerability", "margin", "landscape", "budget")
LARGE = 256 << 10  # bytes; of a vector picture beyond it the pixels are taken
PICTURES = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Analysis:
    """RUN/analysis/NAME.json with its picture; whatever could not be read is a sentence in `problems`."""

    name: str
    record: AnalysisRecord
    picture: tuple[str, bytes] | None
    """Media type and content."""
    problems: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What the record, or else the file's name, says it is: "landscape-iseat-7" is a landscape."""
        return (self.record.analysis or self.name).partition("-")[0]


def recorded(folder: Path) -> list[Analysis]:
    """The analyses in a folder by file name, each with the vector picture where there are two."""
    kinds = {".json", *(f".{kind}" for kind in PICTURES)}
    names = {file.stem for file in entries(folder) if file.suffix in kinds}
    return [each for name in sorted(names) if (each := _analysis(folder, name)).kind in ANALYSES]


def _analysis(folder: Path, name: str) -> Analysis:
    record, problems = AnalysisRecord(), list[str]()
    try:
        record = AnalysisRecord.read(folder / f"{name}.json")
    except OptionError as error:
        problems.append(str(error))
    pictures = [(kind, folder / f"{name}.{suffix}") for suffix, kind in PICTURES.items()]
    found = sorted(
        (file.stat().st_size > LARGE, place, kind, file)
        for place, (kind, file) in enumerate(pictures)
        if there(file) and file.is_file()
    )
    picture = None
    if found:
        *_, kind, file = found[0]
        try:
            picture = (kind, content(file))
        except OptionError as error:
            problems.append(str(error))
        if picture and record.pictures is not None and sha256(picture[1]).hexdigest() not in record.pictures.values():
            picture = None
            problems.append(f"The picture {file} is not of its analysis, {name}.json; make that again.")
    elif not problems:
        problems.append(f"The analysis {name} has no picture; pip install 'advkit[plot]', and make it again.")
    return Analysis(name, record, picture, tuple(problems))
