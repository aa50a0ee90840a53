"""A net for people who have no advkit: its graph, and plain state dicts with the normalisation layer and without it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..arguments import checked
from ..data.transforms import to_float
from ..errors import OptionError, named, says
from ..escapes import one_line
from ..evaluation.soundness import BY_BATCH, BY_CALL, one_by_one
from ..explained import calling
from ..generators import repeatable
from ..global_state import one_at_a_time
from ..judging import checked_logits, far_apart
from ..models.base import Normalize
from ..modules import kept_values, mode, placement
from ..own_file import staying
from ..storage.files import delete, make_named, sweep, unwritable, using, write_atomic
from ..storage.lock import RunLock
from ..storage.run_folder import RunFolder
from .documents import document, prose
from .hub import card, config, left_out, not_timms, weights_of
from .records import ExportRecord
from .subject import Subject, subject_of

README = """\
A net trained with advkit, {architecture}.
{graph}
Its weights in three lines, where net is your own definition of the architecture:

    from safetensors.torch import load_file
    weights = load_file("model.safetensors")
    net.load_state_dict(weights)

or with torch.load("model.pt", weights_only=True). model.* expects images in [0, 1]{normalised}

example.safetensors holds the first test images and the logits of this net for them: compare before you trust a
definition of your own, for weights may fit a net of other strides.
"""
NOTES = """
Of this net and its images it is to be known:
{notes}
"""
NORMALISED = """ and normalises them in its first
layer. model-without-normalisation.* lacks that layer{shift}:
give it (x - mean) / std, both per channel in export.json."""
GRAPH = """
With nothing but torch:

    net = torch.export.load("model.pt2").module()
    logits = net(images)  # (B, C, H, W) in [0, 1], any B; differentiable in the images
"""
EXAMPLES = 4
"""Test images whose logits are exported too."""


UNFINISHED, LOCK = ".unfinished", ".lock"
"""Both lie in an export's folder until it is complete: one that was killed may be repeated there."""

FILES = (
    "export.json",
    "README.txt",
    "README.md",
    "config.json",
    "example.safetensors",
    "model.pt2",
    *(f"model{which}.{kind}" for which in ("", "-without-normalisation") for kind in ("safetensors", "pt")),
)


@checked()
@one_at_a_time
def export(
    run: str | Path,
    out: str | Path,
    checkpoint: str | None = None,
    *,
    model: str | nn.Module | None = None,
    dataset: Any = None,
    data_root: str | Path | None = None,
    hub: bool = False,
) -> ExportRecord:
    """Write a run's weights, its graph and how to load them into the new or empty folder `out`; what export.json says.

    `checkpoint` is "best" or "last"; None is best, of standard training last. `model` and `dataset` are given again
    for a run that was trained on objects or on FILE.py:NAME, as to `evaluate`. `hub`: as a repository of the Hugging
    Face Hub, with a model card of what is known of these weights; in timm's form where the net is timm's.
    """
    RunFolder.open(Path(run))
    subject = subject_of(run, checkpoint, model=model, dataset=dataset, data_root=data_root)
    return export_subject(subject, Path(out), hub)


def export_subject(subject: Subject, out: Path, hub: bool = False) -> ExportRecord:
    """As `export`."""
    _refuse_content(out)
    with RunLock(out / LOCK):
        _refuse_content(out)  # of two starters one gets here first
        write_atomic(out / UNFINISHED, b"")
        _remove(out, *FILES)  # what a killed export left may be of another net
        result = _written(subject, out, hub)
        _remove(out, UNFINISHED)
        delete(out / LOCK)  # who makes it anew finds the export complete
    return result


