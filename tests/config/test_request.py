"""Who wins where two places say something: one answer for the command line, for Python and for ablations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from own_steps import OwnSteps
from torch import nn

import advkit
from advkit import CheckpointError, OptionError, Plugin, PluginLoad, Splits, hookimpl
from advkit.cli.main import run
from advkit.config.layer import Layer
from advkit.config.request import Request
from advkit.config.resolve import Resolved, resolve
from advkit.config.runfile import dump
from advkit.errors import Caution
from advkit.studies import ablation
from advkit.studies.sweep import cells

FILE = """
plugins = ["lsiw", "cat-eps"]
no_companion = ["weight_perturbation"]
[run]
epochs = 7
[model]
name = "small-cnn"
width = 4
[options.lsiw]
lam = 0.3
[options.cat-eps]
eta = 0.01
[options.av-rank]
target = "train"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(FILE.replace('[options.av-rank]\ntarget = "train"\n', ""))
    return path


def layered(top: Layer, file: Path | None = None, recipe: str | None = None) -> Resolved:
    return Resolved.of(Request.of(top, recipe=recipe, config=file))


def test_the_highest_layer_that_names_plugins_names_them(file: Path) -> None:
    from_file = layered(Layer("top"), file, "trades-mini")
    assert from_file.chosen == ("cat-eps", "lsiw") and from_file.no_companion == ("weight_perturbation",)
    assert from_file.values()["lsiw.lam"] == 0.3 and "trades.beta" not in from_file.values()
    assert from_file.origins["run.epochs"] == "file own.toml"
    assert layered(Layer("top"), None, "trades-mini").chosen == ("trades",)
    none = layered(Layer("top", plugins=()), None, "trades-mini")
    assert none.chosen == () and none.origins["optimizer.lr"] == "recipe trades-mini"


def test_options_leave_with_the_plugins_that_are_replaced(file: Path) -> None:
    request = Request.of(Layer("top", plugins=("lsiw",), no_companion=("instance_weight:lsiw",)), config=file)
    alone = Resolved.of(request)
    assert alone.chosen == ("lsiw",) and alone.values()["lsiw.lam"] == 0.3
    assert alone.no_companion == ("instance_weight:lsiw", "weight_perturbation"), "declined companions add up"
    with pytest.raises(OptionError, match="Options are given for cat-eps, which is not in this run"):
        layered(Layer("top", {}, {"cat-eps": {"eta": 0.01}}, ("lsiw",)), file)
    awp = Layer("low", {}, {"awp": {"gamma": 0.02}}, ("cat-eps", "awp"))
    kept = Resolved.of(Request((awp, Layer("top", plugins=("lsiw",)))))
    assert kept.values()["awp.gamma"] == 0.02 and kept.chosen == ("lsiw",), "a companion keeps what was said of it"


def test_the_options_of_another_model_leave_with_it(file: Path) -> None:
    assert layered(Layer("top"), file).model_options["width"] == 4
    other = layered(Layer("top", {"model.name": "preact-resnet18"}), file)
    assert other.model_options["width"] == 64 and other.origins.keys() & {"model.width"} == set()


def test_one_setting_by_two_names(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError) as refused:
        advkit.train(eps=0.1, settings={"attack.eps": "8/255"})
    assert str(refused.value) == (
        "eps 0.1 and settings attack.eps = 8/255 differ; they are the same setting, give one."
    )
    assert run(["plan", "--eps", "0.1", "--set", "attack.eps=8/255"]) == 2
    assert "--eps 0.1 and --set attack.eps=8/255 differ; they are the same setting" in capsys.readouterr().err
    assert run(["plan", "--eps", "8/255", "--set", f"attack.eps={8 / 255}"]) == 0


def test_a_root_that_no_run_file_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--dataset", "image-folder", "--data-root", "pictures-\udcff"]) == 2
    assert "is no UTF-8, so no run file can hold it; rename the folder." in capsys.readouterr().err
    assert run(["plan", "--dataset", "image-folder", "--data-root", "été"]) == 0


