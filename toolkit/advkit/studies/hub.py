"""A net for the Hugging Face Hub: config.json and a model card beside its weights; nets of timm are in its form."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from .. import __version__
from ..compose.replaced import without_plugins
from ..config import runfile
from ..escapes import one_line
from ..models.elsewhere import untagged
from ..own_file import words
from ..storage.files import there
from ..storage.run_folder import RunFolder
from .kept import is_of, kept, most_telling, split_of
from .records import AuditRecord, Evaluation, ExportRecord, Judged, read_or_told
from .subject import Subject

CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
tags:
{tags}
---

# {name}

`{net}` for {count} classes of `{data}`, {shape}, trained with advkit {version} ({plugins}) {against}.
It takes images in [0, 1]{normalised}. {licence}

## What it withstands

{accuracies}

## Whether that can be believed

{audit}

## Use

```python
{use}
```

`example.safetensors` has images and the logits of the trained net for them: compare before you trust what was loaded.
{notes}
## How it was trained

`{train}` with this run file:

```toml
{settings}
```
"""
LICENCE = "No licence is stated: whoever publishes it adds one to the block above."
GRAPH = """\
import torch

net = torch.export.load("model.pt2").module()
logits = net(images)  # (B, C, H, W) in [0, 1]"""
TIMM = """\
import timm, torch

net = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
mean, std = (torch.tensor(net.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
logits = net((images - mean) / std)  # (B, C, H, W) in [0, 1]"""
WEIGHTS = """\
from safetensors.torch import load_file

net.load_state_dict(load_file("model.safetensors"))  # net: your own definition of the architecture"""


def is_timms(subject: Subject) -> bool:
    """Whether timm alone makes the net of it: nothing but a normalisation before, whose numbers config.json has."""
    return subject.resolved.model_name == "timm" and not not_timms(subject)


def not_timms(subject: Subject) -> list[str]:
    """Why a net of timm is not in timm's form."""
    if subject.resolved.model_name != "timm":
        return []
    before = {
        "resizes images (model.resize)": subject.resolved.model_options["resize"],
        "takes gray images as colour": subject.splits.train.shape[0] == 1,
    }
    return [f"timm does not load it, for it {what}, which timm's form can not say" for what, so in before.items() if so]


