"""`advkit plugins check`: what holds, what does not, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from advkit import Batch, Plugin, hookimpl, registry
from advkit.cli.main import run
from advkit.errors import blamed
from advkit.testing import CHECKS, Finding, Subject, drawn, subject


def said(*lines: tuple[str, str, str]) -> Any:
    """`findings` that come to this: (check, state, what was said)."""

    def findings(examined: Any) -> Iterator[Finding]:
        for name, state, words in lines:
            yield Finding(name, f"what {name} expects.", state, words)  # type: ignore[arg-type]

    return findings


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checks alone, which run nothing."""
    monkeypatch.setattr(subject, "CHECKS", {name: CHECKS[name] for name in ("registration", "options", "places")})


@pytest.mark.usefixtures("few")
def test_a_plugin_that_behaves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "trades", "-o", "trades.beta=1"]) == 0
    assert capsys.readouterr().out == (
        "ok    registration\nok    options\n-     places: it declares no place on a chained hook\n"
        "trades: 2 checks hold, 0 fail, 1 were not run.\n"
    )


@pytest.mark.usefixtures("few")
def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "trades", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "check": "registration", "expected": CHECKS["registration"].expected, "state": "holds", "said": "",
    }  # fmt: skip


def test_a_plugin_that_does_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("advkit.testing.findings", said(("step", "holds", ""), ("order", "fails", "other bits")))
    monkeypatch.setattr(drawn, "installed", lambda: False)
    assert run(["plugins", "check", "trades"]) == 1
    assert capsys.readouterr().out == (
        "ok    step\nFAIL  order: other bits\n      expected: what order expects.\n"
        f"trades: 1 checks hold, 1 fail, 0 were not run.\n{drawn.ABSENT}\n"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("trade", "Error: Unknown plugin trade. Did you mean trades? `advkit plugins list` shows what is installed.\n"),
        ("trades -o trades.bet=1", "Error: Unknown option trades.bet. Did you mean beta? Known: beta"),
        (
            "trades -o zebra.x=1",
            "Error: Options are given for zebra; `advkit plugins check trades` takes those of trades.\n",
        ),
        ("trades -o beta=1", "Error: -o 'beta=1' is not of the form PLUGIN.KEY=VALUE.\n"),
    ],
)
def test_what_was_typed_is_2(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", *line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(sentence) and captured.out == ""


def test_without_hypothesis_the_fixed_inputs_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(drawn, "installed", lambda: False)
    drawn.for_drawn(lambda st: st.integers(), tried.append, examples=3)
    assert not tried


class Quits(Plugin):
    """Ends the process where it is asked."""

    name = "quits"
    how: type[BaseException] = SystemExit

    @hookimpl
    def base_loss(self, adv_logits: Tensor) -> Tensor:
        raise self.how(0)


def test_a_plugin_that_ends_the_process_is_one_more_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name, in every check; but Ctrl-C is a person's."""
    found = [CHECKS[name].outcome(Subject.of(Quits)) for name in ("registration", "step")]
    assert [one.state for one in found] == ["holds", "fails"]
    assert found[1].said.startswith("RuntimeError: SystemExit: 0 (in plugin quits, hook base_loss, epoch 0, step 0)")
    monkeypatch.setattr(Quits, "how", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        CHECKS["step"].outcome(Subject.of(Quits))
    with pytest.raises(RuntimeError, match="SystemExit: 2") as failed, blamed("in somebody's code"):
        raise SystemExit(2)
    assert failed.value.__notes__ == ["in somebody's code"]


def test_without_a_folder_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_one(subject: Subject) -> None:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    one = subject.Check("step", "a step", needs_one, lambda subject: "")
    monkeypatch.setattr(subject, "CHECKS", {"step": one})
    assert run(["plugins", "check", "trades"]) == 4
    assert capsys.readouterr().err.startswith("Error: No folder for temporary files can be used; set TMPDIR")


class Global(Plugin):
    """Draws from torch's generator."""

    name = "global"

    @hookimpl
    def extra_regularizer(self, adv_logits: Tensor) -> Tensor:
        return adv_logits.square().mean(1) * torch.rand(len(adv_logits))


@pytest.mark.parametrize("check", ["order", "pairs"])
def test_a_neighbour_that_is_broken_is_set_aside(check: str) -> None:
    examined = Subject.of("label-smoothing")
    examined.others = [Global, registry.load("plugin", "trades")]
    found = CHECKS[check].outcome(examined)
    assert (found.state, found.said) == ("holds", "without global, broken alone")


class Misspelt(Plugin):
    """Marks a hook that there is not."""

    name = "misspelt"

    @hookimpl
    def target_labels(self, target: Tensor) -> Tensor:
        return target


class Halved(Plugin):
    """Runs beside lsiw alone."""

    name = "halved"
    terms = ("lsiw",)

    @hookimpl
    def instance_weight(self, batch: Batch, adv_logits: Tensor) -> Tensor:
        return torch.where(adv_logits.argmax(1) == batch.y, 0.5, 1.0).to(adv_logits.dtype)


@pytest.fixture
def beside_a_misspelt_one(monkeypatch: pytest.MonkeyPatch) -> None:
    load = registry.load
    monkeypatch.setattr(registry, "names", lambda group: ("misspelt", "label-smoothing", "lsiw"))
    monkeypatch.setattr(registry, "load", lambda group, name: Misspelt if name == "misspelt" else load(group, name))


@pytest.mark.usefixtures("beside_a_misspelt_one")
@pytest.mark.parametrize("check", ["order", "pairs"])
def test_a_neighbour_that_no_run_can_have_is_set_aside(check: str) -> None:
    found = CHECKS[check].outcome(Subject.of("label-smoothing"))
    assert (found.state, found.said) == ("holds", "without misspelt, broken alone")


@pytest.mark.usefixtures("beside_a_misspelt_one")
def test_company_is_not_looked_for_among_those_that_no_run_can_have() -> None:
    examined = Subject.of(Halved)
    assert [plugin.name for plugin in examined.company] == ["halved", "lsiw"]
    assert CHECKS["registration"].outcome(examined).state == "holds"
    found = CHECKS["registration"].outcome(Subject.of(Misspelt))  # the control: its own failure is one
    assert found.state == "fails" and "Did you mean target_label?" in found.said
