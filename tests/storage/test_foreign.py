"""Files of weights as other programs write them, and as nobody should."""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import advkit
from advkit import CheckpointError, Dataset, DataSpec, OptionError, Splits
from advkit.models.wide_resnet import WideResNet
from advkit.storage.foreign import read_weights
from advkit.storage.foreign_names import fitted, put_named
from advkit.storage.weights import MODEL, prefixed, put_weights
from advkit.training.progress import Silent


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


def put(model: nn.Module, weights: dict[str, Tensor], **renaming: Any) -> None:
    put_named(model, weights, "the file", **renaming)


@pytest.mark.parametrize(
    "named",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.model.{name}",
        lambda name: f"net.backbone.{name}",
        lambda name: name.replace(".", ".module.", 1),  # DataParallel within
        lambda name: name.replace("3.", "3.module.", 1),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_wrappers_put_into_names(named: Callable[[str], str], suffix: str, tmp_path: Path) -> None:
    weights, file = net(1).state_dict(), tmp_path / f"net.{suffix}"
    renamed = {named(name): value for name, value in weights.items()}
    torch.save({"epoch": 3, "state_dict": renamed}, file) if suffix == "pt" else safetensors.torch.save_file(
        renamed, file
    )
    model = net()
    found, said = read_weights(file)
    put(model, found)
    assert not said
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_other_weights_in_a_file_and_averages_of_torch_are_said(tmp_path: Path) -> None:
    file, net = tmp_path / "a.pt", nn.Linear(3, 2)
    weights, other = net.state_dict(), nn.Linear(3, 2).state_dict()
    torch.save({"state_dict": weights, "ema_state_dict": other, "optimizer": {"state": {}}}, file)
    taken, said = read_weights(file)
    assert torch.equal(taken["weight"], weights["weight"])
    assert f"{file} has weights in ema_state_dict, too, and those in state_dict are taken" in said
    below: list[Any] = [{f"net.{name}": value for name, value in other.items()}, [*other.values()]]
    endless: dict[str, Any] = {}
    endless["again"] = endless
    for held in below:
        torch.save({"model": weights, "ema": {"decay": 0.9, "shadow": held}, "args": endless}, file)
        assert f"{file} has weights in ema.shadow, too, and those in model are taken" in read_weights(file)[1]
        torch.save({"model": weights, "optimizer": {"exp_avg": held}, "scale": torch.ones(2), "args": endless}, file)
        assert not read_weights(file)[1]  # the control
    torch.save({"ema": other}, file)
    with pytest.raises(CheckpointError, match="by name; there are tensors in ema: save alone what is meant"):
        read_weights(file)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    torch.save(averaged.state_dict(), file)
    taken, said = read_weights(file)
    assert fitted(taken, weights).keys() == weights.keys() and "the average of 1 models is taken" in said


def test_a_model_whose_own_names_begin_so_keeps_them() -> None:
    model, other = nn.ModuleDict({"model": net()}), nn.ModuleDict({"model": net(1)})
    put(model, other.state_dict())
    assert model.state_dict()["model.0.weight"].equal(other.state_dict()["model.0.weight"])
    with pytest.raises(CheckpointError, match="do not fit this model"):
        put(net(), {f"a.{name}" if k else f"b.{name}": v for k, (name, v) in enumerate(net().state_dict().items())})


def test_weights_of_before_num_batches_tracked() -> None:
    weights = {name: value for name, value in net(1).state_dict().items() if "tracked" not in name}
    model = net()
    put(model, weights)
    assert model[0].weight.equal(weights["0.weight"])
    del weights["1.running_mean"]
    with pytest.raises(CheckpointError, match=r"first difference: 1\.running_mean"):
        put(model, weights)


def test_weights_for_other_classes_are_told_by_their_last_layer() -> None:
    def wide(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, classes))

    with pytest.raises(CheckpointError) as refused:
        put(wide(10), wide(1000).state_dict())
    assert (
        "do not fit this model: 1 has 1000 outputs there and 10 here; if these are classes, bring that layer to "
        in (str(refused.value))
    )
    assert "normalisation" not in str(refused.value)
    with pytest.raises(CheckpointError, match=r"first difference: 0\.bias"):
        put(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 10)), wide(10).state_dict())


def official(name: str) -> str:
    """A name of advkit's wide net of depth 10 with its dead block, as TRADES' code has it."""
    head, _, rest = name.partition(".")
    rest = rest.replace("shortcut", "convShortcut")
    heads = {"1": "conv1", "2": "block1.layer.0", "4": "block2.layer.0", "5": "block3.layer.0", "6": "bn1", "10": "fc"}
    return f"sub_block1.layer.{rest.removeprefix('module.')}" if head == "3" else f"{heads[head]}.{rest}"


