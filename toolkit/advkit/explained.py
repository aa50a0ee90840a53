"""What torch raises of a net that it can not differentiate or call, as sentences."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from .errors import AdvkitError, OptionError, OutOfMemory, blame, blames, named, refuse_ends, says
from .passing import passable

NO_GRADIENT = "The net has no gradient at its input, so attacks that follow it mean nothing; "
"""Where the images ask for a gradient and the logits have none: detach, no_grad or numpy in the forward."""


TRAIN_ANOTHER = NO_GRADIENT + (
    "train one that is differentiable, or set attack.steps=0 and, where epochs are validated, validation.fraction=0 "
    "(with validation.split=validation)."
)
"""The same of a net that is trained."""


def attack_another() -> str:
    """The same of a net that is attacked."""
    return NO_GRADIENT + (
        "attack a copy that is differentiable, as a net is before it is quantized; or use attacks without gradient: "
        f"{named('--attacks', 'clean,square')}."
    )


LONE = "BatchNorm of the model has one value a channel in a batch of one image, and takes no statistics of it; "
"""Of one image by itself, and then what to do."""

_SEVERAL = "Expected more than 1 value per channel"

_UNUSED, _CUT = "appears to not have been used in the graph", "does not require grad and does not have a grad_fn"


def wants_several(error: BaseException) -> bool:
    """Whether a net has raised `error` because it was shown one image alone."""
    return _SEVERAL in says(error)


_ONCE = {
    "scaled_dot_product": (
        "Call it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH), in the forward or around the run"
    ),
    "cudnn_rnn": "Call it within torch.backends.cudnn.flags(enabled=False), in the forward",
}
"""Operations of torch that can be differentiated twice in another form, and how to have it."""

_LIBRARIES = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<frozen", "<eval_with_key>")
"""Where files begin that are nobody's own, but for those of installed packages."""

_FLOAT = "(?i:float|double|half|bfloat16)"

_NO_MEMORY = ("out of memory", "allocate memory")
"""In what torch raises where memory is at its end."""

_ELSEWHERE = ("CUDA error", "leaf Variable")
"""In what torch raises where the machine is at fault, or where an image is written into (`judging.untouched`)."""


@contextmanager
def calling(shape: Sequence[int], net: str = "The model") -> Iterator[None]:
    """What a net raises that is called on images of this shape is `reraised`, but for what `explained` knows."""
    try:
        yield
    except AdvkitError:
        raise
    except (Exception, SystemExit) as raised:  # nobody but the command line ends a program
        if type(raised).__name__ == "_StopRecomputationError":  # of torch.utils.checkpoint, which catches it
            raise
        error = passable(raised)
        if not is_somebodys(error) and any(words in says(error) for words in (*_EXPLAINED, *_ELSEWHERE)):
            raise
        reraise(error, shape, net)


def reraise(error: BaseException, shape: Sequence[int], net: str = "The model") -> NoReturn:
    """What a net has raised on images of this shape, as it is for whoever calls advkit.

    An exception of a class of somebody's own stays what it is: who wrote it may catch it around a run. So does one with
    a note on whose code raised it. Any other is `uncallable`.
    """
    error = passable(error)
    if blames(error):
        raise error
    raise_own(error, f"{net[0].lower()}{net[1:]} raised it, on images {tuple(shape)}")
    raise uncallable(error, shape, net) from error


def raise_own(error: BaseException, whose: str) -> None:
    """Raise `error` again, with a note on whose code raised it, where its class is somebody's own."""
    error = passable(error)
    if is_somebodys(error):
        refuse_ends(error, whose)
        blame(error, whose)
        raise error


def uncallable(error: BaseException, shape: Sequence[int], net: str = "The model") -> AdvkitError:
    """The refusal of a net that has raised `error` on images of this shape: what it says, and a remedy that fits it."""
    if lacking := _without_memory(error, f"{net}, on images {tuple(shape)},"):
        return lacking
    lines = says(error).splitlines() or [""]
    cause = lines[-1].partition(": ")[2] if "TorchScript" in lines[0] else ""  # below a traceback of its own
    said = (cause.strip() or lines[0]).rstrip(".! ")
    what = f"{net} can not be called on images {tuple(shape)}: {': '.join(filter(None, [type(error).__name__, said]))}"
    if isinstance(error, ImportError):
        remedy = "Install what it needs, or import it at the top of the model's file."
    elif isinstance(error, RuntimeError | ValueError) and re.search(rf"\b{_FLOAT}\b.*\b{_FLOAT}\b", said):
        remedy = "Give all of its layers one type, as its float() or double() does."
    elif isinstance(error, RuntimeError | ValueError | AssertionError) and re.search(
        r"size|shape|channel|dimension|height|width|elements not|TorchScript|\dD\b", said
    ):  # asserted by torchvision and timm
        remedy = "Give it images of the size that it was made for, or mend its layers."
    else:
        what += _in_brackets(place(error))
        remedy = "Mend its forward."
        if said.endswith("is not an nn.Parameter"):  # of get_parameter
            remedy = "Other weights stand in the place of its own here, as plain tensors: read them as attributes."
    return OptionError(f"{what}. {remedy}")


def _without_memory(error: BaseException, what: str) -> OutOfMemory | None:
    """What to say where memory is at its end; None of other errors."""
    if not isinstance(error, MemoryError) and not any(words in says(error) for words in _NO_MEMORY):
        return None
    tried = re.search(r"tried to allocate ([\d.]+ \w+)", says(error), re.IGNORECASE)
    asked = f" (it asks for {tried[1]})" if tried else ""
    return OutOfMemory(
        f"{what} needs more memory than there is{asked}; let it compute fewer images at once ({named('--batch-size')}, "
        "and in training run.accumulate), or take a smaller net."
    )