def built(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> str:
    """The run file of what `call` would start."""
    runs: list[Resolved] = []

    def start(resolved: Resolved, *_: Any, **__: Any) -> None:
        runs.append(resolved)
        raise KeyboardInterrupt

    monkeypatch.setattr("advkit.training.launch.start", start)
    with pytest.raises(KeyboardInterrupt):
        call()
    return dump(runs[0])


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        (["--recipe", "trades-mini"], {"recipe": "trades-mini"}),
        (["--config", "FILE"], {"config": "FILE"}),
        (["--recipe", "iseat-svhn-mini", "--config", "FILE"], {"recipe": "iseat-svhn-mini", "config": "FILE"}),
        (
            ["--config", "FILE", "--plugins", "lsiw", "-o", "lsiw.lam=0.1 after decay 1", "--eps", "8/255"],
            {"config": "FILE", "plugins": "lsiw", "options": {"lsiw": {"lam": "0.1 after decay 1"}}, "eps": "8/255"},
        ),
        (
            ["--recipe", "trades-mini", "--plugins", "", "--seed", "3", "--set", "attack.steps=2"],
            {"recipe": "trades-mini", "plugins": (), "seed": 3, "settings": {"attack.steps": 2}},
        ),
        (
            ["--plugins", "lsiw", "--no-companion", "weight_perturbation", "--model", "preact-resnet18"],
            {"plugins": ["lsiw"], "no_companion": ["weight_perturbation"], "model": "preact-resnet18"},
        ),
    ],
)
def test_python_asks_for_what_the_command_asks_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: list[str], arguments: Any
) -> None:
    typed = [str(file) if part == "FILE" else part for part in line]
    assert run(["train", *typed, "--print-config", "--set", f"run.threads={torch.get_num_threads()}"]) == 0
    passed = {name: file if value == "FILE" else value for name, value in arguments.items()}
    assert built(monkeypatch, lambda: advkit.train(**passed)) == capsys.readouterr().out


