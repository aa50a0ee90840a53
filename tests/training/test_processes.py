"""Several processes train as one does: in float64 to rounding, with the same state, visits and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import in_processes
import pytest
import torch
from in_processes import FEW, JOBS, PAIRS, WHOLE, N, Outcome, apart, attempt, jobs_of, net_of, outcomes

from advkit.config.layer import Layer
from advkit.config.resolve import resolve
from advkit.settings import RunSettings
from advkit.storage.run_folder import RunFolder
from advkit.training import meeting
from advkit.training.accumulate import cut
from advkit.training.meeting import join
from advkit.training.parts import build_model, data_of
from advkit.training.ranks import ALONE

REFUSED = [
    "one broken",
    "apart",
    "weights of parts",
    "for gpus",
    "small",
    "others",
    "one image by itself",
    *sorted(WHOLE),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    small = resolve([], [Layer("here", {"model.width": 4})])
    torch.save(build_model(small, data_of(small).train).state_dict(), folder / "net.pt")
    return folder


class Alone(dict[str, Outcome]):
    """What one process has, computed where it is asked for."""

    def __init__(self, out: Path) -> None:
        self.jobs = jobs_of(out)

    def __missing__(self, name: str) -> Outcome:
        self[name] = attempt(self.jobs[name])
        return self[name]


@pytest.fixture(scope="module")
def alone(out: Path) -> Alone:
    return Alone(out / "one")


@pytest.fixture(scope="module")
def two(out: Path) -> list[dict[str, Outcome]]:
    others = [
        "visits",
        "local",
        "a share of one image",
        "parts of all",
        "begin",
        "module",
        "audited",
        "counted",
        "apart from each other",
        *REFUSED,
        "judged",
    ]
    return outcomes(2, out / "two", [*JOBS, *others])


@pytest.fixture(scope="module")
def three(out: Path, two: list[dict[str, Outcome]]) -> list[dict[str, Outcome]]:
    """After one process has gone on with what two have begun."""
    assert "Stopped in epoch 1 after step 2" in str(two[0]["begin"])
    assert "Stopped in epoch 2 after step 2" in str(attempt(jobs_of(out / "one")["go on"]))
    return outcomes(3, out / "three", [*FEW, "visits", "end", "kill"])


@pytest.fixture(scope="module")
def four(out: Path) -> list[dict[str, Outcome]]:
    return outcomes(4, out / "four", [*JOBS, *PAIRS])


@pytest.fixture(params=["two", "three"])
def several(request: pytest.FixtureRequest) -> list[dict[str, Outcome]]:
    answer: list[dict[str, Outcome]] = request.getfixturevalue(request.param)
    return answer


def close(value: Any) -> Any:
    """Numbers to rounding."""
    if isinstance(value, dict):
        return {key: close(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [close(inner) for inner in value]
    return pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *(("two", name) for name in JOBS),
        ("two", "a share of one image"),
        *(("three", name) for name in FEW),
        *(pytest.param("four", name, marks=pytest.mark.soak) for name in (*JOBS, *PAIRS)),
    ],
)
def test_several_are_as_one(size: str, name: str, alone: dict[str, Outcome], request: pytest.FixtureRequest) -> None:
    """Weights, BatchNorm's statistics, averages, what `Step.state_dict` has, and figures."""
    several = request.getfixturevalue(size)
    first, one = several[0][name], alone[name]
    assert not isinstance(first, str) and not isinstance(one, str), (first, one)
    assert apart(net_of(first), net_of(one)) <= 1e-12
    assert apart(first["averaged"], one["averaged"]) <= 1e-12
    assert first["rows"] == close(one["rows"])
    for process in several[1:]:
        other = process[name]
        assert not isinstance(other, str) and first["rows"] == close(other["rows"])
        assert all(torch.equal(other["net"][key], value) for key, value in first["net"].items())


def test_the_jobs_differ(alone: dict[str, Outcome]) -> None:
    """The control: what is compared moves, and not all alike."""
    assert apart(net_of(alone["alp"]), net_of(alone["at"])) > 1e-4
    assert apart(net_of(alone["alp,av-rank"]), net_of(alone["alp"])) > 1e-4


def test_every_sample_is_visited_once_an_epoch(
    out: Path, alone: dict[str, Outcome], several: list[dict[str, Outcome]]
) -> None:
    tensors, _ = RunFolder.open(out / f"visits-{len(several)}").load("last")
    assert tensors["samples/visits/count"].tolist() == [2] * N
    assert tensors["samples/visits/labels"].dtype == torch.bool and tensors["samples/visits/labels"].sum() == N
    assert alone["visits"]["rows"] == close(several[0]["visits"]["rows"])  # type: ignore[index]
    one, _ = RunFolder.open(out / "visits-1").load("last")
    assert torch.equal(tensors["samples/cat-eps/eps"], one["samples/cat-eps/eps"])


