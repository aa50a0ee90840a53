"""The file that TRADES publishes, from a net written after its code: names, dead block, no normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advkit
from advkit.cli.main import run


class BasicBlock(nn.Module):
    def __init__(self, planes: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(planes, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.convShortcut = None if planes == out else nn.Conv2d(planes, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(out)
        return torch.add(x, self.conv2(F.relu(self.bn2(self.conv1(out)))))


class NetworkBlock(nn.Module):
    def __init__(self, blocks: int, planes: int, out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(BasicBlock(out if i else planes, out, 1 if i else stride) for i in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Official(nn.Module):
    """WideResNet of TRADES' models/wideresnet.py; depth 34, of any width, with the mean over whatever is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(1, channels[0], 3, 1, 1, bias=False)
        self.block1 = NetworkBlock(5, channels[0], channels[1], 1)
        self.sub_block1 = NetworkBlock(5, channels[0], channels[1], 1)
        self.block2 = NetworkBlock(5, channels[1], channels[2], 2)
        self.block3 = NetworkBlock(5, channels[2], channels[3], 2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


@pytest.mark.slow
def test_the_published_file_is_evaluated_as_its_own_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Official(2).eval()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    names = net.state_dict().keys()
    assert {"block1.layer.0.convShortcut.weight", "sub_block1.layer.4.conv2.weight", "fc.bias"} <= names
    file = tmp_path / "model_cifar_wrn.pt"
    torch.save(net.state_dict(), file)
    words = [
        "--model",
        "wide-resnet",
        "--set",
        "model.depth=34",
        "--set",
        "model.width=2",
        "--set",
        "model.normalise=none",
    ]
    line = [
        "evaluate",
        str(file),
        *words,
        "--dataset",
        "digits",
        "--eps",
        "0.1",
        "--n",
        "10",
        "--attacks",
        "clean,pgd-1",
    ]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    (kept,) = (tmp_path / "out").rglob("evaluation.json")
    typed = advkit.Evaluation.read(kept)
    passed = advkit.evaluate(net, advkit.load_data("digits").test.sample(10), "clean,pgd-1", eps=0.1, audit=False)
    assert [row.accuracy for row in typed.attacks] == [row.accuracy for row in passed.attacks]
    settings = {"model.depth": 34, "model.width": 2, "model.normalise": "none"}
    ours = advkit.evaluate(
        file, "digits", "clean,pgd-1", eps=0.1, n=10, model="wide-resnet", settings=settings, audit=False
    )
    assert ours.robust == passed.robust, "image by image"