def test_what_is_passed_lies_over_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    own = advkit.Dataset("own", images, torch.arange(20) % 2, ("a", "b"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    text = built(monkeypatch, lambda: advkit.train(net, Splits(own, own, "none"), recipe="trades-mini"))
    assert (
        'name = "python:own"' in text and 'name = "python:Sequential"' in text and 'plugins = [\n    "trades",' in text
    )


def test_ablations_ask_alike(file: Path) -> None:
    request = Request.of(Layer("top", {}, {"cat-eps": {"eta": 0.02}}), config=file)
    arms = {arm.name: arm.resolved[0] for arm in ablation.arms(request, [0])}
    assert dump(arms["full"]) == dump(layered(Layer("top", {"run.seed": 0}, {"cat-eps": {"eta": 0.02}}), file))
    without = layered(Layer("top", {"run.seed": 0}, {"cat-eps": {"eta": 0.02}}, ("cat-eps",), ()), file).chosen
    assert arms["without lsiw"].chosen == without == ("cat-eps",)
    assert arms["without lsiw"].values()["cat-eps.eta"] == 0.02 and arms["none"].run.epochs == 7


# ---------------------------------------------------------------------- companions are missed by what plugins are


class Weighs(Plugin):
    """Weighs lsiw's term where its share of eps is small."""

    name = "weighs"
    seen: ClassVar[list[Any]] = []
    """Options it was ever built with."""

    class Options(advkit.PluginOptions):
        share: advkit.Real = advkit.option("eps/2", help="")
        lam: advkit.Schedule = advkit.option("1 after decay 1", help="")

    options: Options

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.seen.append(options)

    @property
    def terms(self) -> tuple[str, ...]:
        return ("lsiw",) if self.options.share < 0.1 else ("base_loss",)

    @hookimpl
    def instance_weight(self, batch, term, run):  # type: ignore[no-untyped-def]
        return torch.ones_like(batch.y, dtype=torch.float32)


def test_terms_are_read_under_the_run_s_own_settings() -> None:
    Weighs.seen.clear()
    settings = {"model.name": "python:m", "data.name": "python:d", "run.epochs": 10}
    near = resolve(["lsiw", Weighs], [Layer("t", settings | {"attack.eps": 0.1})])
    assert "av-rank" not in near.composition.added
    far = resolve(["lsiw", Weighs], [Layer("t", settings | {"attack.eps": 0.5})])
    assert "av-rank" in far.composition.added
    assert {options.share for options in Weighs.seen} == {0.05, 0.25}
    assert {options.lam.plain()[1][0] for options in Weighs.seen} == {5}


IDLE = {
    "idbh": ("data.transform", "crop-flip"),
    "ccat": ("attack.init", "uniform"),
    "mma": ("attack.step_size", 0.3),
    "iaat": ("attack.step_size", 0.3),
    "las-at": ("attack.step_size", 0.3),
}


@pytest.mark.parametrize("plugin", IDLE)
def test_a_setting_that_is_typed_and_that_a_plugin_stands_in_for_is_said(plugin: str) -> None:
    key, value = IDLE[plugin]
    said = f"{key} plays no part under {plugin}"
    assert said in resolve(plugin, [Layer("command line", {key: value})]).cautions
    assert said not in resolve(plugin, [Layer("run.toml", {key: value})]).cautions  # which has every setting
    assert said not in resolve("lsiw", [Layer("command line", {key: value})], no_companion=()).cautions
    assert said not in resolve(plugin).cautions


def test_a_plugin_that_does_not_answer_stands_in_for_nothing() -> None:
    typed = [Layer("command line", {"data.transform": "crop-flip"}, {"idbh": {"share": 0}})]
    assert not [said for said in resolve("idbh", typed).cautions if "plays no part" in said]


@pytest.mark.parametrize(
    ("plugin", "options", "under"),
    [
        ("swa", {"images": 50}, {"buffers": "re-estimated"}),
        ("ema", {"images": 1024}, {"buffers": "re-estimated"}),  # the default, typed all the same
        ("av-rank", {"share": 0.2}, {"scheme": "top-k"}),
        ("av-rank", {"normalise": "none", "scheme": "uniform"}, {"scheme": "linear"}),
        ("gairat", {"form": "discrete", "lam": 0.0}, {"form": "sigmoid"}),
        ("bilateral", {"factor": 0, "gamma": 0.1}, {"factor": 9}),
        ("las-at", {"net": "model", "width": 8}, {"net": "small"}),
        ("las-at", {"ahead_steps": 0, "ahead_step_size": "eps"}, {"ahead_steps": 1}),
        ("hat", {"gamma": 0.1, "s": 1}, {"helper": "run"}),
        ("cutmix", {"probability": 0, "group": 4, "window": 3}, {"probability": 0.5}),
        ("rslad", {"attack": "label", "teacher_model": "small-cnn", "temperature": 2.0}, {"teacher": "run"}),
    ],
)
def test_an_option_that_another_one_leaves_no_part_is_said(
    plugin: str, options: dict[str, object], under: dict[str, object]
) -> None:
    def said(origin: str, **options: object) -> list[str]:
        run = resolve(("lsiw", "av-rank") if plugin == "av-rank" else plugin, [Layer(origin, {}, {plugin: options})])
        return [one for one in run.cautions if "plays no part under" in one]

    idle = [key for key in options if key not in under]
    (decides,) = under
    assert [one.partition(" ")[0] for one in said("python", **options)] == [f"{plugin}.{key}" for key in idle]
    assert all(f" plays no part under {plugin}.{decides}=" in one for one in said("python", **options))
    assert said("python", **options | under) == said("run.toml", **options) == []


@pytest.mark.parametrize(
    ("options", "with_others", "sentence"),
    [
        ({"target": "soft"}, "dirichlet-ls", "av-rank.target=soft plays no part where no plugin makes soft labels"),
        ({"normalise": "radius"}, "cat-eps", "av-rank.normalise=radius plays no part where no plugin sets budgets"),
    ],
)
def test_an_option_that_needs_company_is_said(options: dict[str, object], with_others: str, sentence: str) -> None:
    layers = [Layer("python", {}, {"av-rank": options})]
    assert sentence in str(resolve(("lsiw", "av-rank"), layers).cautions)
    assert sentence not in str(resolve(("lsiw", "av-rank", with_others), layers).cautions)


@pytest.mark.parametrize(
    ("settings", "said", "plugins"),
    [
        ({"attack.steps": 0, "attack.mode": "train"}, ["attack.mode plays no part under attack.steps=0"], ()),
        ({"attack.steps": 0, "attack.init": "zero"}, ["attack.init plays no part under attack.steps=0"], ()),
        ({"attack.eps": 0, "attack.step_size": 0.1}, ["attack.step_size plays no part under attack.eps=0"], ()),
        ({"attack.eps": 0, "attack.mode": "train"}, [], ()),  # which moves statistics all the same
        (  # whose attack is its own
            {"attack.steps": 0, "attack.step_size": 0.1},
            ["attack.steps plays no part under own-steps"],
            (OwnSteps,),
        ),
        (
            {"attack.norm": "l2", "attack.steps": 0, "attack.l2_projection": "box-ball"},
            ["attack.l2_projection plays no part under attack.steps=0"],
            (),
        ),
        (
            {"validation.fraction": 0, "validation.steps": 5, "validation.every_epochs": 2},
            [f"validation.{key} plays no part under validation.fraction=0" for key in ("every_epochs", "steps")],
            (),
        ),
        ({"validation.fraction": 0, "validation.split": "test", "validation.steps": 5}, [], ()),
        ({"run.batchnorm": "local"}, ["run.batchnorm plays no part in one process"], ()),
        (
            {"run.epochs": 1, "optimizer.decay": 0.5, "optimizer.milestones": [0.5]},
            [
                f"optimizer.{key} plays no part before a milestone, and 1 epochs have none"
                for key in ("decay", "milestones")
            ],
            (),
        ),
        (
            {"run.epochs": 2, "optimizer.decay": 0.5, "optimizer.milestones": [2]},
            ["optimizer.decay plays no part before a milestone, and 2 epochs have none"],
            (),
        ),
        ({"run.epochs": 2, "optimizer.decay": 0.5}, [], ()),
        ({"run.timeout": 60}, ["run.timeout plays no part in one process"], ()),
        ({"attack.steps": 1, "attack.mode": "train", "validation.steps": 5, "attack.step_size": "eps"}, [], ()),
    ],
)
def test_a_setting_that_another_one_leaves_no_part_is_said(
    settings: dict[str, object], said: list[str], plugins: tuple[type[Plugin], ...]
) -> None:
    def cautions(origin: str) -> list[str]:
        return [one for one in resolve(plugins, [Layer(origin, settings)]).cautions if "plays no part" in one]

    assert cautions("command line") == said
    assert cautions("run.toml") == []


@pytest.mark.parametrize(
    ("plugins", "settings", "standard"),
    [
        ((), {}, False),
        ((), {"attack.steps": 0}, True),
        ("cutmix", {"attack.steps": 0}, True),
        ((OwnSteps,), {"attack.steps": 0}, False),
        ((OwnSteps,), {"attack.steps": 0, "attack.eps": 0}, True),
        ("awp", {"attack.eps": 0}, True),
    ],
)
def test_whether_training_attacks_is_asked_of_who_owns_the_attack(
    plugins: Any, settings: dict[str, object], standard: bool
) -> None:
    assert resolve(plugins, [Layer("python", settings)]).standard == standard
    assert advkit.plan(plugins, settings=settings)["standard"] == standard


def test_cutmix_in_groups_of_one_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^cutmix\.group = 1 mixes no image with another; give 2 or more, or 0"):
        resolve("cutmix", [Layer("python", {}, {"cutmix": {"group": 1}})])
    resolve("cutmix", [Layer("python", {}, {"cutmix": {"group": 2}})])


def test_in_several_processes_their_settings_play_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    layers = [Layer("command line", {"run.batchnorm": "local", "run.timeout": 60})]
    assert "plays no part" not in str(resolve((), layers).cautions)


def test_what_is_said_of_pictures_is_refused_where_there_are_none() -> None:
    with pytest.raises(OptionError, match=r"data.max_pixels is of pictures that are decoded, and digits has images"):
        advkit.plan(settings={"data.max_pixels": 5})
    own = (torch.rand(8, 1, 8, 8), torch.arange(8) % 2)
    for do in (advkit.plan, advkit.train):
        with pytest.raises(OptionError, match=r"^data\.max_pixels = 5 is of a data set that is named, and images were"):
            do(dataset=own, settings={"data.max_pixels": 5})


def test_a_typed_text_of_any_length_is_told_in_short() -> None:
    long = "abc\n" * 1000
    for act, what in (
        (lambda: advkit.plan(long), "plugin"),
        (lambda: advkit.plan(dataset=long), "data set"),
        (lambda: advkit.plan(model=long), "model"),
        (lambda: advkit.plan(recipe=long), "recipe"),
        (lambda: advkit.plan(settings={long: 1}), "setting"),
        (lambda: advkit.plan("lsiw", options={"lsiw": {long: 1}}), "option"),
        (lambda: advkit.evaluate(torch.nn.Flatten(), dataset=None, attacks=long), "attack"),
    ):
        with pytest.raises((OptionError, PluginLoad), match=f"^Unknown {what} ") as refused:
            act()
        assert len(str(refused.value).partition(" Known")[0]) < 300 and "\n" not in str(refused.value)


def test_a_net_beside_the_model_that_is_absent_is_refused_by_a_plan(tmp_path: Path) -> None:
    for plugin, option in (("hat", "helper"), ("rslad", "teacher")):
        options = {plugin: {option: str(tmp_path / "gone")}}
        for do in (advkit.plan, advkit.train):
            with pytest.raises(CheckpointError, match=r"gone does not exist; give a run folder or a file of weights"):
                do(plugins=plugin, options=options)
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match="folder is not a run folder"):
            advkit.plan(plugin, options={plugin: {option: str(tmp_path / "folder")}})


def test_settings_of_checkpoints_are_said_to_play_no_part_without_a_folder(tmp_path: Path) -> None:
    tiny = {"model.width": 2, "attack.steps": 0, "validation.fraction": 0, "data.limit": 20, "checkpoint.keep": 1}
    with pytest.warns(Caution, match="^checkpoint.keep plays no part without out, since no checkpoint is written$"):
        advkit.train(settings=tiny, epochs=1)
    advkit.train(settings=tiny, epochs=1, out=tmp_path / "run")


def test_a_run_file_that_leaves_nothing_of_a_recipe_is_refused_beside_it(tmp_path: Path) -> None:
    whole, part = tmp_path / "run.toml", tmp_path / "part.toml"
    whole.write_text(dump(resolve("lsiw", [])))
    part.write_text("format = 1\n[run]\nseed = 7\n")
    with pytest.raises(OptionError, match=r"run\.toml replaces all of the recipe trades-mini, which would change noth"):
        advkit.plan(recipe="trades-mini", config=whole)
    both = Request.of(Layer("test"), "trades-mini", part)
    assert both.plugins == ("trades",) and Resolved.of(both).run.seed == 7


def test_the_seed_of_a_run_file_gives_way_to_the_seeds_of_a_study(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('format = 1\nplugins = ["lsiw"]\n[run]\nseed = 7\n')
    request = Request.of(Layer("test"), config=file)
    study = Mock()
    ablation.ablate_request(request, [0, 1], study)
    for found in (study.table.call_args.args[0], cells(request, {"lsiw.lam": [0.1, 0.2]}, [0, 1])):
        assert [one.run.seed for one in found[0].resolved.values()] == [0, 1]


def stays(layer: Layer, file: Path | None, recipe: str | None = None) -> list[str]:
    return [said for said in layered(layer, file, recipe).cautions if "whose values for that stay" in said]


def test_what_a_file_has_for_another_eps_or_length_is_said_to_stay(tmp_path: Path) -> None:
    typed = Layer(
        "top",
        {"attack.eps": 0.1, "run.epochs": 4, "attack.steps": 4},
        {"lsiw": {"lam": "0.1 after decay 1"}},
        plugins=("cat-eps", "lsiw"),
    )
    path = tmp_path / "run.toml"
    path.write_text(dump(Resolved.of(Request((typed,)))))
    assert stays(Layer("top"), path) == stays(Layer("top", {"attack.eps": 0.1, "run.seed": 3}), path) == []
    (eps,) = stays(Layer("top", {"attack.eps": 0.02}), path)
    assert eps == (
        "attack.eps = 0.02 is 0.1 in file run.toml, whose values for that stay: attack.step_size = 0.025, "
        "cat-eps.eta = 0.01594, cat-eps.eps_max = 0.1; set them too"
    )
    (rest,) = stays(Layer("top", {"attack.eps": 0.02, "attack.step_size": 0.005}, {"cat-eps": {"eta": 0.003}}), path)
    assert rest.endswith("stay: cat-eps.eps_max = 0.1; set them too")
    (epochs,) = stays(Layer("top", {"run.epochs": 8}), path)
    assert epochs == (
        "run.epochs = 8 is 4 in file run.toml, whose values for that stay: lsiw.lam = [[0, 0.0], [2, 0.1]]; set them "
        "too"
    )
    assert not stays(Layer("top", {"run.epochs": 8}, {"lsiw": {"lam": "0.1 after decay 1"}}), path)


def test_what_a_recipe_has_for_another_eps_is_said_to_stay() -> None:
    (said,) = stays(Layer("top", {"attack.eps": "4/255"}), None, "pgd-at-rice")
    assert said == (
        "attack.eps = 0.01569 is 0.03137 in recipe pgd-at-rice, whose values for that stay: attack.step_size = "
        "0.007843; set them too"
    )
    assert not stays(Layer("top", {"run.epochs": 30}), None, "pgd-at-rice"), "its milestones are shares of the run"
