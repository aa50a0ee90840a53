"""Numbers as people have them: numpy's and torch's from Python, digits of ASCII on the command line."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import advkit
from advkit import OptionError, Plugin, PluginOptions, Schedule, option
from advkit.cli.main import run as command
from advkit.cli.signals import duration
from advkit.config.layer import chosen
from advkit.studies.inputs import amount, pace, whole


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_arrays_are_settings(three: Any) -> None:
    planned = advkit.plan(
        settings={"run.epochs": three, "model.width": three, "optimizer.milestones": [np.int64(1), 2]}
    )
    values = {key: entry["value"] for key, entry in planned["settings"].items()}
    assert (values["run.epochs"], values["model.width"], values["optimizer.milestones"]) == (3, 3, [1, 2])
    assert type(values["run.epochs"]) is int


@pytest.mark.parametrize("tenth", [np.float32(0.1), np.float64(0.1), np.array(0.1), torch.tensor(0.1)])
def test_numbers_of_arrays_are_settings_and_options(tenth: Any) -> None:
    planned = advkit.plan("cat-eps", settings={"optimizer.lr": tenth}, options={"cat-eps": {"eta": tenth}}, eps=tenth)
    values = {key: entry["value"] for key, entry in planned["settings"].items()}
    for key in ("optimizer.lr", "cat-eps.eta", "attack.eps"):
        assert type(values[key]) is float and values[key] == pytest.approx(0.1)


@pytest.mark.parametrize("exact", [Fraction(8, 255), Decimal("0.0625")])
def test_fractions_are_numbers_wherever_numbers_are(exact: Any) -> None:
    net, number = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), float(exact)
    data = (torch.full((4, 1, 2, 2), 0.5), torch.arange(4) % 2)
    own = {"cat-eps": {"eta": exact}, "lsiw": {"lam": [[0, exact], [1, 2 * exact]]}}
    planned = advkit.plan("cat-eps,lsiw", settings={"optimizer.lr": exact}, options=own)
    values = {key: entry["value"] for key, entry in planned["settings"].items()}
    assert all(type(values[key]) is float for key in ("optimizer.lr", "cat-eps.eta"))
    assert (values["optimizer.lr"], values["lsiw.lam"]) == (number, [[0, number], [1, 2 * number]])
    both = advkit.plan(eps=exact, settings={"attack.eps": str(exact)})["settings"]["attack.eps"]
    assert both["value"] == advkit.Step(net, None, num_samples=4, eps=exact).state.attack.eps == number
    judged = advkit.evaluate(net, data, "pgd-1,pgd-1-l2", eps=exact, eps_l2=exact, audit=False)
    assert [row.eps for row in judged.attacks] == [number, number]
    advkit.evaluate(net, data, "pgd-1", eps=[exact] * 4, audit=False)
    with pytest.raises(OptionError, match=r"^run\.epochs = .* must be a valid integer"):
        advkit.plan(settings={"run.epochs": exact})


@pytest.mark.parametrize("beyond", [Fraction(1, 10**400), Fraction(10**400), Decimal("sNaN"), Decimal("Infinity")])
def test_what_no_float_holds_is_refused(beyond: Any) -> None:
    net, data = torch.nn.Flatten(), (torch.rand(2, 1, 1, 2), torch.arange(2))
    for ask in (
        lambda: advkit.plan(eps=beyond),
        lambda: advkit.plan("lsiw", options={"lsiw": {"lam": beyond}}),
        lambda: advkit.evaluate(net, data, "pgd-1", eps=beyond),
        lambda: advkit.evaluate(net, data, "pgd-1", eps=[beyond, Fraction(10**400)]),
    ):
        with pytest.raises(OptionError):
            ask()


@pytest.mark.parametrize("rows", [[[0, 0.5], [2, 1.0]], [[0, 0.25]]])
def test_a_schedule_may_be_an_array(rows: list[list[float]]) -> None:
    expected = Schedule(rows)
    for given in (
        np.array(rows),
        torch.tensor(rows),
        torch.tensor(rows, requires_grad=True),
        tuple(map(np.array, rows)),
    ):
        assert Schedule(given) == expected  # type: ignore[arg-type]
        lam = advkit.plan("lsiw", options={"lsiw": {"lam": given}})["settings"]["lsiw.lam"]["value"]
        assert lam == expected.plain()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.array([[0.5, 1]]), "has an epoch that is not a whole number"),
        (np.array([0, 1]), "is not a number or a list"),
        (torch.zeros(1, 2, device="meta"), "has a value that is not a number"),
        (torch.eye(2).to_sparse(), "has a value that is not a number"),
    ],
)
def test_an_array_that_is_no_schedule(wrong: Any, said: str) -> None:
    with pytest.raises(OptionError, match=rf"^lsiw\.lam = .* {said}"):
        advkit.plan("lsiw", options={"lsiw": {"lam": wrong}})
    with pytest.raises(OptionError, match=r"^optimizer\.milestones = "):
        advkit.plan(settings={"optimizer.milestones": wrong})


def test_switches_of_numpy_are_settings_and_options_of_ones_own() -> None:
    planned = advkit.plan(settings={"optimizer.nesterov": np.bool_(True)})
    assert planned["settings"]["optimizer.nesterov"]["value"] is True

    class Mine(Plugin):
        name = "mine"

        class Options(PluginOptions):
            lam: float = option(1.0, help="a weight")

    assert Mine.Options(lam=np.float32(0.5)).lam == 0.5


@pytest.mark.parametrize("wrong", [np.float64(2.5), np.array([1, 2]), np.array("3"), torch.ones(2), np.nan])
def test_what_is_no_whole_number_stays_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"^run\.epochs = "):
        advkit.plan(settings={"run.epochs": wrong})


@pytest.mark.parametrize(("plugin", "option"), [("las-at", "eps_max"), ("cat-margin", "kappa"), ("lsiw", "lam")])
def test_what_no_float32_holds_is_no_option(plugin: str, option: str) -> None:
    for large in (1e39, "1e308"):
        with pytest.raises(
            OptionError, match=rf"^{plugin}\.{option} = .* must .*3\.4e38, the largest number of float32"
        ):
            advkit.plan(plugin, options={plugin: {option: large}})
    assert advkit.plan(plugin, options={plugin: {option: 3e38}})


@pytest.mark.parametrize("name", [None, 3, ["digits"], object()])
def test_a_data_set_has_a_name(name: object) -> None:
    with pytest.raises(OptionError, match=r"^data\.name = .* must be a name; installed: cifar10, "):
        advkit.plan(settings={"data.name": name})


@pytest.mark.parametrize("digits", ["٣", "३", "３", "²", "1٣"])
def test_digits_of_other_scripts_are_no_numbers(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    for read in (whole, amount, pace, duration):
        text = f"eps/{digits}" if read is pace else digits
        with pytest.raises(OptionError, match="must be a"):
            read("--x", text)
    for line in (["--epochs", digits], ["--eps", digits], ["--set", f"run.seed={digits}"]):
        assert command(["plan", *line]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_numbers_as_they_are_typed() -> None:
    assert (whole("n", "12"), whole("n", np.int32(4)), amount("eps", "8/255")) == (12, 4, 8 / 255)
    assert (pace("step", "eps/5"), pace("step", "0.2 eps"), pace("step", "eps"), duration("t", "2m")) == (
        0.2,
        0.2,
        1,
        120,
    )
    for wrong in ("eps/0", "eps/-1", "nan eps", "inf eps", "eps*2", "1_0 eps"):
        with pytest.raises(OptionError, match="must be a share of eps"):
            pace("--step", wrong)


@pytest.mark.parametrize("typed", [",", " , ,", ",,"])
def test_a_comma_names_no_plugin(typed: str) -> None:
    with pytest.raises(OptionError, match=r"names no plugin; leave it out for PGD-AT, or name some: a,b\.$"):
        chosen(typed)
    assert chosen("") == () and chosen(" a , b ") == ("a", "b") and chosen(None) is None


@pytest.mark.parametrize("width", [10**6, 10**8, 10**12, 2**62, 10**30])  # the first convolution of some would fit
def test_a_model_that_no_memory_holds_is_one_sentence(width: int) -> None:
    with pytest.raises(
        OptionError, match=r"^small-cnn does not fit into memory with normalise=data, width=\d+, norm=batch; make it"
    ):
        advkit.train(settings={"model.width": width, "data.limit": 40, "run.epochs": 1})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"run.device": "cuda:99"}, "run.device = 'cuda:99' can not be used here ("),
        ({"model.width": 10**8}, "small-cnn does not fit into memory: its weights take 3.6e+09 GB, and "),
        ({"attack.steps": 7}, ""),
    ],
)
def test_a_plan_says_what_this_machine_can_not(settings: dict[str, object], sentence: str) -> None:
    cautions = advkit.plan(settings=settings)["cautions"]
    assert cautions == [] if not sentence else len(cautions) == 1 and cautions[0].startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"settings": {"run.device": "meta"}}, "run.device = 'meta' is a device whose tensors hold no values"),
        (
            {"settings": {"data.root": "/here"}},
            'digits is part of advkit and reads no files; leave data.root="/here" out.',
        ),
        (
            {"settings": {"model.normalise": "0.5,0.5,0.2,0.2"}},
            "model.normalise has 2 means, and the images 1 channels",
        ),
    ],
)
def test_a_plan_refuses_what_training_refuses(arguments: dict[str, Any], sentence: str) -> None:
    for asked in (advkit.plan, advkit.train):
        with pytest.raises(OptionError) as error:
            asked(**arguments)  # type: ignore[operator]
        assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("key", "given", "kept", "beside"),
    [
        ("optimizer.milestones", (0.5, 0.75), [0.5, 0.75], {}),
        ("optimizer.milestones", np.array([2, 3]), [2, 3], {}),
        ("optimizer.points", ((0, 1), (1, 0)), [[0.0, 1.0], [1.0, 0.0]], {"optimizer.schedule": "linear"}),
        ("optimizer.points", [(0, 1), np.array([1, 0])], [[0.0, 1.0], [1.0, 0.0]], {"optimizer.schedule": "linear"}),
    ],
)
def test_a_tuple_or_an_array_is_taken_for_a_list(key: str, given: Any, kept: Any, beside: dict[str, Any]) -> None:
    assert advkit.plan(settings={key: given, **beside})["settings"][key]["value"] == kept
