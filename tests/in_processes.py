"""The trainings of tests/training/test_processes.py, and processes that run them together, forked so that each starts
at once. What comes out is one file a process: {job: what `train` returns, or a sentence}."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import methods
import torch
import torch.distributed as dist
import torch.nn.functional as F
from methods import pictures, tiny_net
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advkit
from advkit import Batch, Plugin, Run, Splits, Step, hookimpl
from advkit.bits import same_bits
from advkit.cli.main import run
from advkit.errors import Stopped
from advkit.evaluation.attacks.square import Square
from advkit.evaluation.audit import figures, turns
from advkit.training import engine
from advkit.training.compiled import Compiled
from advkit.training.progress import Silent
from advkit.training.ranks import here
from advkit_plugins.hat import Hat

N = 97
TOY = Splits(pictures(N), pictures(), "none")
WEIGHTS = "small-cnn --set model.width=4 --dataset digits --eps 0.02 --n 250 --attacks clean,pgd-3"
WHOLE = {"ccat", "cutmix", "gairat", "gradalign", "lsr", "mma"}
"""Built-ins that need the whole batch where a process has but its share."""

Outcome = Mapping[str, Any] | str


class Visits(Plugin):
    """Counts how often each sample was attacked."""

    name = "visits"

    @property
    def by_sample(self) -> bool:
        return True

    @hookimpl
    def setup(self, run: Run) -> None:
        self.count = run.sample_state("count")
        self.labels = run.sample_state("labels", shape=(run.num_classes,), dtype=torch.bool)

    @hookimpl
    def target_label(self, target: Tensor, batch: Batch, phase: str) -> Tensor:
        self.count[batch.index] += phase == "train"
        self.labels[batch.index] = target > 0
        return target


class OneBroken(Plugin):
    """One image, which one process has, makes the loss NaN."""

    name = "one-broken"

    @property
    def by_sample(self) -> bool:
        return True

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return torch.where(batch.index == 7, torch.nan, 0.0) * adv_logits.sum(1)


class Apart(Plugin):
    """Keeps what each process has for itself."""

    name = "apart"

    @property
    def by_sample(self) -> bool:
        return True

    @hookimpl
    def setup(self, run: Run) -> None:
        self.mine = run.tensor_state("mine", torch.zeros(()))

    @hookimpl
    def after_update(self) -> None:
        self.mine.fill_(here().rank)


class Teaches(Plugin):
    """A twin of the model learns beside it, and is asked how it is a step ahead."""

    name = "teaches"

    @property
    def by_sample(self) -> bool:
        return True

    def passes(self, hook: str, costs: advkit.Costs) -> advkit.Passes:
        if hook == "observe_update":
            return advkit.Passes(3, 2, auxiliary_forward=1, auxiliary_backward=1)
        return advkit.Passes(auxiliary_forward=1) if hook == "extra_regularizer" else advkit.Passes()

    @hookimpl
    def setup(self, run: Run) -> None:
        self.twin = run.module("net", lambda model: model, optimizer={"clip_norm": 1.0})
        self.fooled = run.tensor_state("fooled", torch.zeros((), dtype=torch.float64))

    @hookimpl
    def extra_regularizer(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return (adv_logits - self.twin(batch.x)).square().sum(1)

    @hookimpl
    def observe_update(self, batch: Batch, run: Run) -> None:
        with run.ahead():
            attack = run.probe(batch, torch.full_like(batch.x[:, 0, 0, 0], 0.1), steps=2)
            loss = F.cross_entropy(run.logits(attack.x_adv), batch.y, reduction="none")
        self.fooled += loss.mean()
        self.twin.learn(batch.x, lambda z, y, w: w * F.cross_entropy(z, y, reduction="none"), batch.y, loss)


class Fails(Plugin):
    """In the second step of the first epoch the last process does what `FAILS` says."""

    name = "fails"
    how: Callable[[], object] = staticmethod(lambda: None)

    @hookimpl
    def observe_update(self, run: Run) -> None:
        if (run.epoch, run.step) == (0, 1) and 0 < here().rank == here().size - 1:
            self.how()


class Ends(Silent):
    """Asks the last process alone to stop, after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop_requested(self) -> type[Stopped] | None:
        self.left -= 1
        return Stopped if self.left == 0 and here().rank == here().size - 1 else None


