"""What every result of a run has to say, in its environment.json."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..storage import files
from ..storage.run_folder import RunFolder

CHOSEN_ON_TEST = "The checkpoint was chosen on the test split: figures on it are optimistic"


def noted(folder: RunFolder) -> list[str]:
    """Sentences of its start, and of resumes since."""
    notes = (folder.environment() or {}).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def note(folder: RunFolder, said: Sequence[str]) -> None:
    """Add what is not there yet. The caller holds the lock; a file that is lost or damaged stays so (resumes tell)."""
    before, known = noted(folder), folder.environment()
    if known is not None and (new := [sentence for sentence in said if sentence not in before]):
        text = json.dumps(known | {"notes": before + new}, indent=2) + "\n"
        files.write_atomic(folder.path / "environment.json", text.encode())
