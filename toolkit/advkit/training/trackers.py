"""TensorBoard, Weights & Biases and MLflow. What they are told where to write stays theirs: their own variables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ..storage.files import judge_place
from .tracking import Tracker, library


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, for `tensorboard --logdir runs`."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self) -> None:
        library("tensorboard", "tensorboard", self.name)
        self._writers = library("torch.utils.tensorboard", "tensorboard", self.name)

    def begin(self, folder: Path, settings: Mapping[str, object], known_as: str | None, step: int) -> str:
        purge = step + 1 if known_as else None  # what a killed run logged of steps that now come again
        judge_place(folder / "tensorboard" / "events")
        self._writer = self._writers.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if not known_as:
            lines = (f"    {key} = {value}" for key, value in settings.items())
            self._writer.add_text("settings", "\n".join(lines), 0)
        return "tensorboard"

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class WandB(Tracker):
    """Weights & Biases, in the project of WANDB_PROJECT; WANDB_MODE=offline writes to RUN/wandb alone."""

    name: ClassVar[str] = "wandb"

    def __init__(self) -> None:
        self._wandb = library("wandb", "wandb", self.name)

    def begin(self, folder: Path, settings: Mapping[str, object], known_as: str | None, step: int) -> str:
        for name in ("wandb", ".wandb"):  # it writes to the second where that is there
            judge_place(folder / name / "run")
        self._run = self._wandb.init(
            id=known_as,
            resume="allow" if known_as else None,
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            settings=self._wandb.Settings(console="off", silent=True),  # the terminal is the run's
        )
        return str(self._run.id)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def attach(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """MLflow, at MLFLOW_TRACKING_URI and in the experiment of MLFLOW_EXPERIMENT_NAME, else `advkit`."""

    name: ClassVar[str] = "mlflow"

    def __init__(self) -> None:
        self._mlflow = library("mlflow", "mlflow-skinny", self.name)
        self._entities = library("mlflow.entities", "mlflow-skinny", self.name)

    def begin(self, folder: Path, settings: Mapping[str, object], known_as: str | None, step: int) -> str:
        address = self._mlflow.get_tracking_uri().removeprefix("file://").removeprefix("sqlite:///")
        if "://" not in address:  # files, of which a working directory that is a run's folder may have links
            judge_place(Path(address) / "run")
        self._client = self._mlflow.MlflowClient()
        if known_as:
            self._client.update_run(known_as, status="RUNNING")
            self._run = known_as
            return known_as
        name = self._mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "advkit"
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._run = str(self._client.create_run(number, run_name=folder.name).info.run_id)
        parameters = [self._entities.Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(parameters), 100):  # as many as a call may have
            self._client.log_batch(self._run, params=parameters[first : first + 100])
        return self._run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(
            self._run, [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        )

    def attach(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
