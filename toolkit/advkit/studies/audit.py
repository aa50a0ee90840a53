"""Whether a net's accuracies under attack can be believed; `advkit audit` and `advkit.audit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import checked
from ..ascent import NORMS
from ..data.chosen import choice
from ..data.own import as_dataset, as_splits, as_wide_as
from ..errors import AdvkitError, OptionError, ProcessLost, named
from ..evaluation import audit as checking
from ..evaluation.attacks import EvaluationAttack, parse_attack
from ..evaluation.verdicts import refuse_gray_levels, settings_of
from ..global_state import one_at_a_time
from ..storage.weights import digest
from ..training.ranks import ALONE, here
from .evaluate import Watch
from .inputs import amount, at_once, whole
from .records import AuditRecord
from .subject import Subject, refuse_dropped, subject_of
from .transfer import refuse_itself
from .verdict_store import versions

EXAMPLES = 1000
"""Training images that a net is imitated on."""


@checked()
@one_at_a_time
def audit(
    subject: nn.Module | str | Path,
    dataset: Any = None,
    *,
    eps: float | str | None = None,
    norm: str | None = None,
    seed: int | str = 0,
    batch_size: int | str | None = None,
    n: int | str | None = None,
    split: str = "test",
    transfer: str | Path | EvaluationAttack | None = None,
    checkpoint: str | None = None,
    model: str | nn.Module | None = None,
    data_root: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    together: bool = False,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
) -> AuditRecord:
    """Every check for masked gradients, on a run, a file of weights or a module; arguments as those of `evaluate`.

    `n` is 200 for runs and weights unless said, all images for a module. `transfer` is the folder of a run whose net
    makes examples, too. The result of a run is kept in RUN/audit.json; `tell` hears where it can not be, else it is
    a warning. `together`: the processes of torchrun share the images, and the first writes. `.alarms` names the checks
    that raise one; silence proves nothing.
    """
    radius = None if eps is None else amount("eps", eps)
    count, start = None if n is None else whole("n", n), whole("seed", seed)
    size = at_once(batch_size)
    refuse_dropped(
        subject,
        dataset,
        norm,
        split,
        checkpoint=checkpoint,
        model=model,
        data_root=None if isinstance(transfer, str | Path) else data_root,
        settings=settings,
    )
    other = transfer if isinstance(transfer, EvaluationAttack | None) else _transfer(transfer, data_root)
    chosen: Subject | None = None
    if isinstance(subject, nn.Module):
        if norm is not None and norm not in NORMS:
            raise OptionError(f"norm = {norm!r} must be one of {', '.join(NORMS)}.")
        every = as_wide_as(as_splits(as_dataset(dataset)), subject).test
        net, norm, examples = subject, norm or "linf", None
        images = every.sample(count or 0)
        head: dict[str, Any] = {"images": choice(len(images), len(every)), "notes": [*every.notes]}
    else:
        chosen = subject_of(
            subject,
            checkpoint,
            model=model,
            dataset=dataset,
            data_root=data_root,
            settings=settings,
            eps=radius,
            batch_size=batch_size,
            together=together,
        )
        if other is not None:
            refuse_itself(other, chosen.identity())
        size = at_once(batch_size, chosen.at_once)
        radius, norm = chosen.eps if radius is None else radius, chosen.norm
        net, every, examples = chosen.model, chosen.images(split), chosen.splits.train.sample(EXAMPLES)
        images = every.sample(200 if count is None else count)
        described = chosen.described(split, len(images))
        head = {"run": chosen.name, **chosen.record, "split": split, "sha256_of_split": every.fingerprint()}
        head["images"] = described
    if not radius:
        raise OptionError(f"An audit needs a radius above 0; give {named('--eps', 'E')}.")
    refuse_gray_levels(radius, norm)
    source = None if other is None else {"name": other.name, **settings_of(other, other.norm or norm, radius)}
    team, done = here() if together else ALONE, 0
    if team.size > 1:
        typed = f"settings {radius} {norm} {start} {source}"
        team.refuse_others({"weights": digest(net.state_dict()), "images": images.fingerprint(), "settings": typed})

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if watch is not None:
            watch(done, len(checking.RULES), "auditing")

    try:
        outcome = checking.audit(
            net,
            images,
            eps=radius,
            norm=norm,
            seed=start,
            transfer=other,
            examples=examples,
            batch_size=size or None,
            team=team,
            tick=tick,
        )
    except ProcessLost as lost:
        raise ProcessLost("Another process of the audit has ended; nothing is kept of it. Start all again.") from lost
    if notes := [*head.pop("notes", ()), *getattr(other, "notes", ()), *outcome.notes]:
        head["notes"] = notes
    record = AuditRecord(
        **head,
        n=len(images),
        norm=norm,
        eps=radius,
        seed=start,
        passes={"forward": outcome.forwards / len(images), "input_backward": outcome.backwards / len(images)},
        checks=list(outcome.checks),
        alarms=outcome.alarms,
        withstood=outcome.withstood,
        hopeless=outcome.hopeless,
        source=source,
        versions=versions(),
    )
    if chosen is not None and chosen.is_run and not team.rank:
        _keep(record, chosen, tell or warnings.warn)
    return record


def _keep(record: AuditRecord, run: Subject, tell: Callable[[str], None]) -> None:
    """RUN/audit.json; what was measured is not lost to a folder that is read-only, or another's by now."""
    try:
        run.refuse_another()
        record.write(Path(str(record.run)) / "audit.json")
    except (OSError, AdvkitError) as error:
        tell(f"The audit is not kept: {error}")


def _transfer(run: str | Path, data_root: str | Path | None) -> EvaluationAttack:
    return parse_attack(f"transfer:{run}", root=None if data_root is None else str(data_root))