class Viewed(nn.Module):
    """nn.Flatten as many write it, which fails at no image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


def train(
    *plugins: Any,
    batch_norm: bool = False,
    dropout: float = 0.0,
    viewed: bool = False,
    for_gpus: bool = False,
    flat: bool = False,
    **arguments: Any,
) -> Mapping[str, Any]:
    """Everything that must be equal: weights, state, the lines of metrics.jsonl without their seconds."""
    net = tiny_net(batch_norm=batch_norm, dropout=dropout, dtype=torch.float64)
    if viewed:
        net[4] = Viewed()
    if flat:  # one value a channel
        torch.manual_seed(5)
        net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3, dtype=torch.float64), nn.BatchNorm1d(3, dtype=torch.float64))
    if for_gpus:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    settings = {"attack.steps": 3, "attack.init": "uniform", "validation.fraction": 0} | arguments.pop("settings", {})
    given = {"epochs": 1, "batch_size": 48, "eps": 0.1} | arguments
    result = advkit.train(net, TOY, plugins, settings=settings, **given)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    return {"net": result.model.state_dict(), "averaged": dict(result.averaged), "rows": rows}


def decoded() -> Mapping[str, Any]:
    """Pictures that each process decodes by itself."""
    with tempfile.TemporaryDirectory() as own:
        folder = here().told(own)
        for number, pixels in enumerate([] if here().rank else pictures(40).images.repeat(1, 3, 3, 4)):
            path = Path(folder, ("train", "test")[number % 4 > 2], "ab"[number // 4 % 2], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:3, number % 7 :].permute(1, 2, 0).contiguous().numpy()).save(path)
        here().heard("written")
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 7, 2, dtype=torch.float64))
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        settings = {"data.root": folder, "data.size": 7, "attack.steps": 2}
        result = advkit.train(net, "image-folder", "cat-eps", settings=settings, epochs=2, batch_size=9, eps=0.1)
        here().heard("read")
    return {"net": result.model.state_dict(), "averaged": {}, "rows": [row["loss"] for row in result.history]}


def compiled(*plugins: str, **arguments: Any) -> Mapping[str, Any]:
    """With torch's own kernels, and whether what is compiled has run."""
    ran = []
    call = Compiled.__call__
    with (
        mock.patch.object(engine, "BACKEND", "aot_eager"),
        mock.patch.object(Compiled, "__call__", lambda own, kept, x: (ran.append(own), call(own, kept, x))[1]),
    ):
        told = train(*plugins, settings={"run.compile": "default"}, **arguments)
    return {**told, "averaged": {"ran": torch.tensor([bool(ran[3:])])}}


def elastic(**arguments: Any) -> Mapping[str, Any]:
    """A run that is stopped, twice, between checkpoints."""
    return train("cat-eps", "lsiw", epochs=2, batch_size=32, settings={"checkpoint.every_steps": 1}, **arguments)


def torn(**arguments: Any) -> Mapping[str, Any]:
    """A run that is torn in the middle of a step."""
    return train("cat-eps", Fails, settings={"run.timeout": 10, "checkpoint.every_steps": 1}, **arguments)


def step() -> Mapping[str, Any]:
    """A loop of one's own, which gives each process its share."""
    net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)
    step = Step(
        net, torch.optim.SGD(net.parameters(), 0.1), ["cat-eps", "lsiw"], num_samples=20, eps=0.1,
        settings={"attack.steps": 2},
    )  # fmt: skip
    data = pictures(20)
    rows = []
    for index in torch.arange(20).split(9):
        own = torch.tensor_split(index, here().size)[here().rank]
        report = step(data.images[own].double() / 255, data.labels[own], own, epoch=0)
        rows.append({"count": report.count, "loss": float(report.loss), "right": int(report.adv_correct)})
    return {"net": net.state_dict(), "averaged": step.state_dict(), "rows": rows}


def judged(*what: str, out: Path) -> Mapping[str, Any]:
    """`advkit evaluate`: its exit code, and what the first process says and leaves behind, without the seconds."""
    speaks, said = not here().rank, io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run(["evaluate", "--model", *what, "--out", str(out), "--json"])
    if not speaks:
        return {"code": code, "said": said.getvalue()}
    (home,) = out.glob("*/n-250")
    figures = json.loads((home / "evaluation.json").read_text())
    for row in figures["attacks"]:
        row.pop("seconds")
    kept = len((home.parent / "progress.jsonl").read_text().splitlines())
    return {"code": code, "figures": figures, "verdicts": (home / "verdicts.csv").read_text(), "kept": kept}


