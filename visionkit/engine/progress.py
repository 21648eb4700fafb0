"""Where a run stands: step and epoch, what is logged, the best validation so far."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from visionkit.config import Config
from visionkit.config.components import head_class
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, unknown
from visionkit.runs import directory as rundir
from visionkit.runs.files import Misses

# --- Which checkpoint is the best: by one metric, by a weighted sum of several, and within
# guards.

LOWER_IS_BETTER = ("mse", "kl")  # beside all losses


class Best:
    """Scores a validation; the higher the better.

    `wanted` is a metric, or metrics with their weights; `guards` are values that metrics must
    reach for a checkpoint to be the best one. A metric that is a loss or an error counts
    negatively, and its guard is a value not to pass.
    """

    def __init__(self, wanted: str | Mapping[str, float] | None, guards: Mapping[str, float]):
        self.weights = {wanted: 1.0} if isinstance(wanted, str) else dict(wanted or {})
        self.guards = dict(guards)

    @property
    def names(self) -> list[str]:
        """All metrics that are looked at."""
        return list(dict.fromkeys([*self.weights, *self.guards]))

    def score(self, metrics: Mapping[str, float]) -> float:
        """NaN, which is never the best, where a metric is not defined or a guard is violated.
        Raises ConfigError if a metric was not computed at all."""
        for name in self.names:
            if name not in metrics:
                raise ConfigError(unknown(name, metrics, f"the validation gave no {name!r}"))
        if not self.weights or self.violated(metrics):
            return math.nan
        return sum(weight * sign(name) * metrics[name] for name, weight in self.weights.items())

    def violated(self, metrics: Mapping[str, float]) -> list[str]:
        """The guards that do not hold; a metric that is not defined holds none."""
        return [
            name
            for name, bound in self.guards.items()
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


log = logging.getLogger("visionkit")
STATUS_SECONDS = 1.0  # so old status.json may be while steps are logged


class Progress:
    """Counts steps, averages and writes what they report, and says when something is due."""

    def __init__(self, config: Config, run: Path, total_steps: int, steps_per_epoch: int) -> None:
        self.settings = config.train
        self.run = run
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.step = 0
        self.metrics: dict[str, float] = {}  # of the best validation
        self.best = Best(
            config.train.best_metric or default_best(config), config.train.best_constraints
        )
        self.best_score: float | None = None
        self.stale = 0  # validations since the best one
        self.validated_at = 0  # step
        self.kept: int | None = None  # step of the newest checkpoint
        self.unsaved = True  # whether anything has happened since
        self.misses = Misses()  # log files that could not be written
        self._saved_at = -math.inf  # so that the first step is followed by a checkpoint
        self._unwritten: list[dict[str, Any]] = []  # records of metrics.jsonl
        self._sums: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}  # as `_now`, of this process alone
        self._images = self._steps = 0
        self.lr = 0.0  # of the current step
        self.skipped = self.skipped_in_a_row = 0  # steps left out: a loss was not finite
        self.scaler_skipped = 0  # steps that fp16's GradScaler left out, as it does by design
        self._logged_every = config.train.log_every
        self._told_at = -math.inf  # when status.json was written
        self._main = collectives.rank() == 0
        self._bar: tqdm | None = None

    # --- the log ---

    def begin(self) -> None:
        self._since = time.perf_counter()
        self._write_status("running")
        if self._main:
            with self.misses.allowed(self.run / "metrics.jsonl"):
                rundir.truncate_metrics(self.run, self.step, self.validated_at, self._logged_every)
        show = self._main and sys.stderr.isatty()
        self._bar = tqdm(total=self.total_steps, initial=self.step, disable=not show, unit="step")

    def note(self, losses: dict[str, dict[str, Tensor]], total: Tensor) -> None:
        """Take in one batch's unweighted loss terms and the weighted total."""
        terms = {f"{h}/{t}": value.detach() for h, ts in losses.items() for t, value in ts.items()}
        if self.settings.accumulate_grad_batches > 1:
            terms = {
                name: value / self.settings.accumulate_grad_batches for name, value in terms.items()
            }
        terms["total"] = total.detach()
        _add(terms, self._now)
        if collectives.world_size() > 1:
            _add({name: value.clone() for name, value in terms.items()}, self._own)

    @property
    def losses(self) -> list[Tensor]:
        """The loss terms of the current step, to be averaged over the processes in place."""
        return list(self._now.values())

    def own_losses_are_finite(self) -> bool:
        return all(math.isfinite(float(value)) for value in self._own.values())

    def last_losses(self, norm: Tensor) -> tuple[dict[str, float], float]:
        """The loss terms of the current step, and `norm`: a GPU is waited for only once."""
        *values, norm_value = torch.stack([*self._now.values(), norm]).tolist()
        return dict(zip(self._now, values, strict=True)), norm_value

    def skip(self, reason: str) -> None:
        """The current step is left out: no loss of it is counted."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._now = {}
        if self._main:
            log.warning("%s. Left out (%d so far)", reason, self.skipped)

    def scaled(self, scaler: torch.amp.GradScaler) -> None:
        """Let fp16's scaler take in the step, and count those that it left out."""
        before = scaler.get_scale()
        scaler.update()
        self.scaler_skipped += scaler.get_scale() < before

    def advance(self, images: int, *, norm: Tensor, combined: Mapping[str, float]) -> None:
        """One step is done; `combined` are figures on how the heads' losses became one."""
        self.step += 1
        self.unsaved = True
        self._images += images * collectives.world_size()
        if self._now:
            self._steps += 1
            self.skipped_in_a_row = 0
            self._now["grad_norm"] = norm
            _add(self._now, self._sums)
        self._now, self._own = {}, {}
        self._bar.update()
        if self.step % self.settings.log_every == 0 or self.step == self.total_steps:
            self._log(combined)

    def _log(self, combined: Mapping[str, float]) -> None:
        now = time.perf_counter()
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        rate = self._images / (now - self._since)
        record = {
            "kind": "train",
            "step": self.step,
            "epoch": self.epoch,
            "lr": self.lr,
            "images_per_second": round(rate, 3),
            **{f"train/{name}": value for name, value in means.items()},
            **combined,
            **self._skips(),
        }
        self._restart_window()
        if not self._main:
            return
        self._append(record)
        if now - self._told_at >= STATUS_SECONDS:  # small steps are over sooner than the file is
            self._write_status("running")
        terms = ", ".join(f"{n.split('/')[-1]} {v:.3f}" for n, v in means.items() if "/" in n)
        loss = f"loss {means['total']:.3f}" if means else "all left out"
        line = f"{loss} ({terms})  lr {self.lr:.2g}  {rate:.1f} images/s"
        self._bar.set_postfix_str(loss)
        if self._bar.disable:
            log.info("step %d/%d  epoch %.1f  %s", self.step, self.total_steps, self.epoch, line)

    def _append(self, record: dict[str, Any]) -> None:
        """Records that the disk did not take are tried again with the next one."""
        self._unwritten.append(record)
        with self.misses.allowed(self.run / "metrics.jsonl"):
            rundir.append_metrics(self.run, self._unwritten)
            self._unwritten = []

    def _skips(self) -> dict[str, int]:
        """Steps that were left out so far, where there are any."""
        counts = {"skipped_steps": self.skipped, "scaler_skipped_steps": self.scaler_skipped}
        return {name: count for name, count in counts.items() if count}

    def _restart_window(self) -> None:
        self._sums, self._images, self._steps = {}, 0, 0
        self._since = time.perf_counter()

    @property
    def epoch(self) -> float:
        return round(self.step / self.steps_per_epoch, 3)

    # --- what is due ---

    @property
    def validation_due(self) -> bool:
        every = self.settings.validate
        if not every or not self.best.names or self.step in (0, self.validated_at):
            return False
        return self.step % (int(every) * self.steps_per_epoch) == 0 or self.step == self.total_steps

    @property
    def save_due(self) -> bool:
        if self.validation_due:  # which may take long, and is repeated if it is cut off
            return True
        overdue = time.perf_counter() - self._saved_at >= self.settings.save_every
        return self._main and overdue

    @property
    def early_end(self) -> str | None:
        """Why training ends before its last step, if it does."""
        if self.settings.early_stop is None or self.stale < self.settings.early_stop:
            return None
        return (
            f"ended by train.early_stop at step {self.step}: {', '.join(self.best.names)} has not "
            f"become better for {self.stale} validations"
        )

    def validated(self, metrics: dict[str, float]) -> bool:
        """Record a validation; whether it is the best so far. NaN never is."""
        metrics = {name: float(value) for name, value in metrics.items()}
        self.validated_at, self.unsaved = self.step, True
        score = self.best.score(metrics)
        improved = score == score and (self.best_score is None or score > self.best_score)
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.best_score = score
        if improved or not self.metrics:
            self.metrics = metrics
        if self._main:
            record = {"kind": "val", "step": self.step, "epoch": self.epoch, **metrics}
            self._append(record)
            note = " (the best so far)" if improved else ""
            log.info("step %d: %s%s", self.step, self.best.describe(metrics), note)
        self._restart_window()
        return improved

    def finish(self, state: str, *, exit_code: int, reason: str | None = None) -> None:
        """The run ends, well or not."""
        if self._bar is not None:
            self._bar.close()
        self._write_status(state, exit_code=exit_code, reason=reason)
        self.misses.report()

    def force_exit_status(self, signal_name: str, exit_code: int) -> str:
        """A second signal ends the process here and now; what to say about it."""
        self._write_status("preempted", exit_code=exit_code, reason=f"second {signal_name}")
        return self.checkpoint_status()

    def checkpoint_status(self) -> str:
        if self.kept is None:
            return "there is no checkpoint yet"
        return f"the last checkpoint is of step {self.kept}"

    def _write_status(self, state: str, **details: Any) -> None:
        if not self._main:
            return
        self._told_at = time.perf_counter()
        with self.misses.allowed(self.run / "status.json"):
            rundir.write_status(
                self.run,
                state,
                step=self.step,
                total_steps=self.total_steps,
                epoch=self.epoch,
                checkpoint_step=self.kept,
                **self._skips(),
                **details,
            )

    # --- the checkpoint ---

    def tried_to_save(self) -> None:
        self._saved_at = time.perf_counter()

    def saved(self) -> None:
        """The state as it is now is on the disk."""
        self.kept, self.unsaved = self.step, False
        self._write_status("running")

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
            self._judge_again()
        before = state["config"]["train"]["log_every"]
        self._logged_every = max(before, self._logged_every)
        self.kept, self.unsaved = self.step, False
        self.tried_to_save()
        counts = state.get("skipped", (0, 0, 0))  # not in checkpoints of earlier versions
        self.skipped, self.skipped_in_a_row, self.scaler_skipped = counts
        self._sums, self._steps = state["window"]["sums"], state["window"]["steps"]

    def _judge_again(self) -> None:
        """What best.pt is worth by the metrics that count now, which may be others than before."""
        known = self.metrics.keys() >= set(self.best.names)
        score = self.best.score(self.metrics) if known else math.nan
        if score != self.best_score:
            self.best_score, self.stale = (score if score == score else None), 0


def _add(terms: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        sums[name] = sums[name] + value if name in sums else value


def default_best(config: Config) -> str | None:
    """The main metric of the first validated head; None if nothing is validated."""
    validated = {name: spec for name, spec in config.data.items() if spec.val is not None}
    if not validated:
        return None
    name, spec = next(iter(validated.items()))
    prefix = f"{name}/" if len(validated) > 1 else ""
    return f"{prefix}{spec.feeds[0]}/{head_class(config, spec.feeds[0]).main_metric}"
