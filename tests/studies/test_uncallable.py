"""A net that can not be called on the images is one sentence, whoever calls it, with a remedy that fits the error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import pictures
from torch import Tensor, nn

import advkit
from advkit import OptionError, Splits
from advkit.errors import OutOfMemory
from advkit.evaluation.attacks.gradient import Pgd
from advkit.explained import calling, explained, uncallable
from advkit.studies.analysis.perturb import still
from advkit.studies.transfer import Transfer

TOY = pictures(12)
"""(2, 4, 4), three classes."""


class Own(nn.Module):
    """A linear net, and code of somebody's own in its forward."""

    def __init__(self, code: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.code, self.head = code, nn.Sequential(nn.Flatten(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.code(x))
        return logits


def divided(x: Tensor) -> Tensor:
    return x / (1 // 0)


def called_wrongly(x: Tensor) -> Tensor:
    return nn.ReLU()(x, x)  # type: ignore[no-any-return]  # torch's own frames lie below


def asserting(x: Tensor) -> Tensor:
    torch._assert(x.shape[2] == 224, "Wrong image height!")
    return x


def at(code: Callable[[Tensor], Tensor]) -> str:
    """Where it fails, on its one line."""
    return rf"\({__file__}, line {code.__code__.co_firstlineno + 1}\)\. Mend its forward\.$"


def evaluated(model: nn.Module) -> object:
    return advkit.evaluate(model, TOY, "clean", eps=0.1, audit=False)


def analysed(model: nn.Module) -> object:
    with still(model) as forward:
        return forward(TOY.images / 255)


def transferred(model: nn.Module) -> object:
    net = Own()
    known = advkit.Dataset("known", TOY.images, net(TOY.images / 255).argmax(1), TOY.classes)
    return advkit.evaluate(net, known, [Transfer("transfer:other", model, Pgd("pgd-1", 1))], eps=0.1, audit=False)


def stepped(model: nn.Module) -> object:
    step = advkit.Step(model, torch.optim.SGD(model.parameters(), 0.1), num_samples=12, eps=0.1)
    return step(TOY.images[:4] / 255, TOY.labels[:4], torch.arange(4), epoch=0)


CALLERS: dict[str, Callable[[nn.Module], object]] = {
    "evaluate": evaluated,
    "audit": lambda model: advkit.audit(model, TOY, eps=0.1),
    "analyze": analysed,
    "transfer": transferred,
    "train": lambda model: advkit.train(
        model, Splits(TOY, TOY, "none"), [], epochs=1, eps=0.1, settings={"attack.steps": 1, "validation.steps": 1}
    ),
    "Step": stepped,
}
SIZES, TYPES = r"images of the size that it was made for, or mend its layers\.$", r"Give all of its layers one type"
CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "channels": (lambda: nn.Sequential(nn.Conv2d(3, 3, 4), nn.Flatten()), SIZES),
    "size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(33, 3)), SIZES),
    "no flatten": (lambda: nn.Linear(32, 3), SIZES),
    "kernel": (lambda: nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten()), SIZES),
    "dimensions": (lambda: Own(lambda x: nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3))), SIZES),
    "types": (lambda: Own(lambda x: x.double()), TYPES),
    "own code": (lambda: Own(divided), rf"ZeroDivisionError: .* {at(divided)}"),
    "one number of images": (lambda: Own(lambda x: x.view(12, 32)), SIZES),
    "asserted": (lambda: Own(asserting), rf"AssertionError: Wrong image height. Give it {SIZES}"),
    "below": (lambda: Own(called_wrongly), rf"TypeError: .* {at(called_wrongly)}"),
    "of torch": (lambda: nn.Sequential(nn.Flatten(), nn.Embedding(3, 3)), r"RuntimeError: .*\. Mend its forward\.$"),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_it_is_one_sentence(caller: str) -> None:
    net = "transfer:other" if caller == "transfer" else "The model"
    for case in ("channels", "types", "own code") if caller != "evaluate" else CASES:
        make, remedy = CASES[case]
        with pytest.raises(OptionError, match=rf"^{net} can not be called on images \(\d+, 2, 4, 4\): .*{remedy}"):
            CALLERS[caller](make())
    if caller != "audit":  # which takes seconds
        CALLERS[caller](Own())


def test_an_audit_calls_it_on_fewer_images_than_at_first() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Own()
    labels = net(TOY.images / 255).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    net.code = lambda x: x.view(12, 32)
    with pytest.raises(OptionError, match=r"^The model can not be called on images \(11, 2, 4, 4\)"):
        advkit.audit(net, advkit.Dataset("known", TOY.images, labels, TOY.classes), eps=0.1)


def test_a_traceback_of_torch_jit_is_not_what_it_says() -> None:
    head = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript\n"
    for text, said in (
        (f"{head}RuntimeError: mat1 and mat2\n", "mat1 and mat2"),
        (f"{head}RuntimeError: \n", head[:61]),
    ):
        assert str(uncallable(RuntimeError(text), (4, 2, 4, 4))).split(": ")[2].startswith(f"{said}. ")


def exhausted(x: Tensor) -> Tensor:
    raise MemoryError


@pytest.mark.parametrize("caller", CALLERS)
def test_a_net_for_which_memory_is_too_small_is_one_sentence(caller: str) -> None:
    with pytest.raises(OutOfMemory, match=r", on images \(\d+, 2, 4, 4\), needs more memory than there is; let it"):
        CALLERS[caller](Own(exhausted))


def test_memory_that_is_at_its_end_is_told_from_other_errors() -> None:
    lacking = MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    for error, asked in zip((*lacking, RuntimeError("can't allocate memory: you tried to allocate 40 bytes.")),
                            ("", " (it asks for 2.00 GiB)", " (it asks for 40 bytes)"), strict=True):  # fmt: skip
        remedy = f"needs more memory than there is{asked}; let it compute fewer images at once (batch_size,"
        named = re.escape(f"The model, on images (4, 2, 4, 4), {remedy}")
        with pytest.raises(OutOfMemory, match=named), calling((4, 2, 4, 4)):
            raise error
        for training, what in ((False, "A pass of the model"), (True, "A step of the run")):
            with pytest.raises(OutOfMemory, match=re.escape(f"{what} {remedy}")), explained(training=training):
                raise error
    for error in (advkit.Stopped("stop"), RuntimeError("CUDA error: device-side assert triggered")):  # the control
        with pytest.raises(type(error)), explained(), calling((4, 2, 4, 4)):
            raise error


def test_a_net_that_needs_two_images_is_judged_and_analysed() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert advkit.evaluate(net, TOY, "clean", eps=0.1, audit=False, batch_size=11).n == 12
    with pytest.raises(OptionError, match="give two images at least"), still(net) as forward:
        forward(TOY.images[:1] / 255)