def module() -> Mapping[str, Any]:
    """A net of one's own, judged by all; Square's first three blocks of queries show what its hundred do."""
    net, data = tiny_net(batch_norm=True, dropout=0.5, dtype=torch.float64), pictures(230)
    result = advkit.evaluate(net, data, ["clean", "pgd-3", Square(queries=150)], eps=0.1, together=True)
    return {"robust": result.robust, "accuracies": [row.accuracy for row in result.attacks], "audit": result.audit}


class Noisy(nn.Module):
    """Draws in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


def audited(weights: Path) -> Mapping[str, Any]:
    """A net that draws, right on images of three parts; and from the command line one that is at chance."""
    net, data = nn.Sequential(Noisy(), tiny_net(True, 0.0, torch.float64).eval()), pictures(20)
    labels = net[1](data.images.double() / 255).argmax(1)
    data = advkit.Dataset("made", data.images, labels, data.classes)
    few = {"QUERIES": 10, "POINTS": 4, "IMAGES": 12, "NEIGHBOURS": 2, "DIRECTIONS": 2}
    with mock.patch.multiple(figures, **few), mock.patch.object(turns, "BATCH", 8):
        record = advkit.audit(net, data, eps=0.05, together=True).as_dict()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run(["audit", str(weights), "--model", *WEIGHTS.split(" --n")[0].split(), "--n", "20", "--json"])
    return {"record": record, "code": code, "said": said.getvalue()}


class Counting(nn.Sequential):
    """Knows how many images it was called on."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(32, 3))
        nn.init.constant_(self[1].weight, 0.1)
        self.sizes: set[int] = set()

    def forward(self, x: Tensor) -> Any:
        self.sizes.add(len(x))
        return super().forward(x)


def counted(out: Path) -> Mapping[str, Any]:
    """The most images at once of a run that looks beside its steps and validates, and of a shared evaluation."""
    net, settings = Counting(), {"attack.steps": 1, "validation.steps": 1, "validation.fraction": 49 / 97}
    given = {"epochs": 1, "batch_size": 16, "settings": settings | {"run.accumulate": 2}, "out": out}
    advkit.train(net, TOY, "collapse-guard,las-at", **given)  # and the folder is written, in all processes
    return {"trained": max(net.sizes), "judged": most_judged(out, together=True)}


def most_judged(run: Path, **given: Any) -> int:
    """The most images at once in an evaluation of one chunk, which the first process has."""
    net = Counting()
    advkit.evaluate(run, TOY, "clean,pgd-1", model=net, n=40, audit=False, **given)
    return max(net.sizes, default=0)


class Recomputed(nn.Module):
    """BatchNorm under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.net, x, use_reentrant=False)


def one_step(net: Any, rate: float = 0.1, epoch: int = 0, number: int = 0, drift: float = 0.0, **given: Any) -> None:
    """Of a loop of one's own; after a `drift` of the weights one of the next epoch too."""
    given = {"num_samples": 20, "eps": 0.1, "settings": {"attack.steps": 1}} | given
    step = Step(net, torch.optim.SGD(net.parameters(), rate), "trades", **given)
    step.seek(epoch, number)
    data, own = pictures(20), torch.tensor_split(torch.arange(20), here().size)[here().rank]
    step(data.images[own].double() / 255, data.labels[own], own, epoch=epoch)
    if drift:
        net[0].bias.data += drift * here().rank
        step(data.images[own].double() / 255, data.labels[own], own, epoch=epoch + 1)


def apart_from_each_other() -> Mapping[str, Any]:
    """Steps and judgements of processes that were given something else each: what they are refused with, and whether
    the net is then what it was."""
    mine, data = here().rank, pictures(230)

    def net(bias: float = 0.0, mean: float = 0.0, frozen: bool = False, norm: bool = True) -> nn.Sequential:
        made = tiny_net(batch_norm=norm, dropout=0.0, dtype=torch.float64)
        with torch.no_grad():
            made[0].bias += bias
            if norm:
                made[1].running_mean += mean
        made[0].bias.requires_grad_(not frozen)
        return made

    def evaluated(**given: Any) -> None:
        advkit.evaluate(net(), data, ["pgd-1"], **{"eps": 0.1, "audit": False, **given}, together=True)

    cases: dict[str, Callable[[nn.Module], object]] = {
        "nothing": one_step,
        "seed": lambda net: one_step(net, seed=mine),
        "option": lambda net: one_step(net, options={"trades": {"beta": 6.0 + mine}}),
        "size": lambda net: one_step(net, num_samples=20 + mine),
        "rate": lambda net: one_step(net, 0.1 + mine),
        "epoch": lambda net: one_step(net, epoch=mine),
        "steps": lambda net: one_step(net, number=mine),
    }
    told = {}
    for name, case in cases.items():
        told[name] = _refusal(case, net())
    for name, other in {"bias": net(bias=mine), "mean": net(mean=mine), "frozen": net(frozen=bool(mine))}.items():
        told[name] = _refusal(one_step, other)
    told["drift"] = str(attempt(lambda: {"done": one_step(net(), drift=0.1)}))
    told["layers"] = _refusal(one_step, net(norm=not mine))
    told["checkpointing"] = _refusal(one_step, Recomputed())
    told["eps"] = _refusal(lambda _: evaluated(eps=0.1 + mine / 10), net())
    told["searched"] = _refusal(lambda _: evaluated(seed=mine), net())
    told["transfer"] = _refusal(
        lambda net: advkit.audit(net, data, eps=0.1, transfer=Square(queries=100 + mine), together=True), net()
    )
    return told


