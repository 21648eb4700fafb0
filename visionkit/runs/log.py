"""What a run reports while it trains: metrics.jsonl, status.json and the progress bar."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from visionkit.distributed import collectives
from visionkit.runs import directory, files
from visionkit.runs.files import WriteErrors, to_json

log = logging.getLogger("visionkit")
STATUS_SECONDS = 1.0  # maximum age of status.json while steps are logged


class RunLog:
    """Writes metrics.jsonl and status.json, and shows a bar on a terminal; in rank 0 alone.

    A disk that refuses them is tolerated with a warning; the records are written later.
    """

    def __init__(self, run: Path, total_steps: int) -> None:
        self.run, self.total_steps = run, total_steps
        self.errors = WriteErrors()
        self._is_main = collectives.rank() == 0
        self._unwritten: list[dict[str, Any]] = []  # records of metrics.jsonl
        self._status_at = -math.inf  # when status.json was written
        self._bar: tqdm | None = None

    def begin(self, step: int, validated_at: int, log_every: int) -> None:
        """Remove the records after `step`, or after the validation at `validated_at`: they are
        computed again."""
        if self._is_main:
            with self.errors.tolerated(self.run / "metrics.jsonl"):
                truncate_metrics(self.run, step, validated_at, log_every)
        show = self._is_main and sys.stderr.isatty()
        self._bar = tqdm(total=self.total_steps, initial=step, disable=not show, unit="step")

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def train_record(self, record: dict[str, Any], loss: str, details: str) -> None:
        """Write a record and show `loss` in the bar; without a bar, log it with the details."""
        self.append(record)
        if self._bar is None or self._bar.disable:
            where = f"step {record['step']}/{self.total_steps}  epoch {record['epoch']:.1f}"
            self.info(f"{where}  {loss} {details}")
        else:
            self._bar.set_postfix_str(loss)

    def append(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl, after those that the disk has refused so far."""
        if not self._is_main:
            return
        self._unwritten.append(record)
        with self.errors.tolerated(self.run / "metrics.jsonl"):
            append_metrics(self.run, self._unwritten)
            self._unwritten = []

    def info(self, line: str) -> None:
        if self._is_main:
            log.info("%s", line)

    def warning(self, line: str) -> None:
        if self._is_main:
            log.warning("%s", line)

    def write_status(self, state: str, *, at_most_every: float = 0.0, **details: Any) -> None:
        """Write status.json, unless it was written less than `at_most_every` seconds ago."""
        if not self._is_main or time.perf_counter() - self._status_at < at_most_every:
            return
        self._status_at = time.perf_counter()
        with self.errors.tolerated(self.run / "status.json"):
            directory.write_status(self.run, state, **details)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self.errors.report()


def append_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    """Add all records to metrics.jsonl, or none if that fails."""
    files.append_lines(run / "metrics.jsonl", "".join(to_json(r) + "\n" for r in records))


def truncate_metrics(run: Path, step: int, validated_at: int, log_every: int) -> None:
    """Remove from metrics.jsonl the training records after `step` and the validations after
    `validated_at`, and lines that a crash damaged."""
    last = {"train": step, "val": validated_at}
    path, kept = run / "metrics.jsonl", []
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        records = [_parse(line) for line in lines]
        damaged = records[:-1].count(None)  # the last line may be cut off
        if damaged:
            log.warning("%s: %d damaged lines are dropped", path, damaged)
        kept = [r for r in records if r is not None and r["step"] <= last[r["kind"]]]
        files.write_text(path, "".join(to_json(record) + "\n" for record in kept))
    reached = max((record["step"] for record in kept if record["kind"] == "train"), default=0)
    if step - reached > log_every:
        log.warning("%s: the records of steps %d to %d are lost", path, reached + 1, step)


def _parse(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if a crash or a disk has damaged it."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("kind") not in ("train", "val"):
        return None
    return record if isinstance(record.get("step"), int) else None
