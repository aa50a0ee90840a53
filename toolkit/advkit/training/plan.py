"""What a run will do and cost, before a minute is spent."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..compose.registration import HOOKS
from ..compose.stage import Answer
from ..config.request import registered
from ..config.resolve import Resolved
from ..config.runfile import companions
from ..data.base import Dataset, Splits, refuse_few
from ..data.decoded import Decoded
from ..data.transforms import WHEN_DECODED
from ..models.base import DataSpec
from ..models.elsewhere import Elsewhere
from ..models.sizes import fitting, too_large, weightless
from ..modules import own_generator
from ..run import Run, RunState
from ..services import NoNet
from ..torchrun import processes
from .ahead import refuse_undecoded
from .cost import cost_of, pgd_at_cost
from .feed import parted, refuse_no_rest
from .guard import plain
from .lone import batched, lone, refuse_lone, refuses_one
from .objects import refuse_net
from .parts import build_model, builder_of, refuse_no_test, refused_here, source_of
from .short import cautions
from .workshop import refuse_absent


def plan(
    resolved: Resolved, splits: Splits | None = None, model: nn.Module | None = None, *, past: bool = False
) -> dict[str, Any]:
    """What the run will do and cost, as plain data: `advkit plan --json`.

    `splits` and `model` are what no name brings. Raises as a run would at its start, but of one that is `past`.
    """
    data = None if splits is None else splits.train
    if not past:
        _refuse(resolved, splits)
    if model is not None:
        refuse_net(resolved, model, *_some(resolved, data))
    here = [] if model is not None else _too_large(resolved, data)
    if unusable := refused_here(resolved):
        here.append(f"{unusable}; a run needs a machine where it can")
    composition, (state, claims) = resolved.composition, _claims(resolved, data)
    if not past:
        refuse_absent(resolved, state.modules.values())
    alone = [] if past else _refuse_lone(resolved, splits, model, state)
    stages = composition.stages()
    steps = _steps(resolved, data)
    dearest = max((stage for _, stage in stages), key=lambda stage: cost_of(stage, steps))
    values = resolved.values()
    return {
        "plugins": [plugin.name for plugin in composition.plugins],
        "hooks": {hook: list(composition.owners(hook)) for hook, answers in composition.answers.items() if answers},
        "rules": {hook: HOOKS[hook].rule.value for hook, answers in composition.answers.items() if answers},
        "companions": companions(resolved),
        "cautions": [
            *cautions(resolved),
            *_lone_image(resolved, data),
            *alone,
            *here,
        ],
        "settings": {
            key: {"value": value, "from": resolved.origins.get(key, "default")} for key, value in values.items()
        },
        "state": [*claims],
        "state_bytes": claims,
        "modules": {name: str(source) for name, source in state.modules.items()},
        "passes": {phase: passes.as_dict() for phase, passes in dearest.passes.items()},
        "relative_cost": round(cost_of(dearest, steps) / max(1, pgd_at_cost(resolved.attack.steps)), 4),
        "at_epochs": at_epochs(resolved, data),
        "standard": resolved.standard,
        "stages": [
            {"from_epoch": epoch, "passes": {phase: passes.as_dict() for phase, passes in stage.passes.items()}}
            for epoch, stage in stages
        ],
    }


def _refuse(resolved: Resolved, splits: Splits | None) -> None:
    """OptionError for settings that a run would refuse at its start, as far as that is known without the data."""
    if registered(resolved.model_name) and isinstance(builder := builder_of(resolved), Elsewhere):
        builder.library()
        if spec := _spec(resolved, None if splits is None else splits.train):
            _refuse_unfit(builder, spec)
    data, decoded = resolved.data, True  # where nobody knows, train says
    if splits is not None:
        refuse_no_test(resolved, splits)
        decoded = isinstance(splits.train.images, Decoded)
    elif registered(data.name):
        source, decoded = source_of(data.name, data.size, data.max_pixels, data.root), bool(data.size)
        if data.limit:
            refuse_few(data.limit, getattr(source, "classes", 0))
    if data.transform == WHEN_DECODED and not decoded:
        refuse_undecoded()
    if parts := _parts(resolved, None if splits is None else splits.train):
        refuse_no_rest(parts[0])


def _refuse_unfit(builder: Elsewhere, spec: DataSpec) -> None:
    """OptionError for a library's net that can not be built for the images."""
    try:
        weightless(builder, spec)
    except Exception:  # of what does not fit, or of a net that asks for a value, which tensors without memory lack
        with own_generator(torch.device("cpu")), fitting(builder.name, builder.options.model_dump()):
            builder.build(spec)


