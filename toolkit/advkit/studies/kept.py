"""Evaluations of a run as its folder holds them: believed where their figures are those of the verdicts beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isclose
from pathlib import Path
from typing import Any

from ..errors import OptionError, named
from ..evaluation.statistics import wilson
from ..storage.files import entries, there
from ..training.validation import judged_on
from .documents import content, members, number
from .records import Accuracy, Evaluation, read_or_told


def kept(run: Path) -> dict[str, Evaluation | str]:
    """The evaluations of a run by their folder in `evaluations`, most images first.

    A sentence where one is damaged, or where its verdicts by image say otherwise than its figures. Raises
    CheckpointError where nobody may look.
    """
    found: dict[str, Evaluation | str] = {}
    places = (place for home in entries(run / "evaluations") for place in entries(home))
    for file in (file for place in places if there(file := place / "evaluation.json")):
        read = read_or_told(file, Evaluation)
        verdicts = file.with_name("verdicts.csv")
        if isinstance(read, Evaluation) and there(verdicts):
            try:
                withstood(verdicts, read)
            except OptionError as error:
                read = str(error)
        found[f"{file.parent.parent.name}/{file.parent.name}"] = read
    return dict(sorted(found.items(), key=lambda item: -item[1].n if isinstance(item[1], Evaluation) else 0))


def split_of(run: Path, name: str, judged: Evaluation) -> str:
    """SHA-256 of the split that an evaluation of that name is of; "" where nothing tells."""
    if judged.sha256_of_split:
        return judged.sha256_of_split
    with suppress(OptionError):  # of before: beside it
        return str(members(run / "evaluations" / name.partition("/")[0] / "identity.json").get("data") or "")
    return ""


def most_telling(judged: Iterable[Evaluation], norm: object, eps: object) -> list[Evaluation]:
    """First what says most of a run of that threat: of test images, of that threat, with AutoAttack, of the most, the
    worst.

    Evaluations without an attack come last.
    """

    def rank(one: Evaluation) -> tuple[bool, bool, bool, bool, int, float]:
        strong = any(row.is_autoattack for row in one.attacks)
        worst = min((each.accuracy for each in one.worst.values()), default=1.0)
        return not one.worst, one.split not in (None, "test"), not is_of(one, norm, eps), not strong, -one.n, worst

    return sorted(judged, key=rank)


def is_of(one: Evaluation, norm: object, eps: object) -> bool:
    """Whether an evaluation is of that norm and radius."""
    return one.norm == norm and isclose(one.eps or 0.0, eps if isinstance(eps, int | float) else -1.0, rel_tol=1e-6)


def withstood(file: Path, result: Evaluation) -> dict[str, list[bool]]:
    """verdicts.csv beside an evaluation: by column, which images withstood.

    Raises OptionError where the evaluation's figures are not theirs.
    """
    try:
        head, *rows = csv.reader(content(file).decode().splitlines())
        columns = dict(zip(head, zip(*rows, strict=True), strict=True))
        robust = {
            name: [{"0": False, "1": True}[cell] for cell in cells]
            for name, cells in columns.items()
            if name not in ("index", "label")
        }
        fits = all(_fits(figure, verdicts, result.n) for figure, verdicts in _figures(result, robust))
        whole = {"n": result.n, **shares(result)}
        fits &= all(whole.get(key, told) == told for key, told in (result.robustbench or {}).items())
    except (ValueError, KeyError, csv.Error):
        fits = False
    if not fits:
        raise OptionError(f"{file} does not fit its evaluation.json; make both again with {named('--fresh')}.")
    return robust


def _figures(result: Evaluation, robust: Mapping[str, list[bool]]) -> Iterator[tuple[Accuracy, Sequence[bool]]]:
    """Every accuracy of an evaluation, with the verdicts by image that it is of."""
    mine = [(row, robust[row.column or row.name]) for row in result.attacks]
    yield from mine
    clean = [verdicts for row, verdicts in mine if row.name == "clean"]
    for norm, worst in (*result.worst.items(), *([(result.norm, result.worst_case)] if result.worst_case else [])):
        attacked = result.attacked(norm)
        own = [verdicts for row, verdicts in mine if row in attacked]
        yield worst, [all(each) for each in zip(*own, *clean, strict=True)]


def _fits(figure: Accuracy, verdicts: Sequence[bool], n: int) -> bool:
    count = sum(verdicts)
    expected = (count / n, *wilson(count, n))
    told = (figure.accuracy, *figure.interval)
    return len(verdicts) == n and all(abs(a - b) < 1e-9 for a, b in zip(told, expected, strict=True))


def validated_on(history: Sequence[Mapping[str, Any]], settings: Mapping[str, object]) -> str:
    """The images of a run's validations, in words; "" where nothing tells."""
    share = number(settings.get("validation.fraction"))
    for found in (row.get("validation") for row in reversed(history)):
        n = number(found.get("n")) if isinstance(found, dict) else None
        if n is not None and share is not None:
            return judged_on(str(found.get("split")), int(n), share)
    return ""


def net_named(settings: Mapping[str, object]) -> str:
    """As `Resolved.net`, of settings by name."""
    return ":".join(str(each) for key in ("model.name", "model.architecture") if (each := settings.get(key)))


def shares(result: Mapping[str, Any] | Evaluation) -> dict[str, str | None]:
    """Accuracies in percent under the field names of RobustBench's model_info; the newest of attacks of one name."""
    ours = [row for row in reversed(result["attacks"]) if row.get("code") is None]
    accuracy = {row["name"]: f"{100 * row['accuracy']:.2f}" for row in ours}
    worst = result.get("worst_case")
    return {
        "clean_acc": accuracy.get("clean"),
        "reported": f"{100 * worst['accuracy']:.2f}" if worst else None,
        "autoattack_acc": accuracy.get("autoattack"),
    }
