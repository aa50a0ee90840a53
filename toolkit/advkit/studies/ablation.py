"""Leave-one-out ablations: a set of plugins, the set without each, and none; paired by seed and by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..arguments import checked
from ..config.layer import Layer
from ..config.request import Request
from ..config.resolve import Resolved
from ..errors import HookConflict, OptionError, named
from ..evaluation.attacks.base import EvaluationAttack
from ..global_state import one_at_a_time
from ..training.progress import Aloud, Progress
from .arms import Arm, Study
from .evaluation_request import ATTACKS, EvaluationRequest
from .inputs import seeds as parse_seeds
from .paired_records import AblationRow
from .paired_tables import ABLATION, FULL
from .plan import requested


def arms(request: Request, seeds: Sequence[int]) -> list[Arm]:
    """The full set, the set without each plugin and without each companion, and none.

    A plugin left out comes not back as a companion.
    """
    if not request.plugins:
        raise OptionError(f"There is nothing to leave out; name plugins: {named('--plugins', 'cat-eps,lsiw')}.")
    chosen = tuple(sorted(str(plugin) for plugin in request.plugins))
    full = _arm_or_refusal(FULL, request, chosen, set(), seeds)
    rows = [full]
    if len(chosen) > 1:
        for name in chosen:
            kept = tuple(other for other in chosen if other != name)
            rows.append(_arm_or_refusal(f"without {name}", request.over(Layer("", plugins=kept)), kept, {name}, seeds))
    added = next(iter(full.resolved.values())).composition.added if full.resolved else {}
    for companion, (wish, _) in sorted(added.items()):
        declining = request.over(Layer("", no_companion=(wish,)))
        rows.append(_arm_or_refusal(f"without {companion}", declining, chosen, {companion}, seeds))
    rows.append(_arm_or_refusal("none", request.over(Layer("", plugins=())), (), set(chosen), seeds))
    return rows


def _arm_or_refusal(
    name: str, request: Request, plugins: tuple[str, ...], left_out: set[str], seeds: Sequence[int]
) -> Arm:
    try:
        return _arm(name, request, plugins, left_out, seeds)
    except (HookConflict, OptionError) as refusal:
        if name == FULL and isinstance(refusal, OptionError):  # what was typed is wrong, whatever is left out
            raise
        return Arm(name, plugins, refused=str(refusal))


def _arm(name: str, request: Request, plugins: tuple[str, ...], left_out: set[str], seeds: Sequence[int]) -> Arm:
    def at(seed: int) -> Resolved:
        return Resolved.of(request.over(Layer("--seeds", {"run.seed": seed})))

    first = at(seeds[0])
    back = {wish for added, (wish, _) in first.composition.added.items() if added in left_out}
    if back:
        return _arm(name, request.over(Layer("", no_companion=tuple(back))), plugins, left_out, seeds)
    rest = {seed: at(seed) for seed in seeds[1:]}
    return Arm(name, plugins, {seeds[0]: first, **rest}, request.declined)


@checked("attacks")
@one_at_a_time
def ablate(
    plugins: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    seeds: int | str | Sequence[int] = 3,
    attacks: str | Sequence[str | EvaluationAttack] = ATTACKS,
    n: int = 1000,
    model: str | None = None,
    dataset: str | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    settings: Mapping[str, object] | None = None,
    eps: float | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    no_companion: Iterable[str] = (),
    progress: Callable[[], Progress] = Aloud,
    tell: Callable[[str], None] | None = None,
    task: int | None = None,
) -> list[AblationRow]:
    """Train a set of plugins, the set without each of them and of their companions, and none, at every seed.

    `seeds` is how many, 3 for 0, 1 and 2, or which, [0, 2]. The runs are those of `advkit.train` with the arguments;
    `attacks` and `n` are `advkit.evaluate`'s. Runs and table
    are in the folder `out`; the same call again goes on where it was. `progress` is asked for once a run; `tell` hears
    of each that is done. `task` does one run alone, of that number from 1, and returns no rows: for clusters.
    """
    short = {"model": model, "dataset": dataset, "eps": eps, "epochs": epochs, "batch_size": batch_size}
    request = requested(plugins, recipe, config, options, settings, no_companion, **short)
    judging = EvaluationRequest.of(attacks, n=n)
    study = Study(Path(out), judging, ABLATION, request.trackers, progress, tell)
    return ablate_request(request, parse_seeds("seeds", seeds), study, task)


def ablate_request(request: Request, seeds: Sequence[int], study: Study, task: int | None = None) -> list[AblationRow]:
    """As `ablate`."""
    if "run.seed" in request.top.settings:  # that of a run file gives way
        raise OptionError(
            f"An ablation takes its seeds from {named('--seeds')}; leave {named('--seed')} (run.seed) out."
        )
    return study.table(arms(request, seeds), task)
