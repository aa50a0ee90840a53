"""Accuracies under attack: of a run, of a file of weights, or of a module; `advkit evaluate` and `advkit.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import checked
from ..ascent import NORMS
from ..data.base import Dataset
from ..data.chosen import choice, shuffled
from ..data.own import as_dataset, as_splits, as_wide_as
from ..errors import OptionError, ProcessLost, Stopped, named
from ..evaluation.attacks.base import EvaluationAttack
from ..evaluation.audit.brief import judged, measured
from ..evaluation.audit.checks import Check
from ..evaluation.results import Verdicts, summary
from ..evaluation.verdicts import Radius, budgets, ranges, verdicts
from ..global_state import one_at_a_time
from ..storage.weights import digest
from ..training.ranks import ALONE, Alone, here
from .evaluation_request import ATTACKS, EvaluationRequest
from .records import Evaluation
from .subject import Subject, refuse_dropped, subject_of
from .transfer import refuse_itself
from .verdict_store import Store, columns, folder_of, identity, merged, robustbench, versions

Watch = Callable[[int, int, str], None]
"""Told how much is done, of how much, and of what: for a progress bar."""


@checked("attacks", "eps")
@one_at_a_time
def evaluate(
    subject: nn.Module | str | Path,
    dataset: Any = None,
    attacks: str | Sequence[str | EvaluationAttack] = ATTACKS,
    *,
    eps: Radius | str | Mapping[str, Radius] | None = None,
    norm: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    n: int | None = None,
    split: str = "test",
    step: str = "eps/5",
    eps_l2: float | str | None = None,
    eps_linf: float | str | None = None,
    checkpoint: str | None = None,
    model: str | nn.Module | None = None,
    data_root: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    audit: bool = True,
    together: bool = False,
    watch: Watch | None = None,
) -> Evaluation:
    """Accuracies with intervals under each attack and in the worst case, with the short audit.

    Three things can be evaluated:

        evaluate(module, dataset, attacks, eps=0.15)            a module on all images of a data set
        evaluate("runs/lsiw-1", attacks="clean,pgd-20")         a run, as `advkit evaluate` does
        evaluate("net.safetensors", "digits", eps="8/255", model="small-cnn")     a file of weights

    Args:
        subject: a module from images in [0, 1] to logits (B, K), the folder of a run, or a file of weights.
        dataset: for a module the images, an advkit.Dataset or what can be made one, such as a pair (images, labels), a
            torch data set or a DataLoader; for weights the name of a data set, or FILE.py:NAME; a run has its own,
            but for one that was trained on objects or on FILE.py:NAME it is given again.
        attacks: names, or objects of `EvaluationAttack`; "a,b" or a sequence.
        eps: a number or "8/255"; for a module also (n,), one an image, or by norm {"linf": 0.03, "l2": 0.5}. A run
            has its own.
        norm: "linf" or "l2", for a module; "linf" if it is left out.
        seed: of random starts and searches.
        batch_size: images computed at once, 0: as many as an attack shows; 100, or fewer if a run trained on fewer.
        n: how many images; 0 is all. Of a run 1000 unless said, of a module all.
        split, checkpoint, data_root: of a run: "test" or "train"; "best" or "last"; where its data lies now.
        step: of PGD, a share of eps.
        eps_l2, eps_linf: for attacks in that norm, where the run's is the other.
        model, settings: for weights: a model's name or FILE.py:NAME, and settings such as {"model.width": 16}. For a
            run whose net was passed, a module that takes its weights; for one of FILE.py:NAME, that again.
        out: where verdicts of runs and weights are kept; RUN/evaluations, or runs/evaluations for weights.
        fresh: ask for verdicts that are known already again.
        audit: whether to run the short audit: some forty forwards and twenty backwards on each of 200 images.
        together: whether the processes of torchrun share the images; all of them call this, and the first writes.
        watch: told of the progress.

    The result reads like its JSON: `result["attacks"][0]["accuracy"]`, `result["worst_case"]`, `result["suspect"]`
    (True where PGD on cross-entropy and on the margin, of equal steps, differ too much, None where not both were
    run), `result["robust"]`, a list of bool an attack. Raises AdvkitError's subclasses, each one sentence.
    """
    request = EvaluationRequest.of(
        attacks,
        eps=eps,
        by_norm={"l2": eps_l2, "linf": eps_linf},
        step=step,
        n=n,
        split=split,
        seed=seed,
        batch_size=batch_size,
        fresh=fresh,
        data_root=data_root,
    )
    refuse_dropped(
        subject,
        dataset,
        norm,
        split,
        checkpoint=checkpoint,
        model=model,
        data_root=data_root,
        settings=settings,
        out=out,
        fresh=fresh or None,
    )
    team = here() if together else ALONE
    if isinstance(subject, nn.Module):
        return evaluate_module(subject, dataset, request, norm=norm, audit=audit, team=team, watch=watch)
    net = subject_of(
        subject,
        checkpoint,
        model=model,
        dataset=dataset,
        data_root=data_root,
        settings=settings,
        eps=request.eps,
        batch_size=request.batch_size,
        together=together,
    )
    return evaluate_subject(net, request, Path(out) if out else None, audit=audit, team=team, watch=watch)[0]


def evaluate_module(
    model: nn.Module,
    dataset: object,
    request: EvaluationRequest,
    *,
    norm: str | None = None,
    audit: bool = True,
    team: Alone = ALONE,
    watch: Watch | None = None,
) -> Evaluation:
    """A module on images; nothing is kept on disk."""
    request, norm = request.bounded(), norm or "linf"
    if norm not in NORMS:
        raise OptionError(f"norm = {norm!r} must be one of {', '.join(NORMS)}.")
    if request.eps is None:
        raise OptionError("A module has no eps of its own; give eps, such as eps=8/255.")
    every = as_wide_as(as_splits(as_dataset(dataset)), model).test
    images = every.sample(request.n or 0)
    radii = {own: _of_these(eps, every, images) for own, eps in request.of_module(norm).items()}
    verdicts_by_name = _ask(model, images, request, radii, norm, None, team, watch)
    shared, used = radii.get(norm), budgets(request.attacks, radii, norm, len(images))
    eps = None if shared is None else _shared(used.get(norm, shared))
    said: dict[str, Any] = {"notes": [*every.notes, *ranges(used)], **summary(list(verdicts_by_name.values()), norm)}
    if audit:
        said["audit"] = _short_audit(model, images, eps, norm, request)(verdicts_by_name.values())
    return Evaluation(
        n=len(images),
        images=choice(len(images), len(every)),
        norm=norm,
        eps=eps,
        seed=request.seed,
        versions=versions(),
        **said,
        robust=_robust(verdicts_by_name),
        index=images.index.tolist(),
    )


def evaluate_subject(
    net: Subject,
    request: EvaluationRequest,
    out: Path | None = None,
    *,
    audit: bool = True,
    team: Alone = ALONE,
    watch: Watch | None = None,
) -> tuple[Evaluation, dict[str, Verdicts]]:
    """The result, which is kept on disk too, and the verdicts by attack."""
    for attack in request.attacks:
        refuse_itself(attack, net.identity())
    request, norm, radii = request.bounded(net.at_once), net.norm, request.radii(net)
    eps = radii[norm]
    budgets(request.attacks, radii, norm, 1)  # refused before anything is written
    count = 1000 if request.n is None else request.n
    images, known = net.images(request.split, count), identity(net, request.split, eps, request.seed, count)
    home = Path(net.name) / "evaluations" if net.is_run else Path("runs/evaluations")
    folder = folder_of(out or home, net, known)
    with Store(folder, known, request.fresh, writes=team.rank == 0, typed=out is not None) as kept:
        try:
            asked_for = _ask(net.model, images, request, radii, norm, kept, team, watch)
        except (Stopped, KeyboardInterrupt) as stopped:
            again = "the same command again" + request.fresh * f", without {named('--fresh')},"
            raise type(stopped)(f"Stopped; the verdicts so far are in {folder}. Give {again} to go on.") from None
        except ProcessLost as lost:
            raise ProcessLost(
                f"Another process has ended; the verdicts so far are in {folder}. Start all again."
            ) from lost
        head = {
            "run": net.name,
            "dataset": net.resolved.data.name,
            "model": net.resolved.net,
            **net.record,
            "split": request.split,
            "sha256_of_split": known["data"],
            "n": len(images),
            "images": net.described(request.split, len(images)),
            "norm": norm,
            "eps": eps,
            "seed": request.seed,
            "versions": versions(),
        }
        everything = merged(asked_for.values(), kept.complete(len(images)))
        checks = _short_audit(net.model, images, eps, norm, request) if audit else None

        def said(of: Sequence[Verdicts]) -> dict[str, Any]:
            """What these verdicts say; those asked for lead the others, so the columns are theirs too."""
            accuracies = summary(of, norm)
            for row, column in zip(accuracies["attacks"], columns(everything), strict=False):
                row["column"] = column
            part = head | accuracies
            part["robustbench"] = robustbench(net, part)
            return part if checks is None else part | {"audit": checks(of)}

        kept.finish(Evaluation(**said(everything)), images, everything)
        result = Evaluation(
            **said(list(asked_for.values())),
            folder=str(kept.results(len(images))),
            robust=_robust(asked_for),
            index=images.index.tolist(),
        )
    return result, asked_for


def _ask(
    model: nn.Module,
    images: Dataset,
    request: EvaluationRequest,
    radii: Mapping[str, Radius],
    norm: str,
    kept: Store | None,
    team: Alone,
    watch: Watch | None,
) -> dict[str, Verdicts]:
    done, total = 0, len(images) * len(request.attacks)
    if team.size > 1:
        team.refuse_others({"weights": digest(model.state_dict()), "images": images.fingerprint()})

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if watch is not None:
            watch(done, total, "evaluating")

    return verdicts(
        model,
        images,
        request.attacks,
        eps=radii,
        norm=norm,
        seed=request.seed,
        kept=kept,
        batch_size=request.batch_size or None,
        team=team,
        tick=tick,
        tell=None if watch is None else lambda what: watch(done, total, what),
    )


def _short_audit(
    model: nn.Module, images: Dataset, eps: float | None, norm: str, request: EvaluationRequest
) -> Callable[[Iterable[Verdicts]], list[Check]]:
    """Asks the net once; what it returns judges that beside some verdicts. Nothing where there is no one radius."""
    if not eps:
        return lambda of: []
    asked = measured(model, images, eps=eps, norm=norm, seed=request.seed, batch_size=request.batch_size or None)
    return lambda of: judged(asked, of, norm)


def _of_these(radius: Radius, every: Dataset, images: Dataset) -> Radius:
    """Of one eps an image, those of the images that were chosen."""
    if not isinstance(radius, torch.Tensor) or radius.shape != (len(every),) or len(images) == len(every):
        return radius
    return radius[shuffled(every.index)[: len(images)].to(radius.device)]


def _shared(radius: Radius) -> float | None:
    if not isinstance(radius, torch.Tensor):
        return float(radius)
    return float(radius.flatten()[0]) if radius.numel() and bool((radius == radius.flatten()[0]).all()) else None


def _robust(of: Mapping[str, Verdicts]) -> dict[str, list[bool]]:
    return {name: one.robust.tolist() for name, one in of.items()}
