"""Attacks are found in the registry: how each is typed, where it stands, and a stranger's beside advkit's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import advkit
from advkit import registry
from advkit.errors import OptionError
from advkit.evaluation.attacks import parse_attack, parse_attacks

STRANGER = '''
from advkit import EvaluationAttack


class Plain(EvaluationAttack):
    """Does nothing."""

    name = "plain"

    def perturb(self, net, x, y, radius, index):
        return x


class Counted(EvaluationAttack):
    """Does nothing, K times."""

    name = "counted"
    spellings = ("counted-K",)
    place = 15

    def __init__(self, name, times):
        self.name, self.times = name, times

    @classmethod
    def spelled(cls, typed):
        times = typed.text.removeprefix("counted-")
        return cls(typed.text, int(times)) if times.isdigit() else None

    def perturb(self, net, x, y, radius, index):
        return x
'''


NAMELESS = STRANGER.replace("self.name, self.times = name, times", "self.times = times")
"""Counted keeps the name of its class, whatever was typed."""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two attacks of a package that is installed for the test."""
    (tmp_path / "stranger_attacks.py").write_text(STRANGER)
    info = tmp_path / "stranger-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: stranger\nVersion: 1\n")
    lines = ["[advkit.attacks]", "plain = stranger_attacks:Plain", "counted = stranger_attacks:Counted"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_advkits_own_come_from_the_registry_in_the_order_of_tables() -> None:
    order = [one.name for one, _ in registry.attacks()]
    own = ["clean", "fgsm", "pgd", "cw", "square", "transfer", "autoattack"]
    assert [name for name in order if name in own] == own and (order[0], order[-1]) == ("clean", "autoattack")
    assert sorted(order) == registry.names("attack")
    typed = registry.spellings()
    assert {"clean", "pgd-K", "pgd-KxR", "cw-K-l2", "transfer:RUN", "square"} <= set(typed) and "pgd" not in typed


@pytest.mark.parametrize("text", [text for text in registry.spellings() if text != "transfer:RUN"])
def test_every_spelling_can_be_typed(text: str) -> None:
    typed = text.replace("-K", "-7").replace("xR", "x3")
    attack = parse_attack(typed)
    assert attack.name == typed
    assert type(attack) is registry.load("attack", registry.attack_of(typed) or "")


def test_a_strangers_attacks_stand_beside_them(strangers: Path) -> None:
    assert parse_attack("plain").name == "plain"
    assert vars(parse_attack("counted-3")) == {"name": "counted-3", "times": 3}
    assert registry.spellings()[:3] == ["clean", "fgsm", "counted-K"]
    for wrong in ("counted", "counted-x", "plain-3"):
        with pytest.raises(OptionError, match=f"Unknown attack {wrong}"):
            parse_attack(wrong)


def test_attacks_of_one_name_are_told_who_they_are(strangers: Path) -> None:
    """The control: those that `spelled` names as they were typed."""
    typed = ["clean", "counted-3", "counted-4"]
    assert [one.name for one in parse_attacks(typed)] == typed
    (strangers / "nameless.py").write_text(NAMELESS)
    (strangers / "stranger-1.dist-info" / "entry_points.txt").write_text(
        "[advkit.attacks]\ncounted = nameless:Counted\n"
    )
    both = (
        r"^counted-3 and counted-4 are both named 'counted', .*; `spelled` has to give each its own, .*typed\.text\.$"
    )
    with pytest.raises(OptionError, match=both):
        parse_attacks(typed)
    alone, data = parse_attack("counted-3"), (torch.rand(4, 1, 1, 2), torch.arange(4) % 2)
    both = r"^attack 1 \(Counted\) and attack 3 \(Counted\) are both named 'counted', .*; give each its own\.$"
    with pytest.raises(OptionError, match=both):
        advkit.evaluate(torch.nn.Flatten(), data, [alone, "clean", alone], eps=0.1)


def test_help_and_report_take_them_without_torch(strangers: Path) -> None:
    program = "import sys; from advkit import registry; print(registry.spellings(), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_env(strangers))
    assert "'counted-K'" in ran.stdout and ran.stdout.strip().endswith("False"), ran.stderr
    line = [sys.executable, "-m", "advkit", "evaluate", "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, env=_env(strangers) | {"COLUMNS": "200"}).stdout
    assert "counted-K" in shown and "plain" in shown


def _env(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def test_nobody_takes_the_place_of_a_spelling(strangers: Path) -> None:
    """What advkit's pgd can read is pgd's, whoever registers the very text; a longer name of one's own is one's own."""
    (strangers / "stranger_spellings.py").write_text(
        "from advkit import EvaluationAttack\n"
        + "".join(
            f"class {kind}(EvaluationAttack):\n    name = {name!r}\n    def perturb(self, *_):\n        return _[1]\n"
            for kind, name in (("Fake", "pgd-20"), ("Own", "pgd-gray"))
        )
    )
    points = "[advkit.attacks]\npgd-20 = stranger_spellings:Fake\npgd-gray = stranger_spellings:Own\n"
    (strangers / "stranger-1.dist-info" / "entry_points.txt").write_text(points)
    assert type(parse_attack("pgd-20")).__module__.startswith("advkit.")
    assert type(parse_attack("pgd-gray")).__name__ == "Own"