def _too_large(resolved: Resolved, data: Dataset | None) -> list[str]:
    """A caution where the weights of the net are more than this machine can hold, as far as the images are known.

    Raises OptionError for what the net can not be built for.
    """
    spec = _spec(resolved, data)
    if spec is None or not registered(resolved.model_name):
        return []
    with fitting(resolved.model_name, resolved.model_options):
        why = too_large(builder_of(resolved), spec)
    return [f"{resolved.model_name} does not fit into memory: {why}"] if why else []


def _refuse_lone(resolved: Resolved, splits: Splits | None, model: nn.Module | None, state: RunState) -> list[str]:
    """OptionError as `Trainer` has it, as far as it is known how many images there are, and of which shape.

    A caution for several processes, of which a plan in one knows nothing.

    `state` is of the run that plugins were set up with. A net that has a name is asked without its weights.
    """
    data, test = (None, None) if splits is None else (splits.train, splits.test)
    spec, (images, _), parts = _spec(resolved, data), _some(resolved, data), _parts(resolved, data)
    if spec is None or images is None:
        return []
    most = resolved.run.batch_size if parts is None else parts[0]
    judged = _count(resolved, test, 1) if resolved.validation.split == "test" else parts and parts[1]
    batches = [len(batch) for batch in batched(torch.arange(most), resolved.run)]
    found = lone(resolved, batches, judged, processes())
    if owner := resolved.composition.at(0).owner("train_sampler"):
        always = resolved.composition.always("train_sampler")
        samples = _samples(resolved, data)
        sampled = () if samples is None else _sampled(owner, resolved, state, parted(resolved, samples)[0])
        found = lone(resolved, sampled, judged, processes(), owner.plugin.name) | ({} if always else found)
    local = resolved.run.batchnorm == "local" and processes() == 1
    if not (found or local) or (model is None and not registered(resolved.model_name)):
        return []
    try:
        net = weightless(builder_of(resolved), spec) if model is None else model
    except Exception:  # what is wrong with a library's net is said where it is built
        return []
    refuse_lone(net, images, found)
    if not local or not refuses_one(net, images, training=True):
        return []
    share = min(batches) // 2
    return [f"run.batchnorm=local: BatchNorm takes no statistics of one image; start at most {share} processes"]


def _sampled(sampler: Answer, resolved: Resolved, state: RunState, indices: Tensor) -> list[int]:
    """How many images batches of a plugin have in the first epoch, of `indices` (n,); none where only a run knows."""
    known = {"indices": indices, "batch_size": resolved.run.batch_size, "epoch": 0}
    try:
        with own_generator(state.device):
            batches = sampler(known | {"run": Run(state, sampler.plugin.name, resolved.composition.company)})
            return [batch.numel() for batch in batches] if isinstance(batches, Sequence) else []
    except Exception:  # of one that needs what it keeps of each sample, say
        return []


def own_net(resolved: Resolved, splits: Splits | None = None) -> nn.Module | None:
    """The net of a FILE.py:NAME that a person has named, whose code runs; None of other nets, and of unknown images."""
    spec = _spec(resolved, None if splits is None else splits.train)
    return None if spec is None or "model.name" not in resolved.files else build_model(resolved, spec, looked_at=True)


def _spec(resolved: Resolved, data: Dataset | None) -> DataSpec | None:
    """What nets are built for, with some mean and deviation; None where nobody knows the shape of the images."""
    some, classes = _some(resolved, data)
    if some is None:
        return None
    channels, height, width = some.shape[1:]
    return DataSpec(channels, height, width, classes, (0.5,) * channels, (0.25,) * channels)


def _some(resolved: Resolved, data: Dataset | None) -> tuple[Tensor | None, int]:
    """Two training images, or two of their shape, and K; None and 0 where nobody knows them."""
    if data is not None:
        return data.images[:2], len(data.classes)
    if not registered(resolved.data.name):
        return None, 0
    known = registry.load("data set", resolved.data.name)
    shape, classes = getattr(known, "shape", ()), getattr(known, "classes", 0)
    if not shape or None in shape or not classes:
        return None, 0
    shades = torch.linspace(0, 255, 2 * prod(shape)).view(2, *shape)  # not flat: a norm has no slope there
    return shades.to(torch.uint8), classes


