"""Where a run is: steps and epochs, averaged losses, the best validation, what is due next.

And what it reports of them: metrics.jsonl, status.json and the progress bar."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionkit.config import Config
from visionkit.config.components import main_metric
from visionkit.distributed import collectives
from visionkit.engine.loggers import Loggers
from visionkit.errors import ConfigError, unknown
from visionkit.runs import directory
from visionkit.runs.files import WriteErrors
from visionkit.runs.terminal import progress_bar

log = logging.getLogger("visionkit")
STATUS_SECONDS = 1.0  # maximum age of status.json while steps are logged
VALIDATIONS = 8  # of a run of few epochs, by default
LONG = 2000  # steps of a run that is also validated before the first one
LOWER_IS_BETTER = ("mse", "kl")  # and all losses


class Best:
    """Scores a validation; higher is better.

    `wanted` is a metric, or metrics with their weights; `constraints` are values that metrics must
    reach for a checkpoint to be the best one. A metric that is a loss or an error counts
    negatively, and its constraint is an upper bound.
    """

    def __init__(self, wanted: str | Mapping[str, float] | None, constraints: Mapping[str, float]):
        self.weights = {wanted: 1.0} if isinstance(wanted, str) else dict(wanted or {})
        self.constraints = dict(constraints)

    @property
    def names(self) -> list[str]:
        """All metrics that are used."""
        return list(dict.fromkeys([*self.weights, *self.constraints]))

    def score(self, metrics: Mapping[str, float]) -> float:
        """NaN, which is never the best, where a metric is undefined or a constraint is violated.
        Raises ConfigError if a metric was not computed at all."""
        for name in self.names:
            if name not in metrics:
                raise ConfigError(unknown(name, metrics, f"the validation has no metric {name!r}"))
        if not self.weights or self.violated(metrics):
            return math.nan
        return sum(weight * sign(name) * metrics[name] for name, weight in self.weights.items())

    def violated(self, metrics: Mapping[str, float]) -> list[str]:
        """The metrics that do not reach their constraint; an undefined metric does not."""
        return [
            name
            for name, bound in self.constraints.items()
            if not sign(name) * metrics[name] >= sign(name) * bound
        ]

    def describe(self, metrics: Mapping[str, float]) -> str:
        """For the log: `objects/bbox/AP 0.4123, scene/top1 0.8000`."""
        text = ", ".join(f"{name} {metrics[name]:.4f}" for name in self.names)
        violated = self.violated(metrics)
        return f"{text} (worse than allowed: {', '.join(violated)})" if violated else text


def sign(name: str) -> int:
    """1 for a metric that should rise, -1 for one that should fall."""
    falls = "/loss/" in name or name.rpartition("/")[2] in LOWER_IS_BETTER
    return -1 if falls else 1


def default_best(config: Config) -> str | None:
    """The main metric of the first validated head; None if nothing is validated."""
    validated = {name: spec for name, spec in config.data.items() if spec.val is not None}
    if not validated:
        return None
    name, spec = next(iter(validated.items()))
    prefix = f"{name}/" if len(validated) > 1 else ""
    return f"{prefix}{spec.feeds[0]}/{main_metric(config, spec.feeds[0])}"


class Progress:
    """Counts steps and validations, averages and logs what they report, decides what is due.

    Rank 0 alone writes. A disk that refuses metrics.jsonl or status.json is tolerated with a
    warning; the records are written later.
    """

    def __init__(self, config: Config, run: Path, total_steps: int, steps_per_epoch: int) -> None:
        self.settings, self.config = config.train, config
        self.loggers = Loggers(
            [dict(one) for one in config.train.loggers if not isinstance(one, str)]
        )
        self.run, self.errors = run, WriteErrors()
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.step = 0
        self.metrics: dict[str, float] = {}  # of the best validation
        self.best = Best(
            config.train.best_metric or default_best(config), config.train.best_constraints
        )
        self.best_score: float | None = None
        self.stale = 0  # validations since the best one
        self.validated_at = 0  # step
        self.saved_step: int | None = None  # of the newest checkpoint
        self.unsaved = True  # whether anything has happened since then
        self._saved_at = -math.inf  # so that the first step is followed by a checkpoint
        self.skipped = self.skipped_in_a_row = 0  # steps with losses that are not finite
        self.scaler_skipped = 0  # steps that fp16's GradScaler skipped, as it does by design
        self._logged_every = config.train.log_every
        # The steps since the last record of metrics.jsonl.
        self._sums: dict[str, Tensor] = {}
        self._images = self._steps = 0
        self._since = time.perf_counter()
        self._is_main = collectives.rank() == 0
        self._unwritten: list[dict[str, Any]] = []  # records of metrics.jsonl
        self._status_at = -math.inf  # when status.json was written
        self._bar = progress_bar(hidden=True)

    @property
    def epoch(self) -> float:
        return round(self.step / self.steps_per_epoch, 3)

    def begin(self) -> None:
        """Begin to log; the records after the current step, or after the last validation, are
        computed again."""
        self._since = time.perf_counter()
        self._write_status("running")
        if self._is_main:
            with self.errors.tolerated(self.run / "metrics.jsonl"):
                directory.truncate_metrics(
                    self.run, self.step, self.validated_at, self._logged_every
                )
        self.loggers.begin(self.run, self.config.to_dict())
        total, hidden = self.total_steps, not self._is_main
        self._bar = progress_bar(
            total=total, initial=self.step, unit="step", leave=True, hidden=hidden
        )

    def skip(self, reason: str) -> None:
        """The current step makes no update, and its losses are not counted."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self._is_main:
            log.warning("%s. The step is skipped (%d so far)", reason, self.skipped)

    def update_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Let fp16's scaler adapt to the step, and count the steps that it skipped."""
        before = scaler.get_scale()
        scaler.update()
        self.scaler_skipped += scaler.get_scale() < before

    def advance(
        self, images: int, losses: Mapping[str, Tensor], lr: float, metrics: Mapping[str, float]
    ) -> None:
        """One step is done: with so many images on this rank, its losses (none if it was skipped),
        and further metrics for the log."""
        self.step += 1
        self.unsaved = True
        self._images += images * collectives.world_size()
        if losses:
            self._steps += 1
            self.skipped_in_a_row = 0
            for name, value in losses.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._bar.update()
        if self.step % self.settings.log_every == 0 or self.step == self.total_steps:
            self._log_window(lr, metrics)

    def _log_window(self, lr: float, metrics: Mapping[str, float]) -> None:
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        rate = self._images / (time.perf_counter() - self._since)
        record = {
            "kind": "train",
            "step": self.step,
            "epoch": self.epoch,
            "lr": lr,
            "images_per_second": round(rate, 3),
            **{f"train/{name}": value for name, value in means.items()},
            **metrics,
            **self._skips(),
        }
        self._restart_window()
        self._write_status("running", at_most_every=STATUS_SECONDS)
        terms = ", ".join(f"{n.split('/')[-1]} {v:.3f}" for n, v in means.items() if "/" in n)
        loss = f"loss {means['total']:.3f}" if means else "all steps skipped"
        self._append(record)
        if not self._bar.disable:
            self._bar.set_postfix_str(loss)
        elif self._is_main:
            where = f"step {self.step}/{self.total_steps}  epoch {self.epoch:.1f}"
            log.info("%s  %s (%s)  lr %.2g  %.1f images/s", where, loss, terms, lr, rate)

    def _append(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl, after those that the disk has refused so far."""
        if self._is_main:
            self._unwritten.append(record)
            with self.errors.tolerated(self.run / "metrics.jsonl"):
                directory.append_metrics(self.run, self._unwritten)
                self._unwritten = []
            self.loggers.record(record)

    def validated(self, metrics: Mapping[str, float]) -> bool:
        """Record a validation; True if it is the best so far. NaN never is."""
        metrics = {name: float(value) for name, value in metrics.items()}
        self.validated_at, self.unsaved = self.step, True
        score = self.best.score(metrics)
        improved = score == score and (self.best_score is None or score > self.best_score)
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.best_score = score
        if improved or not self.metrics:
            self.metrics = metrics
        self._append({"kind": "val", "step": self.step, "epoch": self.epoch, **metrics})
        if self._is_main:
            note = " (the best so far)" if improved else ""
            log.info("step %d: %s%s", self.step, self.best.describe(metrics), note)
        self._restart_window()
        return improved

    def saving(self) -> None:
        """A checkpoint is being written: the next one is due `train.save_every` seconds later."""
        self._saved_at = time.perf_counter()

    def saved(self) -> None:
        """The current state is on the disk."""
        self.saved_step, self.unsaved = self.step, False
        self._write_status("running")

    def finish(self, state: str, *, exit_code: int, reason: str | None = None) -> None:
        """The run ends, successfully or not."""
        self._write_status(state, exit_code=exit_code, reason=reason)
        self._bar.close()
        self.loggers.end(state)
        self.errors.report()

    def force_exit_status(self, signal_name: str, exit_code: int) -> str:
        """A second signal ends the process immediately; returns what to print."""
        self._write_status("preempted", exit_code=exit_code, reason=f"second {signal_name}")
        return self.checkpoint_status()

    def checkpoint_status(self) -> str:
        if self.saved_step is None:
            return "there is no checkpoint yet"
        return f"the last checkpoint is of step {self.saved_step}"

    @property
    def resume_command(self) -> str:
        if self.saved_step is None:
            return "start it again"
        return f"continue with: visionkit train --resume {self.run}"

    def _skips(self) -> dict[str, int]:
        """The numbers of steps skipped so far, where there are any."""
        counts = {"skipped_steps": self.skipped, "scaler_skipped_steps": self.scaler_skipped}
        return {name: count for name, count in counts.items() if count}

    def _restart_window(self) -> None:
        self._sums, self._images, self._steps = {}, 0, 0
        self._since = time.perf_counter()

    def _write_status(self, state: str, *, at_most_every: float = 0.0, **details: Any) -> None:
        """Write status.json, unless it was written less than `at_most_every` seconds ago."""
        if not self._is_main or time.perf_counter() - self._status_at < at_most_every:
            return
        self._status_at = time.perf_counter()
        with self.errors.tolerated(self.run / "status.json"):
            directory.write_status(
                self.run,
                state,
                step=self.step,
                total_steps=self.total_steps,
                epoch=self.epoch,
                checkpoint_step=self.saved_step,
                **self._skips(),
                **details,
            )

    @property
    def validation_due(self) -> bool:
        every, step = self.settings.validate, self.step
        if not every or not self.best.names:
            return False
        if step in (0, self.validated_at):
            return step == 0 and every is True and self.total_steps >= LONG and not self.metrics
        if every is True and self.steps_per_epoch * VALIDATIONS > self.total_steps:
            part = self.total_steps / VALIDATIONS
            return step // part > (step - 1) // part
        return step % (int(every) * self.steps_per_epoch) == 0 or step == self.total_steps

    @property
    def save_due(self) -> bool:
        if self.validation_due:  # which may take long, and is repeated if it is interrupted
            return True
        overdue = time.perf_counter() - self._saved_at >= self.settings.save_every
        return collectives.rank() == 0 and overdue

    @property
    def early_end(self) -> str | None:
        """Why training ends before its last step, if it does."""
        if self.settings.early_stop is None or self.stale < self.settings.early_stop:
            return None
        return (
            f"ended by train.early_stop at step {self.step}: {', '.join(self.best.names)} did not "
            f"improve for {self.stale} validations"
        )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "metrics": self.metrics,
            "validated_at": self.validated_at,
            "best": {"score": self.best_score, "stale": self.stale},
            "skipped": [self.skipped, self.skipped_in_a_row, self.scaler_skipped],
            "window": {"sums": self._sums, "steps": self._steps},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.metrics = state["step"], state["metrics"]
        self.validated_at = state["validated_at"]
        self.best_score, self.stale = state["best"]["score"], state["best"]["stale"]
        if self.best_score is not None:
            self._score_again()
        self._logged_every = max(state["config"]["train"]["log_every"], self._logged_every)
        self.saved_step, self.unsaved = self.step, False
        self.saving()
        self.skipped, self.skipped_in_a_row, self.scaler_skipped = state["skipped"]
        self._sums, self._steps = state["window"]["sums"], state["window"]["steps"]

    def _score_again(self) -> None:
        """Score best.pt by the metrics that count now, which may be others than before."""
        known = self.metrics.keys() >= set(self.best.names)
        score = self.best.score(self.metrics) if known else math.nan
        if score != self.best_score:
            self.best_score, self.stale = (score if score == score else None), 0
