"""`advkit data`: which data sets there are, and getting the files of one."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .evaluate import BATCH_SIZE, CHECKPOINT, DATA_ROOT, checked, own_options
from .main import PLACE, echo, print_json


@click.group("data")
def command() -> None:
    """List data sets, or get the files of one."""


@command.command("list")
@click.option("--data-root", metavar="DIR", help="Where to look for files; ADVKIT_DATA or the user's cache by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(data_root: str | None, as_json: bool) -> None:
    """Installed data sets, and whether their files are here (not whether they are intact)."""
    from .. import registry
    from ..data.vision import default_root

    root = _absolute(data_root) if data_root else default_root()
    installed = [one.as_dict() | _facts(one.literals, root) for one in registry.describe("data set")]
    for dataset in installed:
        del dataset["hooks"]
    if as_json:
        print_json(installed)
        return
    from .display import stdout, table_of, text

    table = table_of("data set", "classes", "shape", "train + test", "files", "summary", wrap=("summary",))
    here = {True: "present", False: "absent", None: ""}
    for dataset in installed:
        shape, images = dataset["shape"], dataset["images"]
        cells = (
            dataset["name"],
            dataset["classes"] or "",
            "x".join(str(size) for size in shape) if isinstance(shape, list) else "",
            " + ".join(f"{count:,}" for count in images) if isinstance(images, list) else "",
            here[dataset["present"]],  # type: ignore[index]
            dataset["summary"] if dataset["summary"] is not None else "(no source to read)",
        )
        table.add_row(*(str(cell) for cell in cells))
    console = stdout()
    console.print(table)
    console.print(text(f"Files are looked for in {root}; `advkit data prepare NAME` gets those of a data set."))


@command.command("prepare")
@click.argument("name")
@click.option("--data-root", metavar="DIR", help="Where to put them; ADVKIT_DATA or the user's cache by default.")
@click.option("--from", "given", metavar="PATH", help="Take them from a file, folder or archive, without a network.")
@click.option(
    "--hold-out",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="mapped: the share of an npz held out for testing; 0, the default, for images used only in training.",
)
def prepare(name: str, data_root: str | None, given: str | None, hold_out: float) -> None:
    """Get the files of a data set, from local copies or by download; files that are intact stay.

    `mapped` makes a new folder of memory-mapped images, from an npz with the arrays image and label (or a folder of
    several), from RST's pickle of pseudo-labelled ones, from class folders, or from a data set by its name.

    \b
    advkit data prepare cifar10
    advkit data prepare cifar10 --from cifar-10-python.tar.gz
    advkit data prepare fashion-mnist --from FOLDER_WITH_FOUR_GZ
    advkit data prepare mapped --from 1m.npz --data-root generated
    """
    from .. import registry
    from ..data import prepare as preparing
    from ..data.mapped import Mapped
    from ..data.vision import TorchvisionSource, default_root
    from ..errors import OptionError

    if name == Mapped.name:
        _map(given, data_root, hold_out)
        return
    if hold_out:
        raise OptionError(f"--hold-out is for `advkit data prepare mapped`; {name} has test images, so drop it.")
    source: Any = registry.load("data set", name)
    if not issubclass(source, TorchvisionSource):
        raise OptionError(f"{name} has no files to prepare; `advkit data list` shows which data sets have.")
    root = _absolute(data_root) if data_root else default_root()
    put = preparing.prepare(source(), root, _absolute(given) if given else None)
    where = f" --data-root {shlex.quote(str(root))}" if data_root else ""
    echo(f"{name} {'is' if put else 'was already'} in {root}.")
    echo(f"Next: advkit train --dataset {name}{where}")


def _map(given: str | None, data_root: str | None, hold_out: float) -> None:
    from ..data.convert import convert
    from ..errors import OptionError

    if given is None or data_root is None:
        raise OptionError(
            "mapped makes a new folder of images: say of what with --from PATH, and name it with --data-root DIR."
        )
    folder = _absolute(data_root)
    manifest = convert(given, folder, hold_out, echo)
    counts = " and ".join(f"{one.shape[0]:,} images to {split} on" for split, one in manifest.splits.items())
    echo(f"{folder} holds {counts}, of {len(manifest.classes)} classes.")
    if "test" in manifest.splits:
        echo(f"Next: advkit train --dataset mapped --data-root {shlex.quote(str(folder))}")


@command.command("pseudo-label")
@click.argument("data", metavar="DATA")
@click.option("--with", "run", required=True, metavar="RUN", type=PLACE, help="The run whose net gives the labels.")
@click.option("--out", required=True, metavar="DIR", help="The new folder of mapped images.")
@CHECKPOINT
@own_options
@DATA_ROOT
@BATCH_SIZE
def pseudo_label(data: str, run: str, out: str, **typed: Any) -> None:
    """Label every image of DATA with the class that the net of a run predicts, as robust self-training does.

    DATA is an npz, a folder of several, a pickle of RST, a folder of mapped images, or the name of a data set, of which
    the training images are taken. Existing labels are ignored: all images get new ones. The new folder records the
    run that gave them.

    \b
    advkit data pseudo-label generated.npz --with runs/standard --out extra
    """
    from ..studies.pseudo_labels import pseudo_label as label

    folder = _absolute(out)
    manifest = label(data, run, folder, **checked(typed), tell=echo)
    count = manifest.splits["train"].shape[0]
    echo(f"{folder} holds {count:,} images of {len(manifest.classes)} classes. {_labelled_by(manifest.labelled_by)}")
    extra = f"-o extra-data.root={shlex.quote(str(folder))} -o extra-data.share=0.5"
    echo(f"Next, with the data set of the run as NAME: advkit train --dataset NAME --plugins trades,extra-data {extra}")


def _labelled_by(record: Mapping[str, object]) -> str:
    """A sentence on the net whose answers the labels are; "" where they are no net's."""
    told = f"{record.get('run')} (checkpoint {record.get('checkpoint')}, weights {record.get('sha256_of_weights')})"
    noted = record.get("notes")
    notes = [str(one) for one in (*(noted if isinstance(noted, list) else ()), record.get("doubt")) if one]
    return f"Their labels are those of {told}.{''.join(f' Note: {note}.' for note in notes)}" if record else ""


