"""Plugins of another API version are told which of the two to upgrade; names that changed still work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import advkit
from advkit import Plugin, PluginImport
from advkit.api_version import unfit
from advkit.cli.main import run
from advkit.compose.registration import check


@pytest.fixture(autouse=True)
def _of_two_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advkit.api_version.API_VERSION", "2.1")


@pytest.mark.parametrize("stated", ["", "2.0", "2.1"])
def test_the_same_major_and_no_newer_minor_is_taken(stated: str) -> None:
    fits = type("Fits", (Plugin,), {"name": "fits", "api_version": stated})
    check(fits)
    assert fits.api_version == stated


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ("2.2", "2.2 of advkit, and this advkit has 2.1; upgrade advkit, or install an older acme."),
        ("3.0", "3.0 of advkit, and this advkit has 2.1; upgrade advkit, or install an older acme."),
        (
            "1.9",
            "1.9 of advkit, and this advkit has 2.1, where hooks or names are other ones; upgrade acme, or install an "
            "advkit of API 1.",
        ),
    ],
)
def test_others_are_told_which_of_the_two_to_upgrade(stated: str, sentence: str) -> None:
    with pytest.raises(PluginImport) as refusal:
        check(type("Acme", (Plugin,), {"name": "acme", "api_version": stated}))
    assert str(refusal.value) == f"Plugin acme is written for API {sentence}"


@pytest.mark.parametrize("stated", ["2", "2.x", "v2.1", 2.1, None, "9" * 5000 + ".0"])
def test_a_version_is_major_and_minor(stated: object) -> None:
    said = unfit("acme", stated)
    assert said is not None and said.startswith("Plugin acme: api_version must be MAJOR.MINOR, such as '2.1', not ")


OLD = '''
from advkit import Plugin, hookimpl, Perturbation  # gone since


class Acme(Plugin):
    """As it was written for the first API."""

    name = "acme-old"
    api_version = "1.4"

    @hookimpl
    def extra_regularizer(self, adv_logits): return adv_logits.sum(1)
'''


def test_an_old_plugin_that_can_not_be_imported_any_more_is_told_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "acme_old.py").write_text(OLD)
    info = tmp_path / "acme_old-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-old\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[advkit.plugins]\nacme-old = acme_old:Acme\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["plan", "--plugins", "acme-old"]) == 4
    said = "Error: Plugin acme-old is written for API 1.4 of advkit, and this advkit has 2.1, where hooks or names are"
    assert capsys.readouterr().err.startswith(said) and "acme_old" not in sys.modules
    (tmp_path / "acme_old.py").write_text(OLD.replace('"1.4"', '"2.1"'))
    assert run(["plan", "--plugins", "acme-old"]) == 4  # for another reason: not blamed on the version
    assert "can not be imported (ImportError: cannot import name 'Perturbation'" in capsys.readouterr().err


def test_a_former_name_works_and_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(advkit._FORMER, "PerSampleBudget", ("Budget", "2.1"))
    with pytest.warns(DeprecationWarning, match=r"^advkit\.PerSampleBudget is advkit\.Budget since API 2\.1\.$"):
        assert advkit.PerSampleBudget is advkit.Budget
    assert "PerSampleBudget" not in dir(advkit)
