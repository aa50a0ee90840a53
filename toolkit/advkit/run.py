"""What plugins see of the run: addressed randomness, per-sample state, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from .arguments import a_batch, a_name, a_number
from .claims import Claims
from .errors import ResumeMismatch
from .place import Place
from .plugin import Company
from .rng import Draws, derive_key
from .services import Auxiliary, Building, Ending, Probing, Services, Trying, Viewing
from .settings import AttackSettings
from .types import Batch


class RunState(Place):
    """The run's own facts and tensors; one for all plugins. Everything in `samples` and `tensors` is checkpointed."""

    def __init__(
        self, seed: int, num_samples: int, attack: AttackSettings, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.seed, self.num_samples, self.attack = seed, num_samples, attack
        self.device, self.dtype = device, dtype
        self.num_classes = 0
        """0 until the first batch has been seen, in a `Step` that was not told."""
        self.image_shape: tuple[int, ...] = ()
        self.samples: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.fixed: dict[str, str] = {}  # what a resume must find as it is, by stored name; the sentence if not
        self.bounds: dict[str, tuple[float, float]] = {}  # what values must lie within, by stored name
        self.finite: set[str] = set()  # what was without NaN and Inf after setup, and stays so, by stored name
        self.modules: dict[str, Auxiliary | str] = {}  # nets beside the model; of a plan, their places
        self.building: Building | None = None  # who makes them
        self.figures: dict[str, float | None] = {}
        """Of the epoch that ends; never checkpointed, as the line in metrics.jsonl is written first."""
        self.probing: Probing | None = None  # who answers `Run.probe`, while somebody does
        self.viewing: Viewing | None = None  # and `Run.forward`
        self.trial: Trying | None = None  # and `Run.ahead`
        self.ending: Ending | None = None  # whether this epoch is to be the last
        self.settled = False  # setup is over: state claimed now no resume would find

    def stored(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, by name."""
        samples = {f"samples/{name}": values for name, values in self.samples.items()}
        return samples | {f"tensors/{name}": values for name, values in self.tensors.items()}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Put back what `stored` gave. Raises ResumeMismatch if these plugins claim other state."""
        own = self.stored()
        fitting = {name for name in stored.keys() & own.keys() if _described(stored[name]) == _described(own[name])}
        if different := sorted({*stored, *own} - fitting):
            raise ResumeMismatch(
                f"The stored state and that of the plugins differ in {different[0]}; "
                "resume with the same plugins and data."
            )
        for name, sentence in self.fixed.items():
            if not torch.equal(stored[name].to(self.device), own[name]):
                raise ResumeMismatch(sentence)
        for name, values in stored.items():
            own[name].copy_(values)


class Run(Claims, Services):
    """One plugin's view of the run: names are its own, so plugins never meet in state or randomness."""

    _state: RunState

    def __init__(self, state: RunState, plugin: str, company: Company) -> None:
        self._state, self._plugin, self.company = state, plugin, company  # the last: who else is in the run

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self._state.epoch

    @property
    def step(self) -> int:
        """The current step within the epoch, from 0."""
        return self._state.step

    @property
    def epoch_steps(self) -> int:
        """How many steps the current epoch has; 0 before the first, and in a `Step`."""
        return self._state.epoch_steps

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the training images; () in a `Step` that was not told."""
        return self._state.image_shape

    @property
    def num_samples(self) -> int:
        """N, the number of indices of the training set."""
        return self._state.num_samples

    @property
    def num_classes(self) -> int:
        """K; in a `Step` that was not told it is known from the first batch on, and 0 before."""
        return self._state.num_classes

    @property
    def attack(self) -> AttackSettings:
        """The run's attack settings: norm, eps, step_size, steps, init, mode."""
        return self._state.attack

    @property
    def device(self) -> torch.device:
        """Where all tensors of the step live."""
        return self._state.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's floating dtype."""
        return self._state.dtype

    def draws(self, purpose: str, batch: Batch | Tensor, phase: str = "") -> Draws:
        """Random numbers of `purpose`, a row for each sample of the batch, or for each of some ids (n,) int64 >= 0.

        Each is a function of (run seed, plugin, purpose, phase, epoch, sample id, occurrence, draw number), and of
        nothing else: not of the batch, of other plugins, or of how often anybody drew before.
        """
        key = derive_key(self._state.seed, self._plugin, purpose, phase, self._state.epoch)
        if isinstance(batch, Tensor):
            return Draws(key, batch)
        known = a_batch(self._plugin, "run.draws", batch)
        return Draws(key, known.index, known.occurrence)

    def figure(self, name: str, value: float) -> None:
        """Put a figure into the epoch's line of metrics.jsonl, as "PLUGIN/NAME" of `figures`; call it in `epoch_end`.

        What is not finite is written as null.
        """
        own = a_name(self._plugin, "the name of a figure", name)
        number = a_number(f"Plugin {self._plugin}: the figure {own}", value)
        self._state.figures[f"{self._plugin}/{own}"] = number if isfinite(number) else None


def _described(values: Tensor) -> tuple[object, ...]:
    return values.shape, values.dtype
