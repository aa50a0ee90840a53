"""On a GPU: what a step waits for, where images lie, evaluation, and two processes by nccl. `make gpu` runs these."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import pictures, tiny_net
from safetensors.torch import load_file
from torch import nn

import advkit
from advkit.testing.machine import waits
from advkit.testing.small import batches, step_of, tiny_net as step_net
from advkit.training import ahead
from advkit.training.loop import Trainer
from advkit.training.progress import Silent

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
SETTINGS = {"attack.steps": 3, "validation.steps": 1}


class Sees(Silent):
    """Keeps the trainer."""

    trainer: Trainer

    def begin(self, trainer: Trainer) -> None:
        self.trainer = trainer


def net() -> nn.Module:
    return tiny_net(batch_norm=True, dropout=0.0, dtype=torch.float64)


def data(count: int = 24) -> advkit.Splits:
    return advkit.Splits(pictures(count), pictures(count), "crop-flip")


@cuda
@pytest.mark.parametrize("plugins", ["", "trades", "awp", "mart", "cat-eps,dirichlet-ls,lsiw", "lsr"])
def test_a_step_on_cuda_waits_once(plugins: str) -> None:
    """For whether gradients and weights are finite, as tests/training/test_waits.py shows of what it reads."""
    step = step_of(
        step_net(batch_norm=True, dropout=0.3, dtype=torch.float32).to("cuda"), plugins.split(",") if plugins else []
    )
    x, y, index = (part.to("cuda") for part in batches()[0])
    for epoch in (0, 1):
        step(x, y, index, epoch=epoch)
    seen = [place.split(":")[0] for place in waits(lambda: step(x, y, index, epoch=1))]
    assert seen == ["sums.py"]


@cuda
def test_images_stay_on_cuda_where_they_fit_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    for free in (1 << 30, 0):
        monkeypatch.setattr(ahead, "free_memory", lambda device, free=free: free)
        sees, model = Sees(), net()
        settings = {**SETTINGS, "run.device": "cuda", "optimizer.lr": 0.01}
        advkit.train(model, data(), "lsiw", epochs=2, batch_size=8, eps=0.1, settings=settings, progress=sees)
        assert sees.trainer.feed._images.device.type == ("cuda" if free else "cpu")
        ended.append(model.state_dict())
    assert all(torch.allclose(value, ended[1][name], rtol=1e-12, atol=1e-12) for name, value in ended[0].items())


def test_images_are_kept_near_where_they_take_a_quarter_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    images, far = pictures(24), torch.device("meta")
    for free, kept in ((4 * images.images.numel(), "meta"), (4 * images.images.numel() - 1, "cpu"), (None, "cpu")):
        monkeypatch.setattr(ahead, "free_memory", lambda device, free=free: free)
        assert {tensor.device.type for tensor in ahead.near(images, far)} == {kept}
        assert ahead.near(images, torch.device("cpu"))[0] is images.images


@cuda
def test_verdicts_on_cuda_are_those_of_the_cpu() -> None:
    here, there, images = net(), net().to("cuda"), pictures(60)
    attacks = ("clean", "fgsm", "pgd-10", "cw-10", "apgd-ce", "square")
    one, other = (advkit.evaluate(model, images, attacks, eps=0.05, audit=False) for model in (here, there))
    for name in attacks[:4]:  # the others draw on their device
        assert one["robust"][name] == other["robust"][name], name
    assert other["robust"].keys() == one["robust"].keys()


@cuda
def test_autoattack_and_the_audit_run_on_cuda() -> None:
    pytest.importorskip("pyautoattack")
    images, model = advkit.load_data("digits", limit=200), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {**SETTINGS, "run.device": "cuda"}
    trained = advkit.train(model, images, epochs=8, batch_size=20, eps=0.05, settings=settings).model
    record = advkit.evaluate(trained, images.test, ("clean", "autoattack"), eps=0.05, audit=False, n=40)
    assert 0 < sum(record["robust"]["autoattack"]) <= sum(record["robust"]["clean"])
    assert advkit.audit(trained, images.test, eps=0.05, n=40)


NCCL = """
import sys, torch, advkit
from safetensors.torch import save_file
from test_cuda import SETTINGS, data, net

model = net()
settings = {**SETTINGS, "run.device": "cuda", "run.timeout": 60, "optimizer.lr": 0.01}
advkit.train(model, data(), sys.argv[1].split(","), epochs=2, batch_size=8, eps=0.1, settings=settings)
if torch.distributed.is_initialized():
    assert "nccl" in torch.distributed.get_backend_config(), torch.distributed.get_backend_config()
save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, sys.argv[2])
"""


@cuda
@pytest.mark.parametrize("plugins", ["awp", "cat-eps,dirichlet-ls,lsiw"])
def test_two_processes_by_nccl_are_one(plugins: str, tmp_path: Path) -> None:
    """On one card, which nccl takes for two of two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = {}
    for name in ("alone", "0", "1"):
        place: dict[str, Any] = {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
        if name != "alone":
            place |= {"RANK": name, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            place |= {"MASTER_PORT": port, "NCCL_HOSTID": f"machine{name}", "NCCL_SOCKET_IFNAME": "lo"}
            place |= {"NCCL_IB_DISABLE": "1"}
        command = [sys.executable, "-c", NCCL, plugins, str(tmp_path / name)]
        running[name] = subprocess.Popen(
            command, env={**os.environ, **place}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    told = {name: process.communicate(timeout=120)[0] for name, process in running.items()}
    assert not any(process.returncode for process in running.values()), told
    alone, first, second = (load_file(tmp_path / name) for name in ("alone", "0", "1"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.allclose(value, alone[name], rtol=1e-10, atol=1e-12) for name, value in first.items())