@command.command("check")
@click.argument("folder", type=PLACE)
def check(folder: str) -> None:
    """Read a folder of mapped images through, and compare it with its recorded fingerprint."""
    from ..data.mapped import check as through

    manifest = through(_absolute(folder))
    counts = " + ".join(f"{one.shape[0]:,}" for one in manifest.splits.values())
    told = f"{_absolute(folder)} is intact: {counts} images are those that were stored."
    echo(" ".join(filter(None, (told, _labelled_by(manifest.labelled_by)))))


def _absolute(path: str) -> Path:
    return Path(os.path.expanduser(path)).absolute()


def _facts(literals: Mapping[str, object], root: Path) -> dict[str, object]:
    """What the class of a data set says about its images, read and not imported; nulls where it says nothing."""
    files = literals.get("files")
    named = [file for file in files if isinstance(file, str)] if isinstance(files, dict | list | tuple) else []
    return {
        "classes": classes if isinstance(classes := literals.get("classes"), int) else None,
        "shape": _list(literals.get("shape")),
        "images": _list(literals.get("images")),
        "root": str(root) if named else None,
        "present": _present([root / file for file in named]) if named else None,
    }


def _present(files: Sequence[Path]) -> bool | None:
    """Whether all are there; None where nobody may look."""
    try:
        return all(stat.S_ISREG(os.stat(file).st_mode) for file in files)
    except PermissionError:
        return None
    except OSError:
        return False


def _list(value: object) -> list[int] | None:
    numbers = list(value) if isinstance(value, list | tuple) else []
    return numbers if numbers and all(isinstance(number, int) for number in numbers) else None
