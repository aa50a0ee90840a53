"""The plugins of one run and what they are shown: only what they demand, borrowed, and blamed by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from ..claims import finite_of
from ..compose.composition import Composition
from ..compose.stage import Answer, Stage
from ..errors import OptionError
from ..hookspec import VIEWS
from ..run import Run, RunState
from .engine import Engine
from .guard import Bindings, Strays, guarded, plain
from .shares import Whole


class Panel:
    """Asks the plugins of one run. `guarded` also watches what an answer leaves changed, which costs copies."""

    def __init__(self, composition: Composition, state: RunState) -> None:
        for name in (plugin.name for plugin in composition.plugins if plugin.taken):
            raise OptionError(
                f"The plugin object {name} is in another run already; build a new one, or pass its class."
            )
        for plugin in composition.plugins:
            plugin.taken = True
        self.composition, self.state, self.guarded = composition, state, False
        self.model: nn.Module | None = None
        self._bindings, self._strays = Bindings((), state), Strays()
        self.runs = {p.name: Run(state, p.name, composition.company) for p in composition.plugins}

    @property
    def stage(self) -> Stage:
        """The stage of the current epoch."""
        return self.composition.at(self.state.epoch)

    def ask(self, answer: Answer, known: Mapping[str, Any], **more: Any) -> Any:
        """One answer. A forward that the plugin did not demand is None to it, whoever else had it computed."""
        stage, everything = self.stage, {**known, **more}
        needs, detached = stage.demands.get(answer.key, ()), stage.detached.get(answer.key, VIEWS)
        arguments = everything | {"run": self.runs[answer.plugin.name]}
        for name in (*VIEWS, "success"):
            value = everything.get(stage.aliases.get(name, name)) if name in needs else None
            arguments[name] = value.detach() if value is not None and name in detached else value
        rare = answer.spec.phase in ("data", "run") and answer.hook not in ("mix_batch", "train_transform")
        if self.guarded or rare:
            with self._strays.refused(answer) as own:
                return guarded(answer, arguments, {} if answer.hook == "after_update" else everything, self.model, own)
        return plain(answer.key, answer(arguments))

    def ask_of_all(self, answer: Answer, shares: Whole, known: Mapping[str, Any], **more: Any) -> Any:
        """One answer on the whole batch, of which this process may know but a share."""
        names = {self.stage.aliases.get(name, name) for name in answer.arguments}
        return self.ask(answer, shares.known(known, names), **more)

    def notify(self, hook: str, **known: Any) -> None:
        """Tell everybody who answers a NOTIFY hook in this epoch; before and after the run, whoever is in it."""
        whole = hook in ("setup", "teardown")
        for answer in (self.composition.answers if whole else self.stage.answers)[hook]:
            self.ask(answer, known)
        if hook == "setup":
            self._bindings, self.state.settled = Bindings(self.composition.plugins, self.state), True
            self.state.finite = finite_of(self.state.stored())
        elif hook != "teardown":
            self._bindings.check()

    @contextmanager
    def watching(self, on: bool, engine: Engine | None = None) -> Iterator[None]:
        """Guarded for the scope, if `on`, with an eye on who calls the model beside the `engine`."""
        before, self.guarded = self.guarded, on
        try:
            with nullcontext() if engine is None or not on else self._strays.counted(engine):
                yield
        finally:
            self.guarded = before