def test_local_batch_norm_is_another_run(alone: dict[str, Outcome], two: list[dict[str, Outcome]]) -> None:
    """Each process takes the statistics of its share; those that are kept are the first's."""
    assert apart(net_of(two[0]["local"]), net_of(alone["local"])) > 1e-4
    assert all(torch.equal(net_of(two[1]["local"])[key], value) for key, value in net_of(two[0]["local"]).items())


def test_parts_take_the_statistics_of_those_of_all(alone: dict[str, Outcome], two: list[dict[str, Outcome]]) -> None:
    """With dropout: another run than that of one process, and the same in all."""
    first, second = (net_of(process["parts of all"]) for process in two)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert int(first["1.num_batches_tracked"]) == int(net_of(alone["parts of all"])["1.num_batches_tracked"]) > 1


def test_a_run_goes_on_with_more_processes_and_with_fewer(out: Path, three: list[dict[str, Outcome]]) -> None:
    """2, then 1, then 3; a stop that one process is asked for is all of theirs."""
    assert json.loads((out / "elastic" / "environment.json").read_text())["processes"] == 2
    whole = in_processes.elastic()
    assert apart(net_of(three[0]["end"]), whole["net"]) <= 1e-12
    assert three[0]["end"]["rows"] == close(whole["rows"])  # type: ignore[index]


def test_several_judge_as_one_does(alone: dict[str, Outcome], two: list[dict[str, Outcome]]) -> None:
    """Three chunks, of which the first process has two; it alone speaks and writes."""
    one: Any = alone["judged"]
    assert [process["judged"] for process in two] == [one, {"code": 0, "said": ""}]
    assert one["code"] == 0 and one["kept"] == 6
    assert [process["module"] for process in two] == [alone["module"]] * 2
    assert {line[-4:] for line in one["verdicts"].splitlines()[1:]} == {",0,0", ",1,0", ",1,1"}


def test_a_process_judges_no_more_at_once_than_it_trains_on(
    out: Path, alone: dict[str, Outcome], two: list[dict[str, Outcome]]
) -> None:
    """A part of its share; also where one process judges what two have trained."""
    assert alone["counted"] == {"trained": 8, "judged": 8}
    assert [process["counted"] for process in two] == [{"trained": 4, "judged": most} for most in (4, 0)]
    assert in_processes.most_judged(out / "counted-2", fresh=True) == 4
    assert in_processes.most_judged(out / "counted-2", fresh=True, batch_size=7) == 7


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (3, 5), (16, 1), (16, 2)])
def test_as_many_at_once_as_the_largest_part_of_the_largest_share(processes: int, parts: int) -> None:
    shares = torch.arange(16).tensor_split(processes)
    most = len(shares[0]) if processes > 1 else None
    sizes = [len(part) for share in shares for part in cut(share, parts, most)]
    assert RunSettings(batch_size=16, accumulate=parts).at_once(processes) == max(sizes)


def test_several_audit_as_one_does(alone: dict[str, Outcome], two: list[dict[str, Outcome]]) -> None:
    """Passes, draws of the net, and what a part is refused with, too; the first process alone speaks."""
    one: Any = alone["audited"]
    assert [process["audited"] for process in two] == [one, {**one, "code": 0, "said": ""}]
    assert (one["code"], json.loads(one["said"])["hopeless"] is None) == (3, False)
    figures = {check["name"]: check for check in one["record"]["checks"]}
    assert figures["apgd-t-gap"]["alarm"] is None and "needs four classes" in figures["apgd-t-gap"]["sentence"]
    assert figures["non-determinism"]["figure"] > 0.9 and figures["steps-accuracy"]["of"] == 20


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_who_needs_the_whole_batch_is_refused(name: str, two: list[dict[str, Outcome]]) -> None:
    sentence = (
        f"HookConflict: Plugin {name} may need the whole batch (it does not declare by_sample), and a run of 2 "
        "processes asks it about parts; leave one of them out."
    )
    assert [process[name] for process in two] == [sentence] * 2