def at_epochs(resolved: Resolved, data: Dataset | None = None) -> float:
    """What the whole run costs, in epochs of PGD-AT with ten steps on as many images."""
    steps, epochs, stages = _steps(resolved, data), resolved.run.epochs, resolved.composition.stages()
    ends = [first for first, _ in stages[1:]] + [epochs]
    cost = sum((end - first) * cost_of(stage, steps) for end, (first, stage) in zip(ends, stages, strict=True))
    return round(cost / pgd_at_cost(10), 1)


def _lone_image(resolved: Resolved, data: Dataset | None) -> list[str]:
    """A caution where the last batch of an epoch has one image, as far as the size of the data is known."""
    run, parts = resolved.run, _parts(resolved, data)
    if resolved.composition.owners("train_sampler") or parts is None:
        return []
    training, _ = parts
    if training <= run.batch_size or training % run.batch_size != 1:
        return []
    does = {"merge": "joins the batch before it", "drop": "is left out", "keep": "is kept; BatchNorm may refuse it"}
    return [
        f"the last batch of an epoch has one image of {training}, which {does[run.lone_image]} (run.lone_image); "
        "another run.batch_size avoids it"
    ]


def _claims(resolved: Resolved, data: Dataset | None) -> tuple[RunState, dict[str, dict[str, int | None]]]:
    """The state that plugins claim in `setup`, asked of them on a run without samples, and its bytes.

    `per_sample` is 0 for what is one tensor for all. None is what the data decide, or the model.
    """
    state = RunState(resolved.run.seed, 0, resolved.attack, torch.device("cpu"), torch.float32)
    if data is not None:
        state.num_classes, state.image_shape = len(data.classes), data.shape
    elif registered(resolved.data.name):
        known = registry.load("data set", resolved.data.name)
        state.num_classes, state.image_shape = getattr(known, "classes", 0), getattr(known, "shape", ())
    composition, samples = resolved.composition, _samples(resolved, data)
    unknown = dict[str, dict[str, int | None]]()
    for answer in composition.answers["setup"]:
        try:
            if "model" in answer.arguments:
                raise NoNet
            plain(answer.key, answer({"run": Run(state, answer.plugin.name, composition.company)}))
        except NoNet:
            unknown[f"{answer.plugin.name}/(depends on the model)"] = {"per_sample": None, "total": None}
    claims = dict[str, dict[str, int | None]]()
    for name, values in state.samples.items():
        size = prod(values.shape[1:]) * values.dtype.itemsize or None
        claims[name] = {"per_sample": size, "total": size * samples if size and samples else None}
    one = {name: {"per_sample": 0, "total": values.nbytes or None} for name, values in state.tensors.items()}
    return state, {**claims, **one, **unknown}


def _samples(resolved: Resolved, data: Dataset | None) -> int | None:
    """N of the training set, validation images included; None where the data or a plugin decide it."""
    return None if resolved.composition.owners("train_dataset") else _count(resolved, data, 0)


def _parts(resolved: Resolved, data: Dataset | None) -> tuple[int, int] | None:
    """How many images to train on there are, and how many are held out, as far as it is known."""
    samples = _samples(resolved, data)
    if samples is None:
        return None
    held_out = round(resolved.validation.fraction * samples)
    return samples - held_out, held_out


def _steps(resolved: Resolved, data: Dataset | None) -> int | None:
    """Of an epoch, as far as it is known."""
    parts = _parts(resolved, data)
    if parts is None or resolved.composition.owners("train_sampler"):
        return None
    return len(batched(torch.arange(parts[0]), resolved.run))


def _count(resolved: Resolved, data: Dataset | None, split: int) -> int | None:
    """How many images a split has, the training (0) or the test images (1), as far as it is known."""
    if data is not None:
        return len(data)
    name, limit = resolved.data.name, resolved.data.limit
    images = getattr(registry.load("data set", name), "images", None) if registered(name) else None
    return images and min(images[split], limit or images[split])