@pytest.mark.parametrize("dead_block", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_names_of_wide_nets(dead_block: bool, prefix: str) -> None:
    builder = WideResNet(WideResNet.Options(depth=10, width=1, dead_block=True))
    unscaled = DataSpec(3, 8, 8, 4, (0.0,) * 3, (1.0,) * 3)
    source = builder.build(unscaled).eval()
    weights = {f"{prefix}{official(n)}": v for n, v in source.state_dict().items() if not n.startswith("0.")}
    assert f"{prefix}block2.layer.0.convShortcut.weight" in weights
    builder = WideResNet(WideResNet.Options(depth=10, width=1, dead_block=dead_block))
    model = builder.build(DataSpec(3, 8, 8, 4, (0.4,) * 3, (0.2,) * 3)).eval()
    put(model, weights, renamed=builder.renamed)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x), source(x)), "and images enter as they are"
    weights[f"{prefix}block2.layer.1.bn1.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        put(model, weights, renamed=builder.renamed)


# ---------------------------------------------------------------------- what is refused


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/advkit-was-run",)


def _zip_bomb(path: Path) -> None:
    """Of 330 MiB, no part of which is more than what it is read with."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(3):
            archive.writestr(f"a/data/{k}", bytes(110 << 20))


def _zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")


def _cut(path: Path, share: float) -> None:
    """A file of weights without its end."""
    weights = {"w": torch.zeros(1000)}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=not path.name.startswith("old"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def _sparse(path: Path, head: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(1900 << 20)


SENTENCE = r"can not be read as weights \({reason}"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a namespace beside": (
        "w.pt",
        lambda path: torch.save({"state_dict": net().state_dict(), "args": argparse.Namespace(lr=1)}, path),
        SENTENCE.format(reason=r"it holds argparse\.Namespace"),
    ),
    "numpy scalars beside": (
        "w.pt",
        lambda path: torch.save({"state_dict": net().state_dict(), "best": np.float64(0.5)}, path),
        SENTENCE.format(reason=r"it holds numpy"),
    ),
    "code": ("w.pt", lambda path: torch.save({"w": Evil()}, path), SENTENCE.format(reason="it holds posix.system")),
    "code of before zips": (
        "w.pt",
        lambda path: path.write_bytes(pickle.dumps({"w": Evil()})),
        SENTENCE.format(reason=".*"),
    ),
    "numpy's archive": (
        "w.npz",
        lambda path: np.savez(path, w=np.zeros(3)),
        SENTENCE.format(reason=r"it is numpy's \.npz; save its arrays as a dictionary of tensors"),
    ),
    "TorchScript": (
        "w.pt",
        lambda path: torch.jit.script(nn.Linear(2, 2)).save(path),
        SENTENCE.format(reason="it is a TorchScript archive, code beside weights; save the state_dict"),
    ),
    "an exported program": (
        "w.pt2",
        lambda path: torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path),
        SENTENCE.format(reason=r"it is a program of torch\.export; save its state_dict"),
    ),
    "another zip": (
        "w.pt",
        lambda path: _zip(path, "hello.txt"),
        SENTENCE.format(reason="it is a zip of something else"),
    ),
    **{
        f"{name}, cut at {share}": (
            name,
            lambda path, share=share: _cut(path, share),
            SENTENCE.format(reason=r"it is damaged or cut short\)"),
        )
        for name in ("w.pt", "w.safetensors", "old.pt")
        for share in (0.5, 0.97)
    },
    "a meta tensor": (
        "w.pt",
        lambda path: torch.save({"w": torch.zeros(2, device="meta")}, path),
        "is a meta tensor",
    ),
    "a sparse tensor": (
        "w.pt",
        lambda path: torch.save({"w": torch.eye(2).to_sparse()}, path),
        "is a sparse_coo tensor",
    ),
    **{
        f"a {layout} nested tensor": (
            "w.pt",
            lambda path, layout=layout: torch.save(
                {"w": torch.nested.nested_tensor([torch.ones(2)], layout=layout)}, path
            ),
            "w is a nested tensor",
        )
        for layout in (torch.strided, torch.jagged)
    },
    "a quantized tensor": (
        "w.pt",
        lambda path: torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path),
        r"(w is a quantized tensor|can not be read as weights)",
    ),
    "a pipe": ("w.pt", lambda path: os.mkfifo(path), SENTENCE.format(reason="it is no regular file")),
    "a device": ("w.pt", lambda path: path.symlink_to("/dev/zero"), SENTENCE.format(reason="it is no regular file")),
    "a folder": ("w.pt", lambda path: path.mkdir(), SENTENCE.format(reason=".*")),
    "nothing": ("w.pt", lambda path: None, "does not exist"),
    "a name too long": ("w" * 300 + ".pt", lambda path: None, SENTENCE.format(reason="File name too long")),
    "zeros": ("w.pt", lambda path: _sparse(path, b""), SENTENCE.format(reason="its first bytes")),
    "no header": (
        "w.safetensors",
        lambda path: _sparse(path, b""),
        SENTENCE.format(reason="its first bytes"),
    ),
    "a header of a gigabyte": (
        "w.safetensors",
        lambda path: _sparse(path, struct.pack("<Q", 4 << 30) + b"{"),
        SENTENCE.format(reason="its first bytes"),
    ),
    "a zip that inflates": ("w.pt", _zip_bomb, SENTENCE.format(reason="it unpacks to more than")),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_no_plain_file_of_weights(what: str, tmp_path: Path) -> None:
    name, make, sentence = REFUSED[what]
    make(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=sentence) as refused:
        read_weights(tmp_path / name, cap=300 << 20 if make is _zip_bomb else 2 << 30)
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10, "KiB; it was judged first"
    assert not Path("/tmp/advkit-was-run").exists()


# ---------------------------------------------------------------------- partial heads


def of_other_classes(**changed: Tensor) -> dict[str, Tensor]:
    weights = {name: torch.full_like(value, 7) for name, value in net().state_dict().items()}
    weights |= {"3.weight": torch.zeros(5, 72), "3.bias": torch.zeros(5)}
    return weights | changed


def test_a_partial_head_leaves_out_the_last_layer_and_lists_it(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    for weights in (
        of_other_classes(),
        {name: value for name, value in of_other_classes().items() if not name.startswith("3.")},
        {name.replace("3.", "head."): value for name, value in of_other_classes().items()},
    ):
        torch.save(weights, path)
        model, told, last = net(), Told(), net()[3].weight.detach()
        with pytest.raises(CheckpointError):
            begin(model, path, init_from=path)
        begin(model, path, init_from=path, partial_head=True, progress=told)
        sentence, unknown = told.sentences
        assert unknown.startswith(f"The images that {path} was trained on are not known here; if held-out")
        assert sentence.startswith(f"Left out of {path}, so that they begin as the model has them: 3.bias, 3.weight")
        assert torch.allclose(model[0].weight, torch.tensor(7.0)) and torch.allclose(model[3].weight, last)


def test_a_partial_head_that_fits_is_taken(tmp_path: Path) -> None:
    path, told, model = tmp_path / "net.pt", Told(), net()
    torch.save({name: torch.full_like(value, 7) for name, value in net().state_dict().items()}, path)
    begin(model, path, init_from=path, partial_head=True, progress=told)
    assert told.sentences[:-1] == [f"Nothing was left out of {path}: all weights fit, those of the last layer, too."]
    assert torch.allclose(model[3].weight, torch.tensor(7.0))


@pytest.mark.parametrize(
    "changed", [{"0.weight": torch.zeros(2, 3, 3, 3)}, {"head.weight": torch.zeros(5, 72), "neck.bias": torch.zeros(5)}]
)
def test_only_the_last_layer_may_be_left_out(changed: dict[str, Tensor], tmp_path: Path) -> None:
    path, model = tmp_path / "net.pt", net()
    torch.save(of_other_classes(**changed), path)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        begin(model, path, init_from=path, partial_head=True)


def test_a_partial_head_wants_weights_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="partial_head is about the weights of init_from"):
        begin(net(), tmp_path, partial_head=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.int64])
def test_numbers_of_another_sort_are_no_weights(dtype: torch.dtype) -> None:
    model, weights = net(), net(1).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = f"3.bias is {str(dtype).removeprefix('torch.')} there and float32 here"
    with pytest.raises(CheckpointError, match=f"{name}; save the state_dict.* of the float model"):
        put(model, weights | {"3.bias": weights["3.bias"].to(dtype)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("value", "fits"), [(5.0, True), (0.5, False), (float("nan"), False)])
def test_a_count_is_taken_from_whole_numbers_alone(value: float, fits: bool) -> None:
    model, weights = net(), net(1).state_dict() | {"1.num_batches_tracked": torch.tensor(value)}
    if not fits:
        with pytest.raises(CheckpointError, match="num_batches_tracked is float32 there and int64 here"):
            put(model, weights)
        return
    put(model, weights)
    assert model[1].num_batches_tracked == 5


@pytest.mark.parametrize(("dtype", "said"), [(torch.float64, True), (torch.bfloat16, False), (torch.float16, False)])
def test_rounding_is_said(dtype: torch.dtype, said: bool, tmp_path: Path) -> None:
    weights = net(1).state_dict()
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    if dtype == torch.float64:
        weights["0.weight"] /= 3
        weights["3.weight"] /= 3
    torch.save(weights, tmp_path / "net.pt")
    told = Told()
    begin(net(), tmp_path / "net.pt", init_from=tmp_path / "net.pt", progress=told)
    sentence = f"{tmp_path}/net.pt: 0.weight and 1 more are rounded from float64 to float32, the model's"
    assert [each for each in told.sentences if "rounded" in each] == [sentence] * said
    if dtype == torch.float64:
        weights["3.weight"] *= 1e200
        torch.save(weights, tmp_path / "net.pt")
        with pytest.raises(CheckpointError, match=r"3\.weight holds numbers beyond float32, the model's type, where"):
            begin(net(), tmp_path / "net.pt", init_from=tmp_path / "net.pt", progress=told)


class Told(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def warn(self, sentence: str) -> None:
        self.sentences.append(sentence)


def begin(model: nn.Module, path: Path, **arguments: Any) -> None:
    """A run of one step whose rate is next to 0."""
    shades = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 8, 8).contiguous()
    images = Dataset("toy", shades, torch.arange(6) % 3, ("a", "b", "c"))
    settings = {"attack.steps": 0, "validation.fraction": 0, "optimizer.lr": 1e-12}
    splits = Splits(images, images, "none")
    advkit.train(model, splits, (), epochs=1, batch_size=6, eps=0.1, settings=settings, **arguments)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("0.std", 0.0, "0 or below"),
        ("1.running_var", -1.0, "below 0"),
        ("1.num_batches_tracked", -1, "below 0"),
        ("1.running_mean", -1.0, ""),
    ],
)
def test_statistics_that_no_images_have_are_refused(name: str, value: float, why: str) -> None:
    net = nn.Sequential(advkit.Normalize((0.5,), (0.25,)), nn.BatchNorm2d(1))
    given = net.state_dict() | {name: torch.full_like(net.state_dict()[name], value)}
    refused = pytest.raises(CheckpointError, match=f"^The weights of the file are damaged: {name} is {why}, which")
    with refused if why else nullcontext():
        put_weights(net, prefixed(MODEL, given), "the file")


@pytest.mark.parametrize(
    ("name", "dtype", "taken"),
    [
        *((name, torch.float8_e4m3fn, True) for name in ("0.mean", "1.running_var", "1.weight")),
        ("1.num_batches_tracked", torch.uint64, True),
        ("1.running_var", torch.uint16, False),
        ("1.weight", torch.uint64, False),
        ("1.weight", torch.float4_e2m1fn_x2, False),
        ("1.num_batches_tracked", torch.bits8, False),
    ],
)
def test_types_are_judged_before_their_numbers(name: str, dtype: torch.dtype, taken: bool) -> None:
    net = nn.Sequential(advkit.Normalize((0.5,), (0.25,)), nn.BatchNorm2d(1))
    own = net.state_dict()[name]
    bits = {torch.float4_e2m1fn_x2: torch.uint8, torch.bits8: torch.uint8}.get(dtype, dtype)
    given = torch.ones_like(own).to(bits)
    given = given if bits == dtype else given.view(dtype)
    refused = pytest.raises(CheckpointError, match=f"{name} is {str(dtype)[6:]} there and .* here; save the state_dict")
    with nullcontext() if taken else refused:
        put_weights(net, prefixed(MODEL, net.state_dict() | {name: given}), "the file")
        assert net.state_dict()[name].eq(1).all()


def test_names_that_others_stand_beside_are_told() -> None:
    """Lightning's `model.` beside the weights of a loss, for a net with names of its own too; a student's teacher."""
    own = nn.Linear(3, 2).state_dict()
    cases = {
        "names stand below model., and criterion.weight stands beside them": ("model", "criterion"),
        "names stand below student. and below teacher.; save alone what is meant": ("student", "teacher"),
        "names stand below ema. and below net., and optim.weight stands beside them": ("net", "ema", "optim"),
    }
    for sentence, heads in cases.items():
        weights = {f"{head}.{name}": value for head in heads for name, value in own.items()}
        weights = {name: value for name, value in weights.items() if name not in ("criterion.bias", "optim.bias")}
        for net, renamed in (
            (nn.Linear(3, 2), dict),
            (nn.Sequential(nn.Linear(3, 2)), lambda them: {f"0.{name}": value for name, value in them.items()}),
        ):
            with pytest.raises(CheckpointError, match=f"^the file: the net's {sentence}"):
                put(net, weights, renamed=renamed)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flipped_bit_is_told_where_the_file_has_a_checksum(tmp_path: Path, checksums: bool) -> None:
    weights, file = net().state_dict(), tmp_path / "net.pt"
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(weights, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(file)[0]["3.weight"], weights["3.weight"])
    content = bytearray(file.read_bytes())
    content[content.index(weights["3.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="it is damaged or cut short") if checksums else nullcontext():
        read_weights(file)