def test_what_is_not_finite_in_one_process_stops_all(alone: dict[str, Outcome], two: list[dict[str, Outcome]]) -> None:
    """With the sentence of one process."""
    assert "the loss (term one-broken) at epoch 1, step" in str(alone["one broken"])
    assert [process["one broken"] for process in two] == [alone["one broken"]] * 2


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (
            "apart",
            "HookContract: The processes hold different bits of tensors/apart/mine. What a plugin keeps must not "
            "depend on a part of the batch; what it keeps of samples it writes in hooks of the attack or in one of the "
            "whole batch, such as observe_update. In a script of one's own every process must build the same model "
            "(torch.manual_seed).",
        ),
        (
            "weights of parts",
            "HookConflict: Plugin mlcat weighs the instances of a whole batch, which run.accumulate in several "
            "processes never brings together; leave one of them out.",
        ),
        (
            "for gpus",
            "OptionError: 1 of the model is an nn.SyncBatchNorm, which several processes can not compute on CPUs; "
            "leave nn.BatchNorm as it is: run.batchnorm=synchronised takes the statistics of all.",
        ),
        (
            "small",
            "OptionError: A batch of 1 images is too small for 2 processes; raise run.batch_size, or start fewer.",
        ),
        (
            "one image by itself",
            "OptionError: BatchNorm of the model has one value a channel in a batch of one image, and takes no "
            "statistics of it; one of 2 processes has one image of a batch of 3: take run.batchnorm=synchronised, "
            "another run.batch_size, or another number of processes.",
        ),
        ("others", "OptionError: The processes were started with different settings; give all of them the same."),
    ],
)
def test_what_several_processes_can_not_do(job: str, sentence: str, two: list[dict[str, Outcome]]) -> None:
    assert [process[job] for process in two] == [sentence] * 2


GIVEN = "The processes were started with different"
APART = {
    "nothing": "",
    "seed": f"OptionError: {GIVEN} settings; give all of them the same.",
    "option": f"OptionError: {GIVEN} settings; give all of them the same.",
    "size": f"OptionError: {GIVEN} num_samples; give all of them the same.",
    "rate": "OptionError: The optimizers of the processes are set differently, in lr or another value of param_groups;",
    "epoch": "OptionError: The processes are in different epochs, 0 and 1; give all of them the same.",
    "steps": "OptionError: The processes have taken different numbers of steps of an epoch, 0 and 1; all must take",
    "bias": "HookContract: The processes hold different bits of model/0.bias.",
    "drift": "HookContract: The processes hold different bits of model/0.bias.",
    "mean": "HookContract: The processes hold different bits of model/1.running_mean.",
    "frozen": "OptionError: The processes train different parameters; build the same model in all of them, and freeze",
    "layers": "OptionError: The processes train different parameters; build the same model in all of them, and freeze",
    "checkpointing": "OptionError: A part of the model's forward is computed again in the backward "
    "(torch.utils.checkpoint) and comes out differently, as BatchNorm over several processes does. Switch that off.",
    "eps": f"OptionError: {GIVEN} attacks, or an eps or seed of their own; give all of them the same.",
    "searched": f"OptionError: {GIVEN} attacks, or an eps or seed of their own; give all of them the same.",
    "transfer": f"OptionError: {GIVEN} settings; give all of them the same.",
}


@pytest.mark.parametrize("name", APART)
def test_processes_that_are_given_something_else_each_are_refused(name: str, two: list[dict[str, Outcome]]) -> None:
    """In steps of a loop of one's own, evaluations and audits; "nothing" is the control."""
    for process in two:
        told = process["apart from each other"]
        assert not isinstance(told, str) and told.keys() == APART.keys(), told
        assert (told[name] == "") == (name == "nothing") and told[name].startswith(APART[name])


@pytest.fixture(scope="module")
def hanging(out: Path) -> list[dict[str, Outcome]]:
    return outcomes(2, out / "hanging", ["hang"])


@pytest.mark.parametrize(
    ("processes", "how"), [("three", "kill"), pytest.param("hanging", "hang", marks=pytest.mark.soak)]
)
def test_a_process_that_is_lost_ends_all_and_the_run_goes_on(
    processes: str, how: str, out: Path, request: pytest.FixtureRequest
) -> None:
    """In the middle of a step."""
    *others, lost = request.getfixturevalue(processes)
    sentence = "ProcessLost: Another process of the run has ended, or has not answered within run.timeout"
    assert how not in lost and all(str(process[how]).startswith(sentence) for process in others)
    in_processes.Fails.how = staticmethod(lambda: None)
    rest, whole = in_processes.torn(resume_from=out / how), in_processes.torn()
    assert apart(rest["net"], whole["net"]) <= 1e-12 and rest["rows"] == close(whole["rows"])


@pytest.mark.parametrize(("device", "backends"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")])
def test_processes_meet_by_backends_for_both_devices(
    device: str, backends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions are told from CPUs. With none named torch takes nccl alone where there are GPUs, which has none."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    met: list[str] = []
    monkeypatch.setattr(meeting.dist, "init_process_group", lambda backend, timeout: met.append(backend))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(meeting.atexit, "register", lambda function: None)
    join(RunSettings(device=device), 60)
    assert met == [backends]


def test_one_process_of_torchrun_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    run: Any = resolve([], []).run
    assert join(run, 1.0) is ALONE
