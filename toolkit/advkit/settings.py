"""The run's settings: one frozen model a section. `advkit train --set section.key=value` reaches each of them."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import field_validator, model_validator

from .errors import OptionError, cut, did_you_mean
from .hookspec import VIEWS
from .optimizers import KNOWN, OptimizerSettings
from .options import OptionModel, Real, option
from .reach import misfit
from .types import Passes


class RunSettings(OptionModel):
    """How long, how large, from which seed, and where."""

    seed: int = option(0, ge=0, lt=2**63, help="all random numbers derive from it")
    epochs: int = option(20, ge=1, le=10_000, help="passes over the training set")
    batch_size: int = option(64, ge=1, lt=2**31, help="samples per step; the last batch of an epoch may be smaller")
    lone_image: Literal["merge", "drop", "keep"] = option(
        "merge",
        help="a last batch of one image joins the batch before it, is left out of the epoch, or is kept, which "
        "BatchNorm may refuse",
    )
    device: str = option("cpu", help="a torch device, such as cpu or cuda:0")
    threads: int = option(0, ge=0, le=1024, help="intra-op threads; 0: as torch chooses, then recorded")
    precision: Literal["float32", "bf16"] = option(
        "float32", help="of the training forwards; bf16: autocast, with weights, losses and state in float32"
    )
    matmul: Literal["highest", "high"] = option(
        "highest", help="float32 matrix products and convolutions in training: exact, or with TF32 if the device has it"
    )
    memory_format: Literal["contiguous", "channels_last"] = option(
        "contiguous", help="how images and the weights of convolutions lie in memory"
    )
    accumulate: int = option(
        1, ge=1, lt=2**31, help="parts of a batch whose gradients are added up before the update, to save memory"
    )
    compile: Literal["off", "default", "max-autotune"] = option(
        "off", help="torch.compile of the net in training, in that mode; batches of another size than most stay eager"
    )
    batchnorm: Literal["synchronised", "local"] = option(
        "synchronised",
        help="BatchNorm of several processes: over the whole batch, or each over its own share, with the running "
        "statistics of the first",
    )
    timeout: int = option(
        600, ge=1, lt=10**9, unit="seconds", help="a process that does not answer the others for this long ends the run"
    )
    check_hooks: bool = option(False, help="check the values of every hook's answer at every step")

    @field_validator("device")
    @classmethod
    def _of_torch(cls, value: str) -> str:
        try:
            if torch.device(value).type == "meta":
                raise ValueError("is a device whose tensors hold no values; take cpu, cuda or cuda:0")
        except RuntimeError:
            raise ValueError("must be a device of torch, such as cpu, cuda or cuda:0") from None
        return value

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has {self.batch_size} images; lower it")
        return self

    def at_once(self, processes: int = 1) -> int:
        """How many images a process computes at once in training: its share of a batch, cut as `parts_of` cuts it."""
        share = -(-self.batch_size // processes)
        parts = self.accumulate if processes == 1 else max(1, min(self.accumulate, share // 2))
        return -(-share // parts)


class DataSettings(OptionModel):
    """Which images."""

    name: str = option("digits", help="a registered data set")
    root: str = option("", help="folder or file of the data, where the data set needs one")
    limit: int = option(0, ge=0, lt=2**31, help="at most this many images per split, chosen by a fixed seed; 0: all")
    balance: bool = option(
        False,
        help="`limit` takes the classes in turn as far as they go, in place of images at random: another population "
        "where the classes are uneven",
    )
    max_pixels: int = option(1 << 24, ge=1, lt=2**53, help="most pixels of an image that may be decoded from a file")
    size: int = option(
        0, ge=0, lt=2**14, help="side of the images that image-folder decodes pictures to, on demand; 0: as they are"
    )
    transform: Literal["auto", "none", "crop-flip", "resized-crop-flip"] = option(
        "auto", help="per-sample training transform; auto: the data set's"
    )

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.balance and not self.limit:
            raise ValueError("balance is about which images `limit` takes; set limit, or leave it out")
        return self


class AttackSettings(OptionModel):
    """The inner attack, and the threat model the run is evaluated in."""

    norm: Literal["linf", "l2"] = option("linf", help="the norm of the perturbation")
    eps: Real = option("8/255", ge=0, le=1e3, unit="pixels in [0, 1]", help="perturbation budget")
    step_size: Real = option("eps/4", ge=0, unit="pixels in [0, 1]", help="length of an attack step")
    steps: int = option(10, ge=0, le=9999, help="attack steps K; 0 is standard training: x_adv = x")
    init: Literal["zero", "uniform", "normal"] = option("zero", help="start: x, uniform in the ball, x + 0.001 N(0, 1)")
    mode: Literal["eval", "train", "train-frozen"] = option(
        "eval",
        help="the model's mode in the attack; train moves BatchNorm's running statistics, train-frozen not",
    )
    restarts: int = option(
        1, ge=1, le=1000, help="attacks from random starts; for each image the one with the largest loss counts"
    )
    final_loss: bool = option(
        False,
        help="also the loss of the last iterate, one more forward in the attack's mode, as in Rice et al.'s code; "
        "several restarts always take it",
    )
    l2_projection: Literal["ball-box", "box-ball"] = option(
        "ball-box", help="l2: into the ball and then into [0, 1], as Rice et al., or the box first, as TRADES"
    )

    @model_validator(mode="after")
    def _in_pixels(self) -> Self:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError("eps is above 1, but images lie in [0, 1]; a budget of 8 gray levels is 8/255")
        return self

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if (self.restarts > 1 or self.final_loss) and not self.steps:
            raise ValueError("steps is 0, so there is no attack to restart and no final_loss; leave them out")
        if self.l2_projection != "ball-box" and self.norm != "l2":
            raise ValueError("l2_projection orders nothing in the norm linf, where box and ball are one; leave it out")
        return self

    @property
    def judged(self) -> int:
        """Last iterates whose loss is taken: a forward each."""
        return self.restarts if self.restarts > 1 or self.final_loss else 0

    @property
    def passes(self) -> Passes:
        """What the core's attack runs."""
        moves = self.restarts * self.steps
        return Passes(moves + self.judged, moves)

    def short(self, steps: int, step_size: float, setting: str, start: str) -> list[str]:
        """A caution where so many steps of a size, which a setting says, end before the edge of the ball, else none."""
        said = misfit(steps, step_size / self.eps, setting, start) if self.eps else ""
        return [said] if said else []


