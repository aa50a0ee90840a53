"""`advkit analyze`: vulnerability, margins, loss landscapes and budgets of a run, as figures, arrays and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import OptionError
from .asked import Asked
from .evaluate import number, whole

ATTACK = ("attack", "eps", "step")
PLANES = {
    "cat": "cat: x + a sign(grad CE) + b r, r random signs; no attack",
    "iseat": "iseat: x + alpha delta / ||delta|| + beta u / ||u||, u uniform noise",
}


@click.group("analyze")
def command() -> None:
    """What training did to each sample: figures, arrays (.npz) and pictures (.png, .svg) in RUN/analysis.

    \b
    advkit analyze vulnerability runs/lsiw-1
    advkit analyze landscape runs/lsiw-1 --kind iseat --index 7
    """


def options(
    n: str | None = None, checkpoint: str = "best", attacked: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What the analyses share; those that look at some images take --split and --n, those that attack their attack."""
    found = [
        click.option(
            "--checkpoint", "which", default=checkpoint, show_default=True, type=click.Choice(["best", "last"])
        ),
        click.option("--data-root", metavar="DIR", help="Folder or zip of the data; the run's by default."),
        click.option("--out", metavar="DIR", help="Where the files go; RUN/analysis by default."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    if n is not None:
        splits = click.Choice(["train", "validation", "test"])
        found += [
            click.option(
                "--split", default="train", show_default=True, type=splits, help="train: without held-out ones."
            ),
            click.option("--n", "count", default=n, show_default=True, metavar="N", help="N images at random; 0: all."),
        ]
    if attacked:
        found += [
            click.option("--attack", default="pgd-50", show_default=True, metavar="A", help="pgd-K, from the image."),
            click.option("--eps", metavar="E", help="Perturbation budget; the run's by default."),
            click.option("--step", default="eps/4", show_default=True, metavar="S", help="eps/N or SHARE eps."),
        ]

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.argument("run", metavar="RUN")(function)
        for each in reversed(found):
            function = each(function)
        return function

    return add


@command.command("vulnerability")
@options(n="0")
def vulnerability(**typed: Any) -> None:
    """How much the attack raises each sample's loss: AV_i = CE(x_i + delta_i) - CE(x_i) (ISEAT, Eq. 3, Table 1)."""
    from ..studies.analysis import adversarial_vulnerability
    from ..studies.analysis.record import tensors

    asked = Asked(typed)
    with asked.bar() as tick:
        found = adversarial_vulnerability(
            asked.subject.model, asked.dataset, asked.attack, index=asked.index, tick=tick
        )

    def draw() -> Any:
        from ..studies.analysis.pictures import vulnerability_picture

        return vulnerability_picture(found)

    figures = found.unevenness.as_dict()
    asked.finish(
        "vulnerability",
        {},
        figures,
        tensors(found) | {"av": found.av},
        draw,
        [
            ("AV mean", _number(figures["mean"], "nats")),
            ("AV SD", _number(figures["sd"], "nats")),
            ("top 10 %", _number(figures["top_10"], "nats")),
            ("bottom 10 %", _number(figures["bottom_10"], "nats")),
            ("AV >= 1", _share(figures["at_least_1"])),
            ("AV <= 0", _share(figures["at_most_0"])),
        ],
    )


@command.command("margin")
@options(n="1000")
@click.option("--cap", default="50", show_default=True, metavar="MU", help="Where the scan ends, L2.")
@click.option("--precision", default="0.1", show_default=True, metavar="MU", help="Step of the scan, L2.")
@click.option("--clip/--no-clip", default=True, show_default=True, help="Keep the images in [0, 1].")
def margin(cap: str, precision: str, clip: bool, **typed: Any) -> None:
    """How far along the adversarial direction each prediction holds: the first flip mu (ISEAT, Eq. 7, Fig. 1b)."""
    from ..studies.analysis import margins
    from ..studies.analysis.record import tensors

    end, pitch = number("--cap", cap) or 0.0, number("--precision", precision) or 0.0
    asked = Asked(typed)
    with asked.bar() as tick:
        found = margins(
            asked.subject.model,
            asked.dataset,
            asked.attack,
            index=asked.index,
            cap=end,
            precision=pitch,
            clip=clip,
            tick=tick,
        )

    def draw() -> Any:
        from ..studies.analysis.pictures import margin_picture

        return margin_picture(found)

    figures = found.as_dict()
    asked.finish(
        "margin",
        {"cap": end, "precision": pitch, "clip": clip},
        figures,
        tensors(found),
        draw,
        [
            ("mu mean", _number(figures["mean"], "L2")),
            ("mu mean, flipped ones", _number(figures["mean_flipped"], "L2")),
            *((f"mu {q[1:]} % quantile", _number(figures[q], "L2")) for q in ("q10", "q50", "q90")),
            ("mu_eps mean", _number(figures["mean_mu_eps"], "L2")),
            ("mu <= mu_eps / 3", _share(figures["within_third_of_eps"])),
            ("mu <= mu_eps", _share(figures["within_eps"])),
            ("mu > 2 mu_eps", _share(figures["beyond_twice_eps"])),
            (f"never up to {end:g} (disordered)", _share(figures["disordered"])),
            ("no direction (undefined)", str(figures["undefined"])),
        ],
    )


@command.command("landscape")
@options(n="16")
@click.option(
    "--kind",
    default="cat",
    show_default=True,
    type=click.Choice(["cat", "iseat"]),
    help="cat: gradient's sign x Rademacher (Fig. 2), no attack; iseat: adversarial x random direction in L2 (Eq. 8).",
)
@click.option("--index", "place", metavar="I", help="One image, by its place in the split, instead of a mean over --n.")
@click.option("--points", default="41", show_default=True, metavar="P", help="Grid points a side, odd.")
@click.option(
    "--extent", metavar="E", help="The axes end at +-E; 0.1 (cat), twice the budget in L2 (iseat) by default."
)
@click.option("--clip/--no-clip", default=None, help="Keep the images in [0, 1]; by default for iseat alone.")
@click.option("--seed", default="0", show_default=True, metavar="N", help="Of the random direction.")
def landscape(
    kind: Any,
    place: str | None,
    points: str,
    extent: str | None,
    clip: bool | None,
    seed: str,
    **typed: Any,
) -> None:
    """The loss on a plane around one image, or its mean over some (CAT, Fig. 2; ISEAT, Fig. 3).

    --attack, --eps and --step are for --kind iseat. The files are named after kind and index: landscape-iseat-7.json.
    """
    from ..studies.analysis import loss_landscape
    from ..studies.analysis.record import tensors

    size, start, far = whole("--points", points), whole("--seed", seed), number("--extent", extent)
    one = None if place is None else whole("--index", place)
    if kind == "cat":
        typed = _unattacked(typed)
    asked = Asked(typed, one)
    with asked.bar() as tick:
        found = loss_landscape(
            asked.subject.model,
            asked.dataset,
            None if kind == "cat" else asked.attack,
            kind=kind,
            index=asked.index,
            points=size,
            extent=far,
            clip=clip,
            seed=start,
            tick=tick,
        )

    def draw() -> Any:
        from ..studies.analysis.pictures import landscape_picture

        return landscape_picture(found, asked.dataset.classes, asked.dataset.labels[found.index])

    figures, end, clip = found.as_dict(), float(found.first[-1]), found.clip
    asked.finish(
        f"landscape-{kind}" if one is None else f"landscape-{kind}-{one}",
        {"kind": kind, "index": one, "points": size, "extent": end, "clip": clip, "seed": start},
        figures,
        tensors(found),
        draw,
        [
            ("kind", PLANES[kind]),
            *([] if one is None else [("image", str(one))]),
            ("extent", f"-{end:.4g} to {end:.4g}, {'pixels in [0, 1]' if kind == 'cat' else 'L2'}"),
            ("clipped to [0, 1]", "yes" if clip else "no"),
            ("loss at x", _number(figures["loss_at_x"], "nats")),
            *(
                (f"{name} loss", f"{figures[name]:.3f} nats at ({figures[first]:.3g}, {figures[second]:.3g})")
                for name, first, second in (
                    (name, f"{name}_at_first", f"{name}_at_second") for name in ("highest", "lowest")
                )
            ),
            ("images without a direction", str(figures["skipped"])),
        ],
    )


def _unattacked(typed: dict[str, Any]) -> dict[str, Any]:
    """`typed` without the attack's options. Raises OptionError where one was given: it would change nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in ATTACK if source(name) is not ParameterSource.DEFAULT]
    if given:
        raise OptionError(f"{', '.join(given)}: --kind cat attacks nothing; leave it out, or choose --kind iseat.")
    return {name: value for name, value in typed.items() if name not in ATTACK}


@command.command("budget")
@options(checkpoint="last", attacked=False)
def budget(**typed: Any) -> None:
    """The budgets eps_i of a run of cat-eps: over the epochs, by class, and the hardest samples (CAT)."""
    from ..storage.run_folder import RunFolder
    from ..studies.analysis import sample_budgets
    from ..studies.analysis.record import tensors

    asked = Asked(typed)
    subject = asked.subject
    found = sample_budgets(
        RunFolder.open(Path(subject.name)), subject.resolved, subject.splits.train, subject.model, typed["which"]
    )

    def draw() -> Any:
        from ..studies.analysis.pictures import budget_picture

        return budget_picture(found, subject.splits.train)

    figures = found.as_dict()
    asked.finish(
        "budget",
        {"state": found.state, "eps_max": found.eps_max, "largest_radius": found.largest_radius},
        figures,
        tensors(found),
        draw,
        [
            ("unit of eps_i", "pixels in [0, 1]" if found.norm == "linf" else "L2"),
            ("eps_i mean", f"{figures['mean']:.4f}"),
            ("eps_i SD", f"{figures['sd']:.4f}"),
            *((f"eps_i {int(q[1:])} % quantile", f"{figures[q]:.4f}") for q in ("q00", "q25", "q50", "q75", "q100")),
            ("cap of eps_i (eps_max)", "none known" if found.eps_max is None else f"{found.eps_max:.4f}"),
            ("largest possible radius", f"{found.largest_radius:.4f}"),
            ("share with eps_i = 0", _share(figures["at_0"])),
            ("share at the 100 % quantile", f"{_share(figures['at_q100'])} (eps_i = {figures['q100']:.4f})"),
            (
                "hardest classes (mean eps_i)",
                ", ".join(f"{row['class']} ({row['mean']:.4f})" for row in figures["classes"][:5]),
            ),
            (
                "hardest samples, index (class)",
                ", ".join(f"{row['index']} ({row['class']})" for row in figures["hardest"][:8]),
            ),
        ],
    )


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3f} {unit}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
