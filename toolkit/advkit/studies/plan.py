"""What a run would do and cost, from the arguments of a call: `advkit plan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import checked
from ..config.layer import Layer, PluginChoice, chosen
from ..config.request import SHORT, Request, merged
from ..config.resolve import Resolved
from ..data.own import as_wide_as
from ..global_state import one_at_a_time
from ..own_file import load_all
from ..training.objects import refuse_undone
from ..training.parts import passed
from ..training.plan import own_net, plan as planned


def requested(
    plugins: str | Iterable[PluginChoice] | None,
    recipe: str | None,
    config: str | Path | None,
    options: Mapping[str, Mapping[str, object]] | None,
    settings: Mapping[str, object] | None,
    no_companion: Iterable[str],
    **short: object,
) -> Request:
    """As `advkit.train` reads its arguments; `short` are those of `SHORT`, None where not given."""
    by_setting = merged(
        settings or {},
        {SHORT[name]: (name, value) for name, value in short.items() if value is not None},
        "settings {key} = {value}",
    )
    top = Layer("python", by_setting, options or {}, chosen(plugins), tuple(no_companion))
    return Request.of(top, recipe=recipe, config=config)


@checked()
@one_at_a_time
def plan(
    plugins: str | Iterable[PluginChoice] | None = None,
    *,
    model: str | nn.Module | None = None,
    dataset: Any = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    settings: Mapping[str, object] | None = None,
    eps: float | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    no_companion: Iterable[str] = (),
) -> dict[str, Any]:
    """What `advkit.train` with these arguments would do and cost, as `advkit plan --json` prints it.

    Names and objects as of `advkit.train`. How much a plugin keeps of the net itself stays unknown.
    """
    own, names = passed(model, dataset)
    if own is not None and isinstance(model, nn.Module):
        own = as_wide_as(own, model)
    short = {**names, "eps": eps, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    resolved = Resolved.of(requested(plugins, recipe, config, options, settings, no_companion, **short))
    refuse_undone(resolved, settings or {}, own, model)
    load_all(resolved.files)
    return planned(resolved, own, model if isinstance(model, nn.Module) else own_net(resolved, own))