class UpdateSettings(OptionModel):
    """The update phase."""

    batch_norm: str = option(
        "base_loss",
        help="whose forwards move running statistics: base_loss, or forwards by name in the order in which they run, "
        "such as clean_logits,adv_logits; one named again runs again, for the statistics alone",
    )

    clean: Literal["x", "start"] = option(
        "x",
        help="the image of the update's clean logits: x, or the attack's start, as the code of ISEAT takes it where "
        "that is random",
    )

    @field_validator("batch_norm")
    @classmethod
    def _views(cls, value: str) -> str:
        stray = [name for name in value.split(",") if name not in VIEWS]
        if value != "base_loss" and stray:
            raise ValueError(f"must be base_loss or names out of {', '.join(VIEWS)}")
        return value

    @property
    def views(self) -> tuple[str, ...] | None:
        """The forwards named, None for those of base_loss."""
        return None if self.batch_norm == "base_loss" else tuple(self.batch_norm.split(","))


class ValidationSettings(OptionModel):
    """How the best checkpoint is chosen: by the lower of its PGD and margin-PGD accuracies at the run's eps."""

    fraction: Real = option(0.1, ge=0, lt=1, help="share of the training split held out; 0: none")
    split: Literal["validation", "test"] = option(
        "validation",
        help="the images that choose; test makes every later test figure optimistic, and is reported",
    )
    steps: int = option(10, ge=1, le=9999, help="steps of both attacks, from x, step size eps/4")
    every_epochs: int = option(1, ge=1, lt=2**31, help="validate every so many epochs, and after the last")


class CheckpointSettings(OptionModel):
    """What a stopped run loses at most."""

    every_steps: int = option(50, ge=1, lt=2**31, help="a checkpoint every so many steps; also at every epoch's end")
    keep: int = option(2, ge=1, lt=2**31, help="newest checkpoints kept, beside the best")
    max_bytes: int = option(
        2 << 30, ge=1, lt=2**53, help="largest size of a file of weights in bytes, packed or unpacked"
    )


SECTIONS: dict[str, type[OptionModel]] = {
    "run": RunSettings,
    "data": DataSettings,
    "attack": AttackSettings,
    "update": UpdateSettings,
    "optimizer": OptimizerSettings,
    "validation": ValidationSettings,
    "checkpoint": CheckpointSettings,
}
"""`model.name`, the model's own options and `order.HOOK` come beside these."""


def known_setting(key: str) -> None:
    """Refuse a key that is no setting. `model.*` is checked by the model and `order.*` by the composition."""
    section, _, field = key.partition(".")
    if section in ("model", "order") and field:
        return
    known = {f"{name}.{own}": own for name, options in SECTIONS.items() for own in options.model_fields}
    known |= {f"optimizer.{own}": own for own in KNOWN}
    if key in known:
        return
    if section in SECTIONS:  # a shared section makes no two names alike
        near = did_you_mean(field, [own for full, own in known.items() if full.startswith(f"{section}.")])
        near = near.replace("mean ", f"mean {section}.")
    else:
        near = did_you_mean(key, [*known, "model.name"])
    raise OptionError(f"Unknown setting {cut(key)}.{near} `advkit plan` lists them all.")