def place(error: BaseException) -> str:
    """The last line of somebody who writes a net, of `error` or else of what caused it; "" where there is none."""
    cause = error.__cause__
    return _place(traceback.extract_tb(error.__traceback__)) or ("" if cause is None else place(cause))


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    own = [frame for frame in frames if _is_own(frame.filename)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _in_a_backward(error: BaseException) -> str:
    """The sentence for what somebody's function or hook raises in a backward, "" of errors from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    begun = next((n for n, frame in enumerate(frames) if frame.name == "_engine_run_backward"), None)
    if begun is None or any(words in says(error) for words in _ELSEWHERE):
        return ""
    if frames[-1].filename.startswith(_LIBRARIES[0]):  # of advkit, which says by itself what is wrong
        return ""
    said = (says(error).splitlines() or [""])[0].rstrip(".! ")
    what = ": ".join(filter(None, [type(error).__name__, said]))
    return (
        f"A backward through the model fails: {what}{_in_brackets(_place(frames[begun + 1 :]))}. Mend the function of "
        "autograd, or the hook, that raises it."
    )


def _underived(error: BaseException, plugins: Sequence[str]) -> str:
    """The sentence for what torch can not differentiate, or not again, as `plugins` do; "" of other errors."""
    found = re.search(r"derivative for '?(?:aten::)?(\w+)[^']*'? is not implemented", says(error))
    if not found:
        return ""
    operation, backward, _ = found[1].partition("_backward")
    if not backward:
        return f"The model computes with {operation}, of which torch has no derivative; use another operation."
    remedy = next((way for words, way in _ONCE.items() if words in operation), "Use another operation")
    several = "s" if len(plugins) > 1 else ""
    these = f"the plugin{several} {' and '.join(plugins)}"
    who = f"T{these[1:]} differentiate{'' if several else 's'} a gradient of the model again"
    return (
        f"{who if plugins else 'A gradient of the model is differentiated again'}, and torch can differentiate "
        f"{operation} only once. {remedy}{f', or leave {these} out' if plugins else ''}."
    )


def is_somebodys(error: BaseException) -> bool:
    """Whether it is of a class of Python, torch or another library no more than of advkit.

    A group is what one of those in it is.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_somebodys, error.exceptions))
    kind = type(error)
    module = sys.modules.get(kind.__module__)
    return kind.__module__ not in sys.builtin_module_names and _is_own(getattr(module, "__file__", None) or "")


def _is_own(file: str) -> bool:
    """Whether it is of somebody who writes a net, and no library's."""
    return not file.startswith(_LIBRARIES) and not {"site-packages", "dist-packages"} & {*Path(file).parts}


@contextmanager
def explained(*, training: bool = False, twice: Collection[tuple[int, str]] = ()) -> Iterator[None]:
    """What torch raises of a net that it can not differentiate or call, as a sentence with the next step.

    `twice`: which plugins have differentiated a gradient of it again, by stage.
    """
    try:
        yield
        return
    except AdvkitError:
        raise
    except Exception as raised:
        error = passable(raised)
    if is_somebodys(error):
        raise error
    torchs = _EXPLAINED if isinstance(error, RuntimeError | ValueError) else {}
    sentence = next((sentence for words, sentence in torchs.items() if words in says(error)), "")
    if torchs and (_UNUSED in says(error) or _CUT in says(error)):
        sentence = TRAIN_ANOTHER if training else attack_another()
    lacking = _without_memory(error, "A step of the run" if training else "A pass of the model")
    sentence = sentence or _underived(error, sorted({plugin for _, plugin in twice}))
    explanation = lacking or OptionError(sentence or _in_a_backward(error))
    if not str(explanation):
        raise error
    for note in blames(error):
        blame(explanation, note)
    raise explanation from error


_EXPLAINED = {
    "through the graph a second time": (
        "Something that an earlier forward has computed is used again with its graph, of which the gradient was taken "
        "already: the model keeps it, such as a product of its weights or a running mean, or a plugin does. Detach "
        "what is kept, or compute it in every forward."
    ),
    "One of the differentiated Tensors does not require grad": (
        "The model differentiates its own weights in a backward, as reversible nets do, and they ask for no gradient "
        "in an attack; take its form without that (plain autograd), which computes the same."
    ),
    "use_reentrant=True": (
        "The model uses torch.utils.checkpoint in its reentrant form, which gives no gradient at the images; call it "
        "with use_reentrant=False."
    ),
    "torch.utils.checkpoint: ": (
        "A part of the model's forward is computed again in the backward (torch.utils.checkpoint) and comes out "
        "differently, as BatchNorm over several processes does. Switch that off."
    ),
    "support saved tensor hooks": (
        "torch.func takes no gradient where a forward is computed again in the backward (torch.utils.checkpoint), or "
        "other hooks see the tensors it saves; leave those out around it, or take torch.autograd.grad instead."
    ),
    _SEVERAL: LONE + "give two images at least.",
    "donated buffers": (
        "The model is compiled by torch.compile, and one forward can not be differentiated twice then, as a plugin "
        "does here; set run.compile=off, or pass the module itself."
    ),
    "Jitted modules": (
        "The model is compiled by torch.jit, and torch can not put other weights or buffers in its place, which this "
        "run needs; pass the module that was scripted or traced."
    ),
}
