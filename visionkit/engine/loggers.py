"""Send what metrics.jsonl gets, and images, to experiment trackers.

A logger that fails is reported once and dropped: the run matters more. Only rank 0 logs.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionkit.config.components import build
from visionkit.distributed import collectives
from visionkit.errors import ResourceError, install_hint
from visionkit.runs import files
from visionkit.types import Logger

log = logging.getLogger("visionkit")
__all__ = ["MLflow", "TensorBoard", "WandB"]

IDS = "loggers.json"  # in the run directory: the tracker's run of each logger
NAMES = ("kind", "step")  # of a record of metrics.jsonl; not metrics


class TensorBoard:
    """Writes event files for `tensorboard --logdir RUN`.

    dir: folder below the run directory.
    """

    def __init__(self, *, dir: str = "tensorboard") -> None:
        self.dir = dir

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        writer = _needed(lambda: import_module("torch.utils.tensorboard"))
        # What a resumed run logs again replaces what its crashed predecessor has logged.
        step = last_step(run)
        self.writer = writer.SummaryWriter(
            str(run / self.dir), purge_step=None if step is None else step + 1
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        for name, image in images.items():
            self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self.writer.flush()

    def end(self, status: str) -> None:
        self.writer.close()


class WandB:
    """Logs to Weights & Biases.

    project: the project; null: what WANDB_PROJECT says.
    mode: `online` or `offline`, in the run directory; null: what WANDB_MODE says.
    """

    def __init__(self, *, project: str | None = None, mode: str | None = None) -> None:
        self.project, self.mode = project, mode

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        wandb = _needed(lambda: import_module("wandb"))
        self.wandb = wandb
        self.run = wandb.init(
            project=self.project,
            mode=self.mode,
            name=run.name,
            dir=str(run),
            config=dict(config),
            id=remembered(run, "WandB", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        self.run.log({name: self.wandb.Image(image) for name, image in images.items()}, step=step)

    def end(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "finished" else 1)


class MLflow:
    """Logs to MLflow.

    uri: a tracking server, or a folder; null: what MLFLOW_TRACKING_URI says, else ./mlruns.
    experiment: its experiment.
    """

    def __init__(self, *, uri: str | None = None, experiment: str = "visionkit") -> None:
        self.uri, self.experiment = uri, experiment

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        mlflow = _needed(lambda: import_module("mlflow"))
        uri = self.uri
        if uri is None and not mlflow.environment_variables.MLFLOW_TRACKING_URI.is_set():
            uri = Path("mlruns").absolute().as_uri()
        if uri is None or uri.startswith("file:"):  # where MLflow 3 refuses it otherwise
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = mlflow.MlflowClient(tracking_uri=uri)

        def create() -> str:
            known = self.client.get_experiment_by_name(self.experiment)
            id_ = known.experiment_id if known else self.client.create_experiment(self.experiment)
            return self.client.create_run(id_, run_name=run.name).info.run_id

        self.id = remembered(run, "MLflow", create)
        self.client.update_run(self.id, status="RUNNING")
        self.client.log_dict(self.id, dict(config), "config.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, _mlflow_name(name), value, step=step)

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        for name, image in images.items():
            self.client.log_image(self.id, image, f"images/{_mlflow_name(name)}_{step}.png")

    def end(self, status: str) -> None:
        self.client.set_terminated(self.id, "FINISHED" if status == "finished" else "KILLED")


class Loggers:
    """The loggers of a run, on rank 0; none elsewhere."""

    def __init__(self, specs: Sequence[str | Mapping[str, Any]]) -> None:
        self.active: dict[str, Logger] = {}
        for number, spec in enumerate(specs if collectives.rank() == 0 else ()):
            given = {"type": spec} if isinstance(spec, str) else dict(spec)
            key = f"train.loggers.{number}"
            self.active[f"{given['type']} ({key})"] = build("loggers", given, key=key)

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        """The run begins or is resumed; metrics.jsonl has what it has logged so far."""
        self._each(lambda one: one.begin(run, config))

    def record(self, record: Mapping[str, Any]) -> None:
        """A record of metrics.jsonl; values that are not numbers are skipped."""
        values = {
            name: float(value)
            for name, value in record.items()
            if name not in NAMES and isinstance(value, int | float) and value == value
        }
        self._each(lambda one: one.scalars(record["step"], values))

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Images of the training."""
        self._each(lambda one: one.images(step, images))

    def end(self, status: str) -> None:
        """The run ends: `finished`, `failed` or `preempted`."""
        self._each(lambda one: one.end(status))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, one in [*self.active.items()]:
            try:
                call(one)
            except Exception as error:  # of any kind: the run matters more
                del self.active[name]
                log.warning("%s failed and logs no more: %s: %s", name, type(error).__name__, error)


def last_step(run: Path) -> int | None:
    """The last step of metrics.jsonl; None in a new run."""
    steps = [json.loads(line)["step"] for line in _lines(run / "metrics.jsonl")]
    return max(steps, default=None)


def remembered(run: Path, logger: str, create: Callable[[], str]) -> str:
    """The id that a logger's run had before this one was resumed, else a new one."""
    known = json.loads("".join(_lines(run / IDS)) or "{}")
    if logger not in known:
        known[logger] = create()
        files.write_text(run / IDS, files.to_json(known) + "\n")
    return known[logger]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with files.open_regular(path, follow=False) as file:
        return file.read().decode("utf-8").splitlines()


def _needed(module: Callable[[], Any]) -> Any:
    """An optional package."""
    try:
        return module()
    except ImportError as error:
        raise ResourceError(f"{error}; {install_hint('trackers')}") from error


def _mlflow_name(name: str) -> str:
    """MLflow allows letters, digits and some signs, and keeps `a` and `a/b` in one place."""
    return "".join(c if c.isalnum() or c in "_-. " else "." if c == "/" else "_" for c in name)