def _written(subject: Subject, out: Path, hub: bool) -> ExportRecord:
    model = subject.model.cpu()
    full = {name: _copy(value) for name, value in model.state_dict().items()}
    bare, shifted = without_normalisation(model)
    means = [layer for layer in model.modules() if isinstance(layer, Normalize)]
    record: dict[str, Any] = {
        "run": subject.name,
        **subject.record,
        "architecture": subject.resolved.model_name,
        "architecture_options": dict(subject.resolved.model_options),
        "data": subject.resolved.data.name,
        "classes": list(subject.splits.train.classes),
        "shape": list(subject.splits.train.shape),
        "mean": means[0].mean.flatten().tolist() if means else None,
        "std": means[0].std.flatten().tolist() if means else None,
        "plugins": list(subject.resolved.chosen),
        "norm": subject.norm,
        "eps": subject.eps,
    }
    images = subject.images("test").images[:EXAMPLES]
    with mode(model, training=False), kept_values(model), torch.no_grad(), staying(), repeatable(0):
        x = to_float(images, placement(model)[1]).contiguous()
        logits = _logits(model, x).contiguous()
        doubt = _doubt(model, x, logits)
        known = None if doubt == BY_CALL else logits
        leading = bool(means) and (known is None or _leading(model, means, x, known))
        graph, record["without_graph"] = _graph(model, x, known)
    if doubt:
        record["notes"] = [*record.get("notes", ()), doubt.replace("verdicts", "logits of example.safetensors")]
    example = {"images": x, "logits": logits}
    write_atomic(out / "example.safetensors", safetensors.torch.save(example))
    if graph:
        write_atomic(out / "model.pt2", graph)
    if hub:
        if said := [*not_timms(subject), *left_out(subject)]:
            record["notes"] = [*record.get("notes", ()), *said]
        result = ExportRecord(**record)
        write_atomic(out / "model.safetensors", safetensors.torch.save(weights_of(subject, full)))
        write_atomic(out / "config.json", document(config(subject, result)))
        write_atomic(out / "README.md", prose(card(subject, result)))
        result.write(out / "export.json")
        return result
    for name, weights in {"model": full, **({"model-without-normalisation": bare} if leading else {})}.items():
        write_atomic(out / f"{name}.safetensors", safetensors.torch.save(weights))
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        write_atomic(out / f"{name}.pt", buffer.getvalue())
    shift = ", and the names of the others count one less" if shifted else ""
    normalised = NORMALISED.format(shift=shift) if leading else "."
    text = README.format(architecture=subject.resolved.net, normalised=normalised, graph=GRAPH if graph else "")
    if notes := record.get("notes"):
        text += NOTES.format(notes="\n".join(f"- {one_line(note)}." for note in notes))
    write_atomic(out / "README.txt", prose(text))
    result = ExportRecord(**record)
    result.write(out / "export.json")
    return result


def _refuse_content(out: Path) -> None:
    """A folder that holds nothing, or what a killed export left, marked as unfinished."""
    make_named(out)
    try:
        sweep(out)
        if {entry.name for entry in out.iterdir()} - {LOCK} and not (out / UNFINISHED).is_file():
            raise OptionError(f"{out} holds files already; choose another {named('--out')}.")
    except OSError as error:
        raise unwritable(out, error, f"choose another {named('--out')}", "used") from None


def _remove(out: Path, *names: str) -> None:
    for name in names:
        with using(out / name):
            (out / name).unlink(missing_ok=True)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with calling(x.shape):
        return checked_logits(model(x), len(x))


def _doubt(model: nn.Module, x: Tensor, logits: Tensor) -> str:
    """Whether these logits of images x depend on more than their image, as a sentence; "" where they do not."""
    if far_apart(logits, _logits(model, x)):
        return BY_CALL
    alone = one_by_one(lambda images: _logits(model, images), x, torch.arange(len(x)))
    return BY_BATCH if far_apart(logits, alone) else ""


def _leading(model: nn.Module, layers: Sequence[Normalize], x: Tensor, logits: Tensor) -> bool:
    """Whether the net without its layers of normalisation gives the logits of x for images that are normalised."""
    with ExitStack() as scope:
        for layer in layers:
            scope.callback(layer.register_forward_hook(lambda _, given, __: given[0]).remove)
        try:
            with calling(x.shape):
                normalised = (x - layers[0].mean) / layers[0].std
            return not far_apart(logits, _logits(model, normalised))
        except OptionError:
            return False


def _graph(model: nn.Module, x: Tensor, logits: Tensor | None) -> tuple[bytes | None, str | None]:
    """What torch.export makes of the net, for any number of images; else None and why not.

    Read back it has to give the `logits` of x, where these are the same whenever they are asked for.
    """
    buffer = io.BytesIO()
    try:
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)), buffer)
        buffer.seek(0)
        if logits is not None and far_apart(logits, torch.export.load(buffer).module()(x)):
            return None, "what it traces gives other logits"
    except Exception as error:  # whatever a third party's net does that can not be traced
        return None, (next(iter(says(error).splitlines()), "") or type(error).__name__)[:200]
    return buffer.getvalue(), None


def without_normalisation(model: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """The state dict without that of Normalize, and whether the rest was numbered anew.

    It is where Normalize leads an nn.Sequential, so that it fits `model[1:]`.
    """
    gone = tuple(f"{name}." for name, layer in model.named_modules() if isinstance(layer, Normalize))
    kept = {n: _copy(v) for n, v in model.state_dict().items() if not (gone and n.startswith(gone))}
    if not (isinstance(model, nn.Sequential) and gone == ("0.",)):
        return kept, False
    renamed = {}
    for name, value in kept.items():
        number, _, rest = name.partition(".")
        renamed[f"{int(number) - 1}.{rest}"] = value
    return renamed, True


def _copy(value: Tensor) -> Tensor:
    """Its own memory: safetensors takes no two names for one tensor."""
    return value.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