def weights_of(subject: Subject, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names that whoever loads them expects."""
    return {name.removeprefix("net.") if is_timms(subject) else name: value for name, value in weights.items()}


def config(subject: Subject, record: ExportRecord) -> dict[str, Any]:
    """config.json."""
    common = {"num_classes": len(record.classes), "label_names": record.classes}
    statistics: dict[str, Any] = {"input_size": record.shape, "mean": record.mean, "std": record.std}
    if not is_timms(subject):
        options = {"architecture": record.architecture, "architecture_options": record.architecture_options}
        return {"library": f"advkit {__version__}", **options, **common, **statistics}
    net = cast(Any, cast(nn.Sequential, subject.model)[-1])
    if record.mean is None:  # timm has numbers where nothing is normalised, too
        statistics |= {"mean": [0.0] * record.shape[0], "std": [1.0] * record.shape[0]}
    fixed = bool(net.pretrained_cfg.get("fixed_input_size"))
    return {
        "architecture": untagged(record.architecture_options)["architecture"],  # the weights are the tag's no longer
        "num_classes": len(record.classes),
        "num_features": net.num_features,
        "model_args": {"in_chans": record.shape[0], **({"img_size": record.shape[1:]} if fixed else {})},
        "pretrained_cfg": {
            **{key: net.pretrained_cfg[key] for key in ("first_conv", "classifier") if net.pretrained_cfg.get(key)},
            **common,
            **statistics,
            "fixed_input_size": fixed,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        },
    }


def left_out(subject: Subject) -> list[str]:
    """Which evaluations and which audit of the run no card repeats, and why."""
    said = []
    evaluations = {f"evaluations/{name}": found for name, found in kept(Path(subject.name)).items()}
    for name, found in {**evaluations, "audit.json": _audit(subject)}.items():
        if isinstance(found, str):
            said.append(f"What can not be believed is left out: {found.removesuffix('.')}")
        elif found is not None and _of_these_weights(found, subject) and (apart := _apart(found, subject)):
            said.append(f"{name} is left out, for it is of these weights {apart}")
    return said


def _audit(subject: Subject) -> AuditRecord | str | None:
    file = Path(subject.name) / "audit.json"
    return read_or_told(file, AuditRecord) if there(file) else None


def _of_these_weights(found: Judged, subject: Subject) -> bool:
    return bool(found.sha256_of_weights == subject.record["sha256_of_weights"])


def _apart(found: Judged, subject: Subject) -> str:
    """How its net is another than the one that is exported, or the images of an audit are; "" where they are not."""
    if found.another_net != subject.record.get("another_net", []):
        return f"in another net: {'; '.join(found.another_net) or 'that of the run, which this is not'}"
    test = isinstance(found, AuditRecord) and found.split == "test"
    other = test and found.sha256_of_split not in (None, subject.splits.test.fingerprint())
    return "on other test images" if other else ""


def _fits(found: Judged, subject: Subject) -> bool:
    return _of_these_weights(found, subject) and not _apart(found, subject)


def card(subject: Subject, record: ExportRecord) -> str:
    """README.md: what is known of exactly these weights, and what is not known yet."""
    timms = is_timms(subject)
    run = Path(subject.name)
    judged, elsewhere, images = list[Evaluation](), dict[str, list[Evaluation]](), subject.splits.test.fingerprint()
    for name, one in kept(run).items():
        if isinstance(one, Evaluation) and one.split == "test" and _fits(one, subject):
            of = split_of(run, name, one)
            (judged if of in ("", images) else elsewhere.setdefault(of, [])).append(one)
    audit = _audit(subject)
    threat = "" if subject.resolved.standard else f"{record.norm} of {_eps(record.eps)}"
    typed = shlex.join(map(one_line, (str(run), *words(subject.resolved.files))))
    tags = ("adversarial-robustness", "advkit", *record.plugins)
    begun = RunFolder.open(run).init_from()
    begins = ["--init-from", one_line(begun)] if begun else []
    train = shlex.join(["advkit", "train", "--config", "run.toml", *begins])
    return CARD.format(
        library="timm" if timms else "pytorch",
        tags="\n".join(f"- {tag}" for tag in tags),
        name=_plain(run.name),
        net=untagged(record.architecture_options)["architecture"] if timms else subject.resolved.net,
        count=len(record.classes),
        data=record.data,
        shape=" x ".join(map(str, record.shape)),
        version=__version__,
        plugins=", ".join(record.plugins) or without_plugins(subject.resolved.values()),
        against=f"against perturbations in\n{threat}" if threat else "on images that\nnothing attacked",
        normalised=", normalised by the numbers of config.json" if timms else "",
        licence=LICENCE,
        accuracies=_accuracies(most_telling(judged, record.norm, record.eps), elsewhere, record, typed, threat),
        audit=_audited(audit if isinstance(audit, AuditRecord) and _fits(audit, subject) else None, typed),
        use=TIMM if timms else WEIGHTS if record.without_graph else GRAPH,
        notes="".join(f"\n- {_plain(note)}." for note in record.notes) + ("\n" if record.notes else ""),
        train=train,
        settings=runfile.dump(subject.resolved).strip(),
    )


def _plain(text: str) -> str:
    """Text of others in a card: one line of it, and no HTML."""
    return escape(one_line(text), quote=False)


def _accuracies(
    judged: Sequence[Evaluation],
    elsewhere: Mapping[str, Sequence[Evaluation]],
    record: ExportRecord,
    run: str,
    threat: str,
) -> str:
    """Of the first, which says most; the others in a line each.

    `elsewhere`: those of other test images than the net's own, by SHA-256. `threat`: what it was trained against, or
    "".
    """
    command = f"`advkit evaluate {run} --attacks clean,autoattack`"
    also = [line for one in judged[1:] for line in _also(one, one.judged_on)]
    for images, found in elsewhere.items():
        also += [line for one in found for line in _also(one, f"{one.judged_on}, of other images ({images[:8]})")]
    first = [line for one in judged[:1] for line in _also(one, one.judged_on)]
    lines_of_others = [f"\n{line}" for line in dict.fromkeys(also) if line not in first]  # best and last may be one
    if not judged:
        return "\n".join([f"Nothing is known of these weights: {command}, then export again.", *lines_of_others])
    chosen = judged[0]
    rows = [["attack", "norm", "eps", "accuracy", "95 %"], ["---"] * 5]
    for row, label in zip(chosen.attacks, chosen.labels, strict=True):
        attacked = row.name != "clean"
        eps = chosen.eps if row.eps is None else row.eps
        radius = [row.norm or chosen.norm, _eps(eps or 0.0)] if attacked else ["", ""]
        rows.append([label, *radius, f"{row.accuracy:.4f}", "{:.4f} to {:.4f}".format(*row.interval)])
    for norm, worst in chosen.worst.items():
        interval = "{:.4f} to {:.4f}".format(*worst.interval)
        rows.append(["worst case", norm, _eps(chosen.eps_in(norm) or 0.0), f"{worst.accuracy:.4f}", interval])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    said = [f"On the {chosen.judged_on}:", "", *lines]
    if chosen.alarms:
        said += ["", f"**Suspect**: the short audit raises {', '.join(chosen.alarms)}."]
    if chosen.hopeless:
        said += ["", f"There is nothing to be robust: {chosen.hopeless}."]
    labelled = zip(chosen.labels, chosen.attacks, strict=True)
    said += [f"\n{label}: {note.removesuffix('.')}." for label, row in labelled for note in map(_plain, row.notes)]
    if threat and not is_of(chosen, record.norm, record.eps):
        said += ["", f"Trained against {record.norm} {_eps(record.eps)}, where nothing is known of it yet: {command}."]
    said += [f"\n{_plain(note)}." for note in chosen.notes if note not in record.notes]
    said += lines_of_others
    if not any(row.is_autoattack for row in chosen.attacks):
        said += ["", f"Not evaluated under AutoAttack yet: {command}."]
    fields = json.dumps(chosen.robustbench, indent=1)
    return "\n".join([*said, "", "As RobustBench's model_info:", "", "```json", fields, "```"])


def _also(one: Evaluation, where: str) -> list[str]:
    return [
        f"Also evaluated: {where}, worst case {worst.accuracy:.4f} at {norm} "
        f"{_eps(one.eps_in(norm) or 0.0)} under {', '.join(row.name for row in one.attacked(norm))}."
        for norm, worst in one.worst.items()
    ]


def _audited(audit: AuditRecord | None, run: str) -> str:
    if audit is None:
        return f"Not audited for masked gradients yet: `advkit audit {run}`."
    rows = [["check", "figure", "images", "alarm"], ["---"] * 4]
    words = {True: "**yes**", False: "no", None: "could not be run"}
    for check in audit.checks:
        figure = "" if check.figure is None else f"{check.figure:.4g}"
        rows.append([check.name, figure, check.images, words[check.alarm]])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    nothing = [f"Nothing was attacked: {audit.hopeless}.", ""] if audit.hopeless else []
    return "\n".join([f"On the {audit.judged_on}:", "", *nothing, *lines])


def _eps(eps: float) -> str:
    gray = 255 * eps
    return f"{round(gray)}/255" if gray > 0.5 and abs(gray - round(gray)) < 1e-6 else f"{eps:g}"