def _refusal(case: Callable[[nn.Module], object], net: nn.Module) -> str:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sentence = attempt(lambda: {"done": case(net)})
    if not isinstance(sentence, str):
        return ""
    assert all(same_bits(value, before[name]) for name, value in net.state_dict().items())
    return sentence


JOBS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "at": lambda: train(),
    **{name: (lambda name=name: train(name)) for name in methods.names() if name not in ("av-rank", *WHOLE)},
    "hat,awp with a helper": lambda: train(
        Hat(Hat.Options(), tiny_net(True, 0.0, torch.float64)), "awp", batch_norm=True
    ),
    "a net that learns": lambda: train(Teaches, batch_norm=True, settings={"run.check_hooks": True}),
    "cure": lambda: train("cure", batch_norm=True),  # two derivatives through the statistics
    "alp,av-rank": lambda: train("alp", "av-rank", options={"av-rank": {"term": "alp"}}),
    "cat-eps,lsiw": lambda: train("cat-eps", "lsiw", batch_norm=True),
    "cat-eps,dirichlet-ls,iseat": lambda: train("cat-eps", "dirichlet-ls", "lsiw", "vulnerability-log"),
    "trades,awp": lambda: train(
        "trades", "awp", batch_norm=True, options={"awp": {"gamma": 0.1, "steps": 2, "step_at": "theta+v"}},
        settings={"attack.mode": "train"},
    ),
    "mart,ema,fat": lambda: train("mart", "ema", "fat", options={"ema": {"buffers": "re-estimated"}}, batch_norm=True),
    "a share without images": lambda: train(
        "cat-eps", "lsiw", batch_norm=True, viewed=True, batch_size=95, settings={"run.check_hooks": True}
    ),
    "step": step,
    "decoded": decoded,
    "cat-eps,lsiw compiled": lambda: compiled("cat-eps", "lsiw", batch_norm=True),
    "at in parts": lambda: train(settings={"run.accumulate": 2}),
    "cat-eps,lsiw,awp in parts": lambda: train(
        "cat-eps", "lsiw", "awp", no_companion=["instance_weight:lsiw"], settings={"run.accumulate": 3}
    ),
    "trades,fat in parts": lambda: train("trades", "fat", batch_size=7, settings={"run.accumulate": 3}),
}  # fmt: skip
"""What several processes do as one does."""
PAIRS = [
    *("trades,awp", "mart,awp", "iaat,awp", "fat,trades", "fosc,lsiw", "fgsm-rs,mlcat", "bilateral,awp"),
    *("rwp,lsiw", "score,ema", "label-smoothing,swa", "trades,awp compiled"),
]
"""What four processes do, too; `make soak` has it."""
LOST = ("kill", "hang")
"""In which the last process does not come to an end."""
FEW = ["at", "alp,av-rank", "cat-eps,lsiw", "trades,awp", "mart,ema,fat", "a share without images", "step"]
"""What three processes do, too."""


def attempt(job: Callable[[], Mapping[str, Any]]) -> Outcome:
    try:
        return job()
    except advkit.AdvkitError as error:
        return f"{type(error).__name__}: {error}"


