"""The command line: what it prints where, its exit codes, and every refusal word for word.

Commands run in this process, which is as `advkit` does it but for the start of Python; a few run as one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest
import tomli_w
from hypothesis import given, settings, strategies as st

from advkit import DataError, OptionError, evaluate, load_data, plan
from advkit.cli.main import PLACE, run
from advkit.numerals import VANISHES
from advkit.settings import SECTIONS
from advkit.training.cost import cost_words

SCRIPT = Path(sys.executable).with_name("advkit")

TINY = ["--limit", 60, "--batch-size", 30, "--epochs", 1, "--set", "model.width=2", "--set", "attack.steps=2"]
TINY += ["--set", "validation.steps=2", "--progress", "none"]
"""An epoch in 50 ms."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def advkit(*arguments: object) -> Ran:
    """One command line, each argument a text with or without blanks."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(each) for each in arguments])
    assert "Traceback" not in err.getvalue()
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment that asks for nothing."""
    for name in ("ADVKIT_LOAD_PLUGINS", "ADVKIT_TRACEBACK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "here"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    ran = advkit("train", "--plugins", "cat-eps,dirichlet-ls,lsiw", *TINY, "--epochs", 3, "--out", folder)
    assert ran == (0, "", "")
    return folder


PLUGINS = '''
import torch
import torch.nn.functional as F

from advkit import AttackResult, Budget, OptionError, Plugin, PluginOptions, hookimpl, option

class OtherEps(Plugin):
    """Owns the budget, as cat-eps does."""
    name = "other-eps"
    @hookimpl
    def perturbation_budget(self, batch):
        eps = torch.full((len(batch.y),), 0.1)
        return Budget(attack=eps, label=eps)

class LabelOne(Plugin):
    name = "label-one"
    @hookimpl
    def target_label(self, target):
        return target

class LabelTwo(LabelOne):
    name = "label-two"
    @hookimpl
    def target_label(self, target):
        return target

class Misspelt(Plugin):
    name = "misspelt"
    @hookimpl
    def base_los(self, adv_logits):
        return adv_logits.sum(1)

class Deaf(Plugin):
    name = "deaf"
    @hookimpl
    def inner_attack(self, batch, objective, radius, target):
        return AttackResult(batch.x)

class Watcher(Plugin):
    name = "watcher"
    @hookimpl
    def attack_step(self, batch):
        return torch.ones(len(batch.y), dtype=torch.bool)

class When(PluginOptions):
    step: int = option(1, ge=0, help="when to misbehave")

class Nan(Plugin):
    name = "nan"
    Options = When
    @hookimpl
    def base_loss(self, batch, adv_logits, run):
        loss = F.cross_entropy(adv_logits, batch.y, reduction="none")
        return loss * torch.nan if run.step == self.options.step else loss

class Raises(Plugin):
    name = "raises"
    Options = When
    @hookimpl
    def extra_regularizer(self, batch, adv_logits, run):
        if run.step == self.options.step:
            raise KeyError("what a third party forgot")
        return adv_logits.sum(1)

class Quits(Plugin):
    name = "quits"
    class Options(PluginOptions):
        how: str = option("SystemExit(0)", help="an exception")
    @hookimpl
    def after_update(self):
        from dataclasses import dataclass
        class Mute(Exception):
            def __str__(self):
                raise ValueError
        class Deaf(Exception):
            def __str__(self):
                return "gone"
        class Leaves(SystemExit):
            pass
        @dataclass(frozen=True)
        class Fixed(Exception):
            why: str
            def add_note(self, note):
                raise ValueError
        import asyncio, click
        raise eval(self.options.how)

class Unknowing(Plugin):
    name = "unknowing"
    @hookimpl
    def setup(self, run):
        run.sample_state("last", fill=torch.nan)
        run.sample_state("loss", fill=torch.inf)

class Breaks(Plugin):
    name = "breaks"
    @hookimpl
    def base_loss(self, batch, adv_logits):
        return F.cross_entropy(adv_logits, batch.y)

class Strict(Plugin):
    """Options of every kind."""
    name = "strict"
    class Options(PluginOptions):
        count: int | None = option(None, help="None by default")
        flag: bool = option(False, help="a flag")
        many: list[int] = option([1, 2], help="a list")
        word: str = option("a", help="a text")
'''
NAMES = {
    "other-eps": "OtherEps",
    "label-one": "LabelOne",
    "label-two": "LabelTwo",
    "misspelt": "Misspelt",
    "deaf": "Deaf",
    "watcher": "Watcher",
    "nan": "Nan",
    "raises": "Raises",
    "quits": "Quits",
    "unknowing": "Unknowing",
    "breaks": "Breaks",
    "strict": "Strict",
}

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("acme", source, {"name": "Class"}, group="plugins")`: a distribution acme 1.0 with one module."""

    def make(name: str, source: str, points: dict[str, str], *, group: str = "plugins") -> Path:
        site = tmp_path / f"site-{name}"
        information = site / f"{name}-1.0.dist-info"
        information.mkdir(parents=True)
        module = f"{name}_module"
        lines = [f"{point} = {module}:{attribute}" for point, attribute in points.items()]
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[advkit.{group}]\n" + "\n".join(lines) + "\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return make


@pytest.fixture
def strangers(install: Install) -> Iterator[Path]:
    """The module of a distribution of plugins that misbehave, each in its own way."""
    yield install("strangers", PLUGINS, NAMES) / "strangers_module.py"
    sys.modules.pop("strangers_module", None)


# ---------------------------------------------------------------------- refusals: exit code 2

REFUSALS = [
    # plugins, data sets, models, commands, attacks: unknown
    (
        "plan --plugins cat-ep",
        "Unknown plugin cat-ep. Did you mean cat-eps? `advkit plugins list` shows what is installed.",
    ),
    ("plan --plugins zebra", "Unknown plugin zebra. `advkit plugins list` shows what is installed."),
    (
        "plugins show lsi",
        "Unknown plugin lsi. Did you mean lsiw? `advkit plugins list` shows what is installed.",
    ),
    (
        "plan --dataset digit",
        "Unknown data set digit. Did you mean digits? "
        "Installed: cifar10, cifar100, digits, fashion-mnist, image-folder, mapped, svhn.",
    ),
    (
        "plan --model small-cn",
        "Unknown model small-cn. Did you mean small-cnn? "
        "Installed: preact-resnet18, small-cnn, timm, torchvision, vgg16-bn, wide-resnet, wide-resnet-28-10, "
        "wide-resnet-34-10.",
    ),
    ("trian", "No such command 'trian'. Did you mean train? See `advkit --help`."),
    (
        "plan --epocs 3",
        "No such option '--epocs'. (Did you mean one of: '--epochs', '--eps', '--help'?). See `advkit plan --help`.",
    ),
    ("train anything", "Got unexpected extra argument (anything). See `advkit train --help`."),
    ("plan --plugins awp,awp", "Plugin awp is named twice; name it once."),
    # options and settings: unknown
    (
        "plan --plugins strict -o strict.cuont=1",
        "Unknown option strict.cuont. Did you mean count? Known: count, flag, many, word.",
    ),
    ("plan --set attack.epss=1", "Unknown setting attack.epss. Did you mean attack.eps? `advkit plan` lists them all."),
    ("plan --set optimizer.do_it_all=1", "Unknown setting optimizer.do_it_all. `advkit plan` lists them all."),
    ("plan --set model.widht=4", "Unknown option model.widht. Did you mean width? Known: normalise, width, norm."),
    ("plan --set eps=1", "--set 'eps=1' is not of the form --set section.key=value."),
    ("plan -o eta", "-o 'eta' is not of the form -o plugin.key=value."),
    (
        "plan --plugins lsiw -o cat-eps.eta=0.1",
        "Options are given for cat-eps, which is not in this run. Its plugins: av-rank, awp, lsiw.",
    ),
    (
        "plan --plugins lsiw -o lsi.lam=0.1",
        "Options are given for lsi, which is not in this run. Did you mean lsiw? Its plugins: av-rank, awp, lsiw.",
    ),
    (
        "plan --plugins lsiw --no-companion weight_perturbatio",
        "--no-companion weight_perturbatio declines nothing: the companions of this run answer "
        "instance_weight:lsiw, weight_perturbation. Did you mean weight_perturbation?",
    ),
    (
        "plan --plugins awp --no-companion weight_perturbation",
        "--no-companion weight_perturbation declines nothing: no plugin asks for one.",
    ),
    # values out of range, and no numbers
    ("plan --eps nan", "attack.eps = nan must be a finite number."),
    ("plan --set attack.eps=inf", "attack.eps = inf must be a finite number."),
    ("plan --eps=-0.1", "attack.eps = -0.1 must be greater than or equal to 0."),
    ("plan --eps 8/0", "attack.eps = '8/0' divides by zero."),
    ("plan --eps 1e999/1", "attack.eps = '1e999/1' is too large."),
    *(
        (f"plan {typed}", f"{key} = '{number}' {VANISHES}.")
        for typed, key, number in (
            ("--eps 8/1e500", "attack.eps", "8/1e500"),
            ("--eps 1e-400", "attack.eps", "1e-400"),
            ("--set attack.eps=-1e-400", "attack.eps", "-1e-400"),
            ("--set optimizer.lr=1e-400", "optimizer.lr", "1e-400"),
            ("--plugins cat-eps -o cat-eps.eta=0.001e-400", "cat-eps.eta", "0.001e-400"),
        )
    ),
    ("plan --plugins lsiw -o lsiw.lam=[[0,1e-400]]", f"lsiw.lam = [[0, '1e-400']] {VANISHES}."),
    ("evaluate @RUN --eps 8/1e500", f"--eps 8/1e500 {VANISHES}."),
    ("evaluate @RUN --min-robust 1e-400", f"--min-robust 1e-400 {VANISHES}."),
    (
        "plan --eps 1e999999999/1",
        "attack.eps = '1e999999999/1' is not a number, a fraction such as 8/255, or a multiple of eps such as 'eps/4'.",
    ),
    ("plan --eps eps/2", "attack.eps = 'eps/2' is relative to eps, which is not known here."),
    ("plan --plugins cat-eps -o cat-eps.eta=nan", "cat-eps.eta = nan must be a finite number."),
    ("plan --plugins cat-eps -o cat-eps.eta=0", "cat-eps.eta = 0 must be greater than 0."),
    (
        "plan --plugins cat-eps --eps 0",
        "cat-eps.eta, by default 0.159375 eps, has no allowed value with attack.eps = 0.0; set it, or another "
        "attack.eps.",
    ),
    ("plan --plugins awp -o awp.min_dim=9", "awp.min_dim = 9 must be less than or equal to 4."),
    ("plan --plugins lsiw -o lsiw.distance=l3", "lsiw.distance = 'l3' must be 'l2' or 'kl'."),
    (
        "plan --plugins lsiw -o lsiw.lam=[[1,0.1]]",
        "lsiw.lam = [[1, 0.1]] must start at epoch 0 and have rising epochs.",
    ),
    (
        "plan --plugins dirichlet-ls -o dirichlet-ls.c=100",
        "dirichlet-ls.c = 100 times the largest budget 0.15 is 15: a label can not be smoothed by more than 1; "
        "lower dirichlet-ls.c.",
    ),
    ("plan --epochs 0", "run.epochs = 0 must be greater than or equal to 1."),
    ("plan --epochs 1000000000000", "run.epochs = 1000000000000 must be less than or equal to 10000."),
    ("plan --batch-size 1.5", "run.batch_size = 1.5 must be a valid integer."),
    ("plan --seed=-1", "run.seed = -1 must be greater than or equal to 0."),
    (
        "train --progress loud",
        "Invalid value for '--progress': 'loud' is not one of 'auto', 'rich', 'plain', 'none'. "
        "See `advkit train --help`.",
    ),
    # one setting, two values
    (
        "plan --eps 8/255 --set attack.eps=0.1",
        "--eps 8/255 and --set attack.eps=0.1 differ; they are the same setting, give one.",
    ),
    (
        "plan --batch-size 8 --set run.batch_size=9",
        "--batch-size 8 and --set run.batch_size=9 differ; they are the same setting, give one.",
    ),
    ("plan --set run.seed=1 --set run.seed=2", "--set gives run.seed twice, 1 and 2; give it once."),
    # plugins that do not go together
    (
        "plan --plugins cat-eps,other-eps",
        "Plugins cat-eps and other-eps both own perturbation_budget, which takes one owner; leave one of them out.",
    ),
    (
        "plan --plugins label-two,label-one",
        "Plugins label-one and label-two both change target_label and neither declares its place; "
        "set order.target_label=label-one,label-two or order.target_label=label-two,label-one.",
    ),
    (
        "plan --plugins cat-eps --plugins awp",
        "--plugins is given 2 times; give all in one, --plugins A,B. See `advkit plan --help`.",
    ),
    (
        "ablate --plugins awp --seeds 1, --seeds 2,",
        "--seeds is given 2 times; give all in one, --seeds A,B. See `advkit ablate --help`.",
    ),
    (
        "evaluate @RUN --attacks clean --eps 0.1 --attacks pgd-2",
        "--attacks is given 2 times; give all in one, --attacks A,B. See `advkit evaluate --help`.",
    ),
    (
        "plan --plugins misspelt",
        "Plugin misspelt marks base_los as a hook, but there is no such hook. Did you mean base_loss? "
        "docs/hooks.md lists them.",
    ),
    (
        "plan --plugins deaf,watcher",
        "Plugin watcher observes attack steps, but the inner attack deaf declares that it asks no observers; "
        "leave one of them out.",
    ),
    (
        "plan --plugins av-rank",
        "Plugin av-rank weighs the term lsiw, which no chosen plugin adds; the terms of this run are base_loss.",
    ),
    (
        "plan --set order.base_loss=awp",
        "order.base_loss orders nothing; only chained hooks have an order: train_dataset, target_label, attack_move.",
    ),
    # evaluate
    (
        "evaluate @RUN --attacks clean,pgd-5 --eps-l2 0.3",
        "No attack is in l2, so --eps-l2 would change nothing; leave it out, or add one such as pgd-20-l2.",
    ),
    (
        "evaluate @RUN --attacks pgdd-20",
        "Unknown attack pgdd-20. Did you mean pgd-20? Known: clean, fgsm, pgd-K, pgd-KxR, pgd-K-l2, pgd-K-linf, cw-K, "
        "cw-KxR, cw-K-l2, cw-K-linf, square, transfer:RUN, deepfool, fab-t, apgd-ce, apgd-t, autoattack.",
    ),
    (
        "evaluate @RUN --attacks pgd-2,pgd-2",
        "--attacks 'pgd-2,pgd-2' must name one or more attacks, each once, such as clean,pgd-20,cw-20.",
    ),
    ("evaluate @RUN --eps nan", "--eps nan must be a finite number >= 0, or a fraction such as 8/255."),
    ("evaluate @RUN --eps 1e999", "--eps 1e999 must be a finite number >= 0, or a fraction such as 8/255."),
    ("evaluate @RUN --n=-1", "--n -1 must be a whole number >= 0."),
    (
        "evaluate @RUN --split tset",
        "Invalid value for '--split': 'tset' is not one of 'test', 'train'. See `advkit evaluate --help`.",
    ),
    # plan, of what train refuses once the data are there
    (
        "plan --set data.size=16",
        "data.size is of pictures that image-folder decodes, and digits has images; leave it at 0.",
    ),
    (
        "plan --set data.transform=resized-crop-flip",
        "data.transform = resized-crop-flip is done when pictures are decoded (image-folder with data.size), and not "
        "all of these are; take crop-flip, or none.",
    ),
    ("plan --limit 3", "A limit of 3 images is below the number of classes; take at least 10."),
    ("plan --set validation.fraction=0.9999", "validation.fraction leaves nothing to train on; lower it."),
    ("plan --set run.device=gpu", "run.device = 'gpu' must be a device of torch, such as cpu, cuda or cuda:0."),
    (
        "plan --plugins cutmix -o cutmix.window=9",
        "cutmix.window = 9 is larger than the images (8 x 8), which would be replaced whole; give a side below theirs.",
    ),
    # train, once the data are there
    (
        "train --limit 3",
        "A limit of 3 images is below the number of classes; take at least 10.",
    ),
    (
        "train --data-root /data",
        "digits is part of advkit and reads no files; leave --data-root /data out.",
    ),
    ("train --dataset image-folder", "image-folder reads your files; name the folder or zip with --data-root DIR."),
    ("plan -epochs=3", "No such option '-e'. Did you mean --epochs? See `advkit plan --help`."),
    ("plan epochs 3", "Got unexpected extra arguments (epochs 3). Did you mean --epochs? See `advkit plan --help`."),
    ("plan cat-eps", "Got unexpected extra argument (cat-eps). See `advkit plan --help`."),
    ("plan --plugins wap", "Unknown plugin wap. Did you mean awp? `advkit plugins list` shows what is installed."),
    ("plan --plugins tb", "Unknown plugin tb. Did you mean te? `advkit plugins list` shows what is installed."),
    ("plan -e 3", "No such option '-e'. See `advkit plan --help`."),
    (
        "plan --set data.transform=crop-flop",
        "data.transform = 'crop-flop' must be 'auto', 'none', 'crop-flip' or 'resized-crop-flip'.",
    ),
    (
        "train --set run.device=meta",
        "run.device = 'meta' is a device whose tensors hold no values; take cpu, cuda or cuda:0.",
    ),
    (
        "train --limit 20 --set data.balance=true --set validation.fraction=0.99",
        "validation.fraction leaves nothing to train on; lower it.",
    ),
    (
        "train --out @RUN",
        "@RUN holds files already; continue it with `advkit train --resume @RUN`, or choose another --out.",
    ),
    ("train --out @FILE", "@FILE can not be used (it is no folder); choose another --out."),
    (
        "train --resume @RUN --out elsewhere",
        "--resume continues a run as it is; leave --out, --init-from and the others out.",
    ),
    (
        "train --resume @RUN --config @FILE",
        "--resume takes its settings from the run; leave --config, --recipe and --no-companion out.",
    ),
    (
        "plan --config missing.toml",
        "missing.toml can not be read (No such file or directory); give an existing run file.",
    ),
]


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(("line", "sentence"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_refusals_word_for_word(line: str, sentence: str, finished: Path, here: Path) -> None:
    file = here / "file"
    file.touch()
    line, sentence = (text.replace("@RUN", str(finished)).replace("@FILE", str(file)) for text in (line, sentence))
    quiet = ["--progress", "none"] if line.startswith("train --") and "--progress" not in line else []
    ran = advkit(*line.split(), *quiet)
    assert ran == (2, "", f"Error: {sentence}\n")
    assert [path for path in here.rglob("*") if path.is_file()] == [file], "a refusal writes nothing"


@pytest.mark.parametrize("command", [(), ("plugins",)])
def test_a_group_without_a_command_shows_its_help(command: tuple[str, ...]) -> None:
    ran = advkit(*command)
    assert ran.code == 2 and ran.out == "" and ran.err.startswith("Usage: advkit")


def test_an_unknown_recipe_is_refused() -> None:
    ran = advkit("plan", "--recipe", "zebra")
    assert refused_in_a_sentence(ran) and "recipe zebra" in ran.err


def test_one_setting_may_be_spelt_twice_the_same() -> None:
    """The negative control of the refusal of two values."""
    for twice in ("8/255", "0.03137254901960784"):
        ran = advkit("plan", "--eps", "8/255", "--set", f"attack.eps={twice}", "--json")
        assert ran.code == 0 and json.loads(ran.out)["settings"]["attack.eps"]["value"] == 8 / 255


@pytest.mark.usefixtures("strangers")
def test_an_order_settles_an_ambiguous_chain() -> None:
    ran = advkit(
        "plan", "--plugins", "label-one,label-two", "--set", "order.target_label=label-two,label-one", "--json"
    )
    assert ran.code == 0 and json.loads(ran.out)["hooks"]["target_label"] == ["label-two", "label-one"]


def test_two_distributions_with_one_plugin_name(install: Install) -> None:
    install("acme", PLUGINS, {"awp": "OtherEps"})
    ran = advkit("plan", "--plugins", "lsiw")  # awp comes as its companion
    assert ran == (2, "", "Error: The plugin name awp is registered by acme and advkit; uninstall one of them.\n")
    assert advkit("plan", "--plugins", "cat-eps").code == 0, "who does not name it is not concerned"
    listed = json.loads(advkit("plugins", "list", "--json").out)
    assert [each["distribution"] for each in listed if each["name"] == "awp"] == ["acme", "advkit"]


def test_two_distributions_with_one_data_set_or_model_name(install: Install) -> None:
    install("acme", "", {"digits": "Digits"}, group="datasets")
    install("bcme", "", {"small-cnn": "Net"}, group="models")
    ran = advkit("plan")
    assert ran == (2, "", "Error: The data set name digits is registered by acme and advkit; uninstall one of them.\n")
    ran = advkit("plan", "--dataset", "image-folder")
    assert ran == (2, "", "Error: The model name small-cnn is registered by advkit and bcme; uninstall one of them.\n")


def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = (
        "Error: WORLD_SIZE is 2, but RANK is not set: start several processes with torchrun, or unset WORLD_SIZE.\n"
    )
    assert advkit("train", *TINY) == (2, "", sentence)
    assert not list(here.iterdir())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert advkit("train", "--dry-run", *TINY).code == 0


def test_what_is_of_one_process_says_so(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = "Error: advkit report runs in one process; start it without torchrun.\n"
    assert advkit("report", "runs/1") == (2, "", sentence)
    sentence = "Error: --dry-run and --print-config are of one process; start them without torchrun.\n"
    assert advkit("train", "--dry-run", *TINY) == (2, "", sentence)
    monkeypatch.setenv("RANK", "1")
    assert advkit("train", "--print-config", *TINY).err == sentence.replace("Error", "Error in process 1")


def test_only_allowed_plugins_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVKIT_LOAD_PLUGINS", "lsiw, av-rank")
    ran = advkit("plan", "--plugins", "lsiw")
    sentence = "Error: The plugin awp may not be loaded: ADVKIT_LOAD_PLUGINS allows only 'lsiw, av-rank'.\n"
    assert ran == (2, "", sentence), "companions are plugins too"
    assert advkit("plan", "--plugins", "lsiw", "--no-companion", "weight_perturbation").code == 0
    monkeypatch.setenv("ADVKIT_LOAD_PLUGINS", "")
    assert advkit("plan", "--plugins", "lsiw").code == 2
    assert advkit("plan").code == 0
    monkeypatch.delenv("ADVKIT_LOAD_PLUGINS")
    assert advkit("plan", "--plugins", "lsiw").code == 0


# ---------------------------------------------------------------------- exit code 4: data, files, imports


def test_absent_data(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    ran = advkit("train", "--dataset", "image-folder", "--data-root", absent, *TINY)
    assert ran == (4, "", f"Error: {absent} does not exist; check the path.\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class Broken(:", "SyntaxError: invalid syntax (acme_module.py, line 1)"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: module 'acme_module' has no attribute 'Broken'"),
    ],
)
def test_a_plugin_that_can_not_be_imported(install: Install, source: str, reason: str) -> None:
    install("acme", source, {"broken": "Broken"})
    sentence = f"The plugin broken of distribution acme can not be imported ({reason}); reinstall or repair it."
    for line in (["plan", "--plugins", "broken"], ["plugins", "show", "broken"]):
        assert advkit(*line) == (4, "", f"Error: {sentence}\n")
    (listed,) = [each for each in json.loads(advkit("plugins", "list", "--json").out) if each["name"] == "broken"]
    assert listed["distribution"] == "acme"


def test_an_entry_point_that_is_no_plugin(install: Install) -> None:
    install("acme", PLUGINS, {"misnamed": "OtherEps"})
    ran = advkit("plan", "--plugins", "misnamed")
    assert ran.code == 4 and ran.err == (
        "Error: The plugin misnamed is registered as acme_module:OtherEps, which is not a class with "
        "name = 'misnamed'; correct its entry point.\n"
    )


def test_damaged_distributions_do_not_hinder_the_others(install: Install) -> None:
    """`plugins list` reads strangers' files: whatever they hold, everybody else is listed."""
    for number, (source, value) in enumerate(
        [
            ("class A(B): pass\nclass B(A): pass", "acme0_module:A"),
            ("x = " + "(" * 3000 + ")" * 3000, "acme1_module:A"),
            ("a\0b", "acme2_module:A"),
            ("", ":::"),
            ("", ""),
            ("", "acme5_module"),
            ("", "os.path:join.x"),
        ]
    ):
        site = install(f"acme{number}", source, {})
        file = site / f"acme{number}-1.0.dist-info" / "entry_points.txt"
        file.write_text(f"[advkit.plugins]\nacme{number} = {value}\n")
    (site / "acme6-1.0.dist-info" / "METADATA").unlink()
    ran = advkit("plugins", "list", "--json")
    listed = {each["name"]: each for each in json.loads(ran.out)}
    assert ran.code == 0 and {"awp", *(f"acme{n}" for n in range(7))} <= listed.keys()
    assert listed["acme0"]["hooks"] == [] and listed["acme3"]["hooks"] is None
    assert listed["acme6"]["distribution"] == "unknown"
    assert advkit("plugins", "list").code == 0 and advkit("plan", "--plugins", "awp").code == 0


@pytest.mark.parametrize("line", ["evaluate", "train --resume", "train --init-from"])
def test_no_run_folder(line: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reasons = {"absent": "it does not exist", "": "it has no run.toml", "file": "it is a file"}
    if "init-from" in line:
        del reasons["file"]  # which may be one of weights
    for name, why in reasons.items():
        folder = tmp_path / name
        ran = advkit(*line.split(), folder, *(["--progress", "none"] if "train" in line else []))
        if name == "file" and "--init-from" in line:  # which may be a file of weights
            assert ran.code == 4 and f"{folder} can not be read as weights" in ran.err
            continue
        said = f"is not a run folder: {why}. Give the folder of a run."
        if name == "absent" and "--init-from" in line:  # likewise
            said = "does not exist; give a file of weights, or the folder of a run."
        assert ran == (4, "", f"Error: {folder} {said}\n")


def test_the_folder_of_an_export_is_no_run(tmp_path: Path) -> None:
    """Its weights are a file in it, as those of a teacher are."""
    (tmp_path / "model.safetensors").touch()
    said = f"{tmp_path} is an export and no run; give its file of weights, {tmp_path}/model.safetensors."
    for line in (["evaluate"], ["train", *TINY, "--progress=none", "--init-from"]):
        assert advkit(*line, tmp_path) == (4, "", f"Error: {said}\n")
    ran = advkit("plan", "--plugins", "rslad", "-o", f"rslad.teacher={tmp_path}")
    assert (ran.code, said in ran.err + ran.out) == (4, True)


def copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to, symlinks=True))


def test_a_damaged_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "run")
    file = (folder / "checkpoints" / "best").resolve() / "tensors.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)
    sentence = (
        f"{folder}/checkpoints/{file.parent.name}/tensors.safetensors is damaged (its size or SHA-256 is not that of "
        f"manifest.json); remove {file.parent.name} to resume from an earlier one, or read another "
        "checkpoint, best or last."
    )
    assert advkit("evaluate", folder, "--json") == (4, "", f"Error: {sentence}\n")
    ran = advkit("train", "--init-from", folder, *TINY)
    assert ran == (4, "", f"Error: {sentence}\n")


def test_a_run_without_a_checkpoint_yet(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_bytes((finished / "run.toml").read_bytes())
    ran = advkit("evaluate", folder)
    sentence = f"{folder} has no checkpoint 'best' yet; let it train until an epoch that is validated."
    assert ran == (4, "", f"Error: {sentence}\n")
    for name in ("first", "step-00000001", "../x"):
        with pytest.raises(OptionError, match=f"^checkpoint = '{name}' must be 'last' or 'best'.$"):
            evaluate(finished, checkpoint=name)


@pytest.mark.parametrize("text", ["plugins = 3", "[[[", "\0", "[run]\nepochs = 'x'", "[runn]\nepochs = 1", "é\xff"])
def test_a_damaged_run_file_in_a_run_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(text.encode("latin-1"))
    ran = advkit("evaluate", tmp_path)
    assert ran.code in (2, 4) and ran.out == "" and ran.err.startswith("Error: ") and ran.err.count("\n") == 1


# ---------------------------------------------------------------------- exit code 1: the run failed


@pytest.mark.usefixtures("strangers")
def test_nan_stops_the_run_at_its_step(here: Path) -> None:
    ran = advkit("train", "--plugins", "nan", *TINY, "--out", "run")
    assert ran == (
        1,
        "",
        "Error: NaN or Inf in the loss (term base_loss) at epoch 1, step 2. The step was not applied; "
        "lower optimizer.lr or look at the options of the plugins in this run.\n",
    )
    assert advkit("train", "--plugins", "nan", "-o", "nan.step=99", *TINY, "--out", "fine").code == 0


def test_an_exception_in_a_hook_names_plugin_hook_epoch_and_step(
    strangers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = PLUGINS.splitlines().index('            raise KeyError("what a third party forgot")') + 1
    ran = advkit("train", "--plugins", "raises", *TINY, "--epochs", 2)
    assert ran == (
        1,
        "",
        f"Error: KeyError: 'what a third party forgot' ({strangers}, line {line}; in plugin "
        "raises, hook extra_regularizer, epoch 1, step 2). ADVKIT_TRACEBACK=1 shows the traceback.\n",
    )
    monkeypatch.setenv("ADVKIT_TRACEBACK", "1")
    with pytest.raises(KeyError, match="forgot"):
        advkit("train", "--plugins", "raises", *TINY)


@pytest.mark.usefixtures("strangers")
def test_a_broken_contract_names_the_plugin() -> None:
    ran = advkit("train", "--plugins", "breaks", *TINY)
    assert ran.code == 1 and ran.err == (
        "Error: Plugin breaks broke the contract of base_loss: the term must be (30,) floating point, not () float32. "
        "See docs/hooks.md.\n"
    )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("SystemExit(0)", "RuntimeError: SystemExit: 0"),
        ("BrokenPipeError(32, 'gone')", "BrokenPipeError: [Errno 32] gone"),
        ("click.exceptions.Exit(0)", "Exit: 0"),
        ("asyncio.CancelledError('gone')", "CancelledError: gone"),
        ("Mute()", "Mute"),
        ("Deaf()", "Deaf: gone"),
        ("Leaves(0)", "Leaves: 0"),
        ("Fixed('gone')", "Fixed: gone"),
    ],
)
def test_a_plugin_does_not_end_a_run_quietly(strangers: Path, how: str, said: str) -> None:
    """click would exit with 0, 1 or 2 for some, and say nothing; others can not be shown, or take no notes."""
    ran = advkit("train", "--plugins", "quits", "-o", f"quits.how={how}", *TINY)
    assert (ran.code, ran.out) == (1, "") and ran.err.startswith(f"Error: {said} ({strangers}, line ")
    assert "; in plugin quits, hook after_update, epoch 1, step 1). ADV" in ran.err


@pytest.mark.usefixtures("strangers")
def test_state_that_is_not_finite_is_a_plugins_own_affair(here: Path) -> None:
    assert advkit("train", "--plugins", "unknowing", *TINY, "--out", "run") == (0, "", "")
    assert json.loads((here / "run" / "metrics.jsonl").read_text())["state"] == {
        "unknowing/last": {},
        "unknowing/loss": {},
    }


# ---------------------------------------------------------------------- fuzz: never a traceback

NUMBERS = [
    f"{section}.{name}"
    for section, kind in SECTIONS.items()
    for name, field in kind.model_fields.items()
    if field.annotation in (int, float)
] + ["cat-eps.eta", "cat-eps.eps_max", "dirichlet-ls.c", "lsiw.lam", "awp.gamma", "awp.min_dim"]
NO_NUMBERS = ["nan", "inf", "-inf", "-1", "1e400", "1e999/1", "true", "[]", "{}", "''", "", "8/0", "0x", "1_", "--1"]
NO_NUMBERS += ["one", "1;2", "2020-01-01", "٣", "½", "\x1b[31m", "[bold]", "1\n2", "9" * 400, "(" * 3000, "[" * 3000]
ALL = "cat-eps,dirichlet-ls,lsiw"


def plan_with(key: str, value: str) -> Ran:
    section = key.partition(".")[0]
    return advkit("plan", "--plugins", ALL, "--set" if section in {*SECTIONS, "model"} else "-o", f"{key}={value}")


def refused_in_a_sentence(ran: Ran) -> bool:
    lines = ran.err.splitlines()
    return ran.code == 2 and not ran.out and len(lines) == 1 and lines[0].startswith("Error: ") and len(ran.err) < 4000


@settings(deadline=None, max_examples=80)
@given(key=st.sampled_from(NUMBERS), value=st.sampled_from(NO_NUMBERS))
def test_no_number_is_refused(key: str, value: str) -> None:
    assert refused_in_a_sentence(plan_with(key, value))


@settings(deadline=None, max_examples=60)
@given(
    key=st.one_of(st.sampled_from([*NUMBERS, "data.name", "run.device", "order.target_label"]), st.text(max_size=20)),
    value=st.one_of(st.text(max_size=40), st.sampled_from(NO_NUMBERS), st.floats().map(str), st.integers().map(str)),
)
def test_any_setting_is_taken_or_refused(key: str, value: str) -> None:
    ran = plan_with(key, value)
    assert ran.code == 0 or refused_in_a_sentence(ran)


FLAGS = ("--plugins", "--dataset", "--data-root", "--limit", "--model", "--epochs", "--batch-size", "--eps", "--seed")


@settings(deadline=None, max_examples=60)
@given(flag=st.sampled_from(FLAGS), value=st.one_of(st.text(max_size=40), st.sampled_from(NO_NUMBERS)))
def test_any_flag_is_taken_or_refused(flag: str, value: str) -> None:
    ran = advkit("plan", f"{flag}={value}")
    assert ran.code == 0 or refused_in_a_sentence(ran)


toml = st.recursive(
    st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=4,
)


@settings(deadline=None, max_examples=60)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.dictionaries(
            st.one_of(
                st.sampled_from([*SECTIONS, "plugins", "options", "order", "format", "companions"]), st.text(max_size=8)
            ),
            st.one_of(
                toml,
                st.dictionaries(st.sampled_from(["eps", "name", "lr", "lsiw", "seed", "norm"]), toml, max_size=3),
                st.lists(st.sampled_from(["awp", "lsiw", "cat-eps"]), max_size=3),
            ),
            max_size=4,
        ).map(lambda table: tomli_w.dumps(table).encode()),
    )
)
def test_any_run_file_is_taken_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    ran = advkit("plan", "--config", file)
    assert ran.code == 0 or refused_in_a_sentence(ran)


# ---------------------------------------------------------------------- what is imported

CANARY = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()
from advkit import Plugin

class Canary(Plugin):
    name = "canary-{number}"
"""


def test_only_named_plugins_are_imported(install: Install, tmp_path: Path) -> None:
    for number in range(5):
        install(f"nest{number}", CANARY.format(number=number), {f"canary-{number}": "Canary"})
    install("nest5", CANARY, {"canary-data": "Canary"}, group="datasets")
    install("nest6", CANARY, {"canary-model": "Canary"}, group="models")
    for line in (
        ["--help"],
        ["plugins", "list"],
        ["plugins", "list", "--json", "--hook", "base_loss"],
        ["plugins", "show", "awp"],
        ["plan", "--plugins", "cat-eps,dirichlet-ls,lsiw"],
        ["train", "--plugins", "awp", *TINY, "--out", "run"],
        ["train", "--resume", "run"],
        ["evaluate", "run", "--attacks", "clean"],
    ):
        assert advkit(*line).code == 0
        assert not list(tmp_path.rglob("*.imported")), line
    assert advkit("plan", "--plugins", "canary-3").code == 0
    assert [path.stem for path in tmp_path.rglob("*.imported")] == ["nest3_module"]


def test_help_and_the_list_of_plugins_do_without_torch() -> None:
    program = """
import sys
from advkit.cli.main import run
for line in ("--help", "plugins list", "plugins list --json", "train --help", "--version", "unknown"):
    run(line.split())
    heavy = {"torch", "numpy", "pydantic", "advkit_plugins"} & sys.modules.keys()
    print("HEAVY", sorted(heavy), line, file=sys.stderr)
import advkit.options
print("HEAVY", "pydantic" in sys.modules, file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = [line for line in ran.stderr.splitlines() if line.startswith("HEAVY")]
    assert all(line.startswith("HEAVY []") for line in heavy[:-1]), heavy
    assert len(heavy) == 7 and heavy[-1] == "HEAVY True"


def test_a_tilde_that_the_shell_has_left_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in --out=~/runs; from Python and in run files as well."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PLACE.convert("~/runs/x", None, None) == str(tmp_path / "runs/x")
    (tmp_path / "data").mkdir()
    for name in ("fashion-mnist", "cifar10"):
        with pytest.raises(DataError, match=re.escape(str(tmp_path / "data"))):
            load_data(name, "~/data")


def test_places_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder, and every folder for temporary files, which torch asks for in its own time."""

    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as patch:
        patch.setattr("advkit.training.plan.plan", gone)
        ran = advkit("plan")
        patch.setattr("advkit.studies.plan.planned", gone)
        with pytest.raises(DataError, match="No folder for temporary files can be used; set TMPDIR"):
            plan()
    sentence = "Error: No folder for temporary files can be used; set TMPDIR to one that can be written.\n"
    assert (ran.code, ran.err) == (4, sentence)
    monkeypatch.setattr(os, "getcwd", gone)
    ran = advkit("plan")
    assert (ran.code, ran.err) == (4, "Error: The working folder has been deleted; change to one that is there.\n")


def test_the_console_script_and_a_reader_that_goes_away() -> None:
    ran = subprocess.run([SCRIPT, "trian"], capture_output=True, text=True, check=False)
    sentence = "Error: No such command 'trian'. Did you mean train? See `advkit --help`.\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", sentence)
    for line in (["plugins", "list", "--json"], ["plugins", "list"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        gone = subprocess.run([SCRIPT, *line], stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert gone.returncode == 0 and gone.stderr == b"", line


# ---------------------------------------------------------------------- data on stdout


def test_plugins_list() -> None:
    listed = json.loads(advkit("plugins", "list", "--json").out)
    assert [set(each) for each in listed] == [{"name", "distribution", "version", "hooks", "summary"}] * len(listed)
    by_name = {each["name"]: each for each in listed}
    assert list(by_name) == sorted(by_name) and {"av-rank", "awp", "cat-eps", "dirichlet-ls", "lsiw"} <= by_name.keys()
    assert by_name["cat-eps"] == {
        "name": "cat-eps",
        "distribution": "advkit",
        "version": "0.1.0",
        "hooks": ["commit_attack", "perturbation_budget", "setup"],
        "summary": "Per-sample perturbation budget that grows by eta a visit and restarts at 0 when the attack "
        "succeeds (CAT).",
    }
    chosen = json.loads(advkit("plugins", "list", "--hook", "weight_perturbation", "--json").out)
    assert [each["name"] for each in chosen] == ["awp", "rwp"]
    plain = advkit("plugins", "list")
    assert plain.err == "" and all(name in plain.out for name in by_name)


def test_what_is_listed_is_what_an_import_would_say() -> None:
    for each in json.loads(advkit("plugins", "list", "--json").out):
        shown = json.loads(advkit("plugins", "show", each["name"], "--json").out)
        assert sorted(shown["hooks"]) == each["hooks"] and shown["summary"] == each["summary"]


def test_plugins_show() -> None:
    shown = json.loads(advkit("plugins", "show", "lsiw", "--json").out)
    assert {"name", "distribution", "version", "summary", "hooks", "options", "prefers", "companions"} <= shown.keys()
    assert shown["hooks"] == ["extra_regularizer"]
    assert shown["options"]["lam"]["default"] == 0.1 and shown["options"]["distance"]["default"] == "l2"
    assert shown["companions"]["weight_perturbation"] == {
        "plugin": "awp",
        "options": {"gamma": 0.007, "loss": "adv_ce"},
    }
    cat = json.loads(advkit("plugins", "show", "cat-eps", "--json").out)
    assert cat["options"]["eta"]["unit"] == "pixels in [0, 1]" and cat["prefers"]["attack.init"] == "zero"
    plain = advkit("plugins", "show", "cat-eps")
    assert plain.err == "" and "eps_max" in plain.out
    assert shown["options"]["lam"]["symbol"] == "λ" and "  λ  " in advkit("plugins", "show", "lsiw").out
    assert "paper" not in advkit("models", "show", "small-cnn").out, "no column where nothing would stand in it"


def test_plan_folds_what_nobody_has_changed() -> None:
    short, whole = advkit("plan", "--seed", "3").out, advkit("plan", "--seed", "3", "--defaults").out
    rows = [line.split()[0] for line in short.splitlines() if "." in line.split(" ")[0]]
    assert rows == ["run.seed", "attack.eps"] and "optimizer.momentum" in whole and "defaults" not in whole
    folded = len(json.loads(advkit("plan", "--json").out)["settings"]) - len(rows)
    assert f"\n{folded} settings are their defaults; `advkit plan --defaults` shows them.\n" in short


@pytest.mark.parametrize(
    ("steps", "said"),
    [(10, "1.00 x PGD-AT with 10 steps"), (1, "1.00 x PGD-AT with 1 step"), (0, "1.00 x standard training")],
)
def test_a_cost_says_what_it_is_relative_to(steps: int, said: str) -> None:
    assert cost_words(json.loads(advkit("plan", "--set", f"attack.steps={steps}", "--json").out)) == said


PLAN_KEYS = {"hooks", "companions", "cautions", "settings", "state", "passes", "stages"}


def test_plan_of_the_users_sentence() -> None:
    ran = advkit("plan", "--plugins", "cat-eps,dirichlet-ls,lsiw", "--json")
    plan = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert plan.keys() == PLAN_KEYS | {
        "plugins",
        "rules",
        "relative_cost",
        "state_bytes",
        "at_epochs",
        "modules",
        "standard",
    }
    assert plan["plugins"] == ["av-rank", "awp", "cat-eps", "dirichlet-ls", "lsiw"]
    assert plan["hooks"] == {
        "perturbation_budget": ["cat-eps"],
        "commit_attack": ["cat-eps"],
        "setup": ["cat-eps"],
        "target_label": ["dirichlet-ls"],
        "weight_perturbation": ["awp"],
        "extra_regularizer": ["lsiw"],
        "instance_weight": ["av-rank"],
    }
    assert plan["companions"] == {
        "awp": {"hook": "weight_perturbation", "for": "lsiw"},
        "av-rank": {"hook": "instance_weight:lsiw", "for": "lsiw"},
    }
    passes = {"attack": {"forward": 11, "input_backward": 10}, "update": {"forward": 3, "full_backward": 3}}
    assert plan["passes"] == passes and plan["stages"] == [{"from_epoch": 0, "passes": passes}]
    assert plan["relative_cost"] == pytest.approx((11 + 10 + 3 + 2 * 3) / (10 + 10 + 1 + 2), abs=1e-4)
    assert plan["state"] == ["cat-eps/eps"]
    assert plan["state_bytes"] == {"cat-eps/eps": {"per_sample": 4, "total": 4 * 1258}}
    assert "av-rank ranks AV_i / radius_i, because cat-eps sets a radius per sample" in plan["cautions"]
    found = plan["settings"]
    assert all(each.keys() == {"value", "from"} for each in found.values())
    assert found["attack.eps"] == {"value": 0.15, "from": "data set digits"}
    assert found["attack.init"] == {"value": "zero", "from": "plugin cat-eps"}
    assert found["attack.steps"] == {"value": 10, "from": "default"}
    assert found["awp.gamma"] == {"value": 0.007, "from": "companion of lsiw"}
    # CAT's constants, which are for 8/255, follow the run's eps.
    assert found["cat-eps.eps_max"]["value"] == 0.15
    assert found["cat-eps.eta"]["value"] == pytest.approx(0.005 * 255 / 8 * 0.15)
    assert found["dirichlet-ls.c"]["value"] == pytest.approx(10 * 8 / 255 / 0.15)


def test_plan_of_a_schedule_and_of_settings_from_everywhere(here: Path) -> None:
    (here / "a.toml").write_text('plugins = ["lsiw"]\n[attack]\neps = 0.1\n[options.awp]\ngamma = 0.02\n')
    ran = advkit(
        "plan", "--config", "a.toml", "-o", "lsiw.lam=[[0, 0], [5, 0.1]]", "--epochs", 8, "--set", "attack.steps=3",
        "--no-companion", "instance_weight:lsiw", "--json",
    )  # fmt: skip
    plan = json.loads(ran.out)
    assert [(each["from_epoch"], each["passes"]["update"]) for each in plan["stages"]] == [
        (0, {"forward": 2, "full_backward": 2}),
        (5, {"forward": 3, "full_backward": 3}),
    ]
    assert plan["passes"] == plan["stages"][1]["passes"], "the dearest stage"
    assert plan["companions"] == {"awp": {"hook": "weight_perturbation", "for": "lsiw"}}
    found = plan["settings"]
    assert found["attack.eps"] == {"value": 0.1, "from": "file a.toml"}
    assert found["awp.gamma"] == {"value": 0.02, "from": "file a.toml"}
    assert found["awp.loss"] == {"value": "adv_ce", "from": "companion of lsiw"}
    assert found["lsiw.lam"] == {"value": [[0, 0.0], [5, 0.1]], "from": "command line"}
    assert found["run.epochs"] == {"value": 8, "from": "command line"}
    plain = advkit("plan", "--config", "a.toml")
    assert plain.err == "" and "awp (added by lsiw)" in plain.out


EVALUATION_KEYS = {"run", "checkpoint", "split", "n", "attacks", "worst_case"}


def test_evaluate(finished: Path) -> None:
    ran = advkit("evaluate", finished, "--attacks", "clean,fgsm,pgd-2,cw-2", "--n", 50, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert found.keys() >= EVALUATION_KEYS | {"epoch", "selected_on", "norm", "suspect", "versions", "robustbench"}
    expected = {"run": str(finished), "checkpoint": "best", "split": "test", "n": 50, "selected_on": "validation"}
    assert expected.items() <= found.items()
    clean, *attacked = found["attacks"]
    assert clean.keys() >= {"name", "eps", "accuracy", "interval"} and (clean["name"], clean["eps"]) == ("clean", 0)
    for row, name, steps, size in zip(attacked, ("fgsm", "pgd-2", "cw-2"), (1, 2, 2), (0.15, 0.03, 0.03), strict=True):
        assert row.keys() >= {"name", "eps", "steps", "step_size", "accuracy", "interval", "passes", "seconds"}
        assert (row["name"], row["eps"], row["steps"]) == (name, 0.15, steps)
        assert row["step_size"] == pytest.approx(size)
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
    assert found["worst_case"].keys() == {"accuracy", "interval"}
    assert found["worst_case"]["accuracy"] <= min(row["accuracy"] for row in found["attacks"])
    assert advkit("evaluate", finished, "--attacks", "clean,fgsm,pgd-2,cw-2", "--n", 50, "--json") == ran
    other = json.loads(
        advkit(
            "evaluate", finished, "--attacks", "pgd-2", "--eps", "8/255", "--checkpoint", "last", "--split", "train",
            "--n", 0, "--json",
        ).out
    )  # fmt: skip
    assert (other["checkpoint"], other["split"], other["n"], other["epoch"]) == (
        "last",
        "train",
        54,
        2,
    ), "without the six that were held out"
    assert other["attacks"][0]["eps"] == 8 / 255
    plain = advkit("evaluate", finished, "--attacks", "clean,pgd-2", "--n", 50)
    assert plain.code == 0 and plain.err == "" and "worst case" in plain.out


def test_a_test_split_that_chose_is_reported() -> None:
    assert advkit("train", *TINY, "--set", "validation.split=test", "--out", "run").code == 0
    shutil.copytree("run", "other")
    assert json.loads(advkit("evaluate", "run", "--attacks", "clean", "--json").out)["selected_on"] == "test"
    said = "The checkpoint was chosen on the test split: figures on it are optimistic"
    assert advkit("evaluate", "run", "--attacks", "clean").out.count(said) == 1
    compared = advkit("compare", "run", "other", "--attacks", "clean", "--n", "20", "--json")
    best, last = json.loads(compared.out)["runs"][:2]
    assert (best["selected_on"], best["notes"]) == ("test", [said])
    assert (last["selected_on"], last["notes"]) == (None, [])
    assert f"run: {said}" in advkit("compare", "run", "other", "--attacks", "clean", "--n", "20").out
    assert "its best epoch was chosen on the test split" in advkit("runs", "list", ".").err


def test_progress_goes_to_stderr_a_line_an_epoch(here: Path) -> None:
    ran = advkit("train", *TINY, "--epochs", 2, "--progress", "auto")
    assert ran.code == 0 and ran.out == ""
    lines = [line for line in ran.err.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(word in lines[0] for word in ("lr 0.1", "loss ", "train-adv ", "val-clean ", "val-pgd-2 ", "val-cw-2 "))
    assert "Next: advkit evaluate runs/pgd-at-1" in ran.err
    assert advkit("train", *TINY, "--plugins", "awp,cat-eps") == (0, "", "")
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["awp+cat-eps-1", "pgd-at-1"]


# ---------------------------------------------------------------------- train without training


def test_what_a_dry_run_does_not_do_is_said(here: Path) -> None:
    beside = ("--init-from", "absent", "--max-time", "1s")
    for mode in ("--dry-run", "--print-config"):
        ran = advkit("train", *TINY, mode, *beside)
        said = [line for line in ran.err.splitlines() if "plays no part" in line]
        assert said == [f"{flag} plays no part in {mode}." for flag in ("--init-from", "--max-time")]
        assert ran.code == 0 and "plays no part" not in advkit("train", *TINY, mode).err
    both = advkit("train", *TINY, "--dry-run", "--print-config")
    sentence = "Error: --dry-run runs a step, and --print-config stops before; give one of the two.\n"
    assert both == (2, "", sentence)


def test_dry_run_writes_nothing(here: Path) -> None:
    ran = advkit("train", "--plugins", "cat-eps,dirichlet-ls,lsiw", *TINY, "--dry-run", "--out", "run")
    assert ran.code == 0 and ran.err == ""
    assert "54 images to train on, 6 to validate" in ran.out and "nothing was written" in ran.out
    assert "attack 3 forward, 2 input backward | update 3 forward, 3 full backward" in ran.out
    assert not list(here.iterdir())


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    "line",
    [
        "",
        "--plugins cat-eps,dirichlet-ls,lsiw",
        "--plugins lsiw -o lsiw.lam=[[0,0],[5,0.1]] -o awp.gamma=1/3 --no-companion instance_weight:lsiw --eps 8/255",
        "--plugins lsiw,av-rank -o av-rank.scheme=uniform --set optimizer.milestones=[0.1,0.2] --seed 9000000000000000",
        "--plugins label-one,label-two --set order.target_label=label-two,label-one --model preact-resnet18",
        "--plugins strict -o strict.many=[3] -o strict.word='[a]' --set attack.norm=l2 --set run.check_hooks=true",
    ],
)
def test_print_config_round_trips(line: str, here: Path) -> None:
    ran = advkit("train", *line.split(), "--print-config")
    assert ran.code == 0 and ran.err == "" and not list(here.iterdir())
    (here / "a.toml").write_text(ran.out)
    again = advkit("train", "--config", "a.toml", "--print-config")
    assert again == ran
    changed = advkit("train", "--config", "a.toml", "--print-config", "--epochs", 3)
    assert changed.code == 0 and tomllib.loads(changed.out)["run"]["epochs"] == 3 and changed.out != ran.out


def test_a_file_with_plugins_taken_out_on_the_command_line(finished: Path) -> None:
    ran = advkit("plan", "--config", finished / "run.toml", "--plugins", "awp", "--json")
    assert ran.code == 0 and json.loads(ran.out)["settings"]["awp.gamma"]["value"] == 0.007
    for declined in ("weight_perturbation", "instance_weight:lsiw"):
        ran = advkit("plan", "--config", finished / "run.toml", "--no-companion", declined, "--json")
        assert ran.code == 0 and len(json.loads(ran.out)["companions"]) == 1


def test_run_files_that_no_longer_mean_the_same_are_refused(finished: Path, here: Path) -> None:
    table = tomllib.loads((finished / "run.toml").read_text())
    del table["companions"]["awp"]
    (here / "a.toml").write_text(tomli_w.dumps(table))
    ran = advkit("plan", "--config", "a.toml")
    assert ran == (
        2,
        "",
        "Error: file a.toml records the companions av-rank, but its plugins now get av-rank, awp; install the recorded "
        "versions, or remove [companions].\n",
    )
    table["format"] = 2
    (here / "a.toml").write_text(tomli_w.dumps(table))
    ran = advkit("plan", "--config", "a.toml")
    assert ran == (2, "", "Error: a.toml has format 2; this advkit reads format 1.\n")


def test_init_from_starts_at_the_best_weights(finished: Path, here: Path) -> None:
    import safetensors.torch

    still = ["train", *TINY, "--set", "optimizer.lr=1e-30", "--set", "model.norm=none"]
    assert advkit(*still, "--out", "one").code == 0
    assert advkit(*still, "--seed", 7, "--init-from", "one", "--out", "two").code == 0
    assert advkit(*still, "--seed", 7, "--out", "three").code == 0
    one, two, three = (
        safetensors.torch.load_file(here / run / "checkpoints" / "last" / "tensors.safetensors")["model/1.weight"]
        for run in ("one", "two", "three")
    )
    assert one.equal(two) and not one.equal(three)
    ran = advkit("train", *TINY, "--model", "preact-resnet18", "--init-from", "one")
    assert ran.code == 4 and ran.err.startswith("Error: The weights of one do not fit this model (first difference: ")


# ---------------------------------------------------------------------- a terminal


@contextlib.contextmanager
def terminal() -> Iterator[tuple[TextIO, list[bytes]]]:
    """A pseudo-terminal to write to, and what arrives at it; a thread reads, so that no writer waits."""
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the last writer has gone
            while chunk := os.read(master, 1 << 16):
                seen.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(slave, "w") as writer:
        yield writer, seen
    reader.join(20)
    os.close(master)


@pytest.fixture
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_colours")
def test_a_live_table_on_a_terminal() -> None:
    out = io.StringIO()
    with terminal() as (stderr, parts), contextlib.redirect_stdout(out), contextlib.redirect_stderr(stderr):
        code = run(["train", *map(str, TINY), "--epochs", "3", "--progress", "auto", "--out", "run"])
    seen = b"".join(parts).decode()
    assert code == 0 and out.getvalue() == ""
    lines = [line for part in seen.splitlines() for line in [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part)] if line]
    heads = [place for place, line in enumerate(lines) if "val-pgd-2" in line]
    assert len(heads) == 1, "one header"
    finished = [line.split()[0].rstrip("*") for line in lines if re.match(r" +\d+[ *] ", line)]
    assert finished == ["1", "2", "3"], "every finished epoch stays, once"
    drawn = [line for line in lines if not line.startswith(" ")]
    assert any(line.startswith("run ") and "6/6" in line for line in drawn)
    assert any(line.startswith("epoch 3/3 ") and "2/2" in line for line in drawn)
    assert "Next: advkit evaluate run" in drawn[-1]


def test_a_run_goes_on_when_nobody_watches_any_more(here: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone, contextlib.redirect_stderr(gone):
        code = run(["train", *map(str, TINY), "--epochs", "3", "--progress", "plain", "--out", "run"])
    assert code == 0
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["train", "--out", ""], "--out"),
        (["train", "--resume", ""], "--resume"),
        (["train", "--init-from", ""], "--init-from"),
        (["evaluate", ""], "What is to be read"),
        (["evaluate", "run", "--out", ""], "--out"),
        (["audit", ""], "What is to be read"),
        (["analyze", "margin", ""], "What is to be read"),
        (["analyze", "margin", "run", "--out", ""], "--out"),
        (["compare", "run", ""], "What is to be read"),
        (["report", "run", ""], "What is to be read"),
        (["report", "run", "--out", ""], "--out"),
        (["export", "", "--out", "x"], "What is to be read"),
        (["export", "run", "--out", ""], "--out"),
        (["ablate", "--plugins", "lsiw", "--out", ""], "--out"),
        (["data", "check", ""], "What is to be read"),
    ],
)
def test_no_name_is_not_the_current_folder(
    line: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = advkit(*line)
    assert ran.code == 2 and f"{named} is empty; name a file or folder, the current one by a dot." in ran.err
    assert not any(path.is_file() or path.name == "runs" for path in tmp_path.rglob("*"))