def jobs_of(out: Path) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """JOBS, and what needs a folder or is to be refused."""
    return {
        **JOBS,
        **{name: (lambda name=name: train(name)) for name in WHOLE},
        **{pair: (lambda pair=pair: train(*pair.split(","))) for pair in PAIRS},
        "trades,awp compiled": lambda: compiled("trades", "awp"),
        "visits": lambda: train("cat-eps", Visits, epochs=2, out=out.parent / f"visits-{here().size}"),
        "local": lambda: train(batch_norm=True, settings={"run.batchnorm": "local"}),
        "one broken": lambda: train(OneBroken),
        "apart": lambda: train(Apart),
        "weights of parts": lambda: train("mlcat", settings={"run.accumulate": 2}),
        "parts of all": lambda: train("awp", batch_norm=True, dropout=0.2, settings={"run.accumulate": 2}),
        "a share of one image": lambda: train("awp", flat=True, batch_size=2, settings={"validation.fraction": 0.9}),
        "one image by itself": lambda: train(flat=True, batch_size=3, settings={"run.batchnorm": "local"}),
        "for gpus": lambda: train(batch_norm=True, for_gpus=True),
        "small": lambda: train(batch_size=1, settings={"run.lone_image": "keep"}),
        "others": lambda: train(seed=here().rank),
        "begin": lambda: elastic(out=out.parent / "elastic", progress=Ends(2)),
        "go on": lambda: elastic(resume_from=out.parent / "elastic", progress=Ends(3)),
        "end": lambda: elastic(resume_from=out.parent / "elastic"),
        "module": module,
        "apart from each other": apart_from_each_other,
        "counted": lambda: counted(out.parent / f"counted-{here().size}"),
        "audited": lambda: audited(out.parent / "net.pt"),
        "judged": lambda: judged(
            *WEIGHTS.split(), str(out.parent / "net.pt"), out=out.parent / f"judged-{here().size}"
        ),
        "hang": lambda: _torn(lambda: time.sleep(300), out.parent / "hang"),
        "kill": lambda: _torn(lambda: os.kill(os.getpid(), signal.SIGKILL), out.parent / "kill"),
    }


def _torn(how: Callable[[], object], out: Path) -> Mapping[str, Any]:
    Fails.how = staticmethod(how)
    return torn(out=out)


def torchrun(size: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [{**known, "RANK": str(rank)} for rank in range(size)]


def start(size: int, *line: object) -> list[subprocess.Popen[str]]:
    """Processes of Python with one command line that meet as torchrun's do."""
    line = (sys.executable, *line)
    return [
        subprocess.Popen([*map(str, line)], env={**os.environ, **known}, stderr=subprocess.PIPE, text=True)
        for known in torchrun(size)
    ]


def outcomes(size: int, out: Path, jobs: Sequence[str]) -> list[dict[str, Outcome]]:
    """What each of several processes has of these jobs; the last process may be lost in the last job."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=main, args=(out, jobs, known)) for known in torchrun(size)]
    ending = running[:-1] if jobs[-1] in LOST else running
    try:
        for process in running:
            process.start()
        for process in ending:
            process.join(240)
        told = [path.read_text() for path in sorted(out.parent.glob(f"{out.name}-*.log"))]
        assert [process.exitcode for process in ending] == [0] * len(ending), told
    finally:
        for process in running:
            process.kill()
            process.join()
    return [torch.load(f"{out}-{rank}", weights_only=False) for rank in range(size)]


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative difference in L2."""

    def flat(tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([value.flatten().double() for value in tensors.values()])

    return float((flat(one) - flat(other)).norm() / flat(other).norm()) if one or other else 0.0


def net_of(outcome: Outcome) -> Mapping[str, Tensor]:
    assert not isinstance(outcome, str), outcome
    state: Mapping[str, Tensor] = outcome["net"]
    return state


def main(out: Path, jobs: Sequence[str], known: Mapping[str, str]) -> None:
    """One of several processes."""
    atexit._clear()  # what the process that was forked is to do at its end
    os.environ.update(known)
    own = f"{out}-{known['RANK']}"
    with open(f"{own}.log", "w") as log, contextlib.redirect_stderr(log):
        try:
            torch.set_num_threads(1)
            jobs_here = jobs_of(out)
            told: dict[str, Outcome] = {}
            for name in jobs:
                torch.save(told, own)
                told[name] = attempt(jobs_here[name])
            torch.save(told, own)
            atexit._run_exitfuncs()
            assert not dist.is_initialized() and not threads("gloo"), "they would outlive Python, and may abort it"
        except BaseException:
            traceback.print_exc()
            raise


def threads(name: str) -> list[str]:
    """Threads of this process by what their names hold, where the system tells."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [one for one in names if name in one]
