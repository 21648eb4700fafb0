"""How a run ends when something fails: its status, the hint in the error, and the other ranks."""

from __future__ import annotations

import errno
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from visionkit import errors
from visionkit.config import Config
from visionkit.distributed import collectives, launch
from visionkit.engine.progress import Progress
from visionkit.errors import LostRank, Preempted, VisionkitError
from visionkit.runs.signals import Stopped, StopRequest, signals_blocked

log = logging.getLogger("visionkit")
PATIENCE = 3.0  # seconds that a failed rank has to report its error


@contextmanager
def record_status(progress: Progress, stop: StopRequest) -> Iterator[None]:
    """Write how training ends to status.json. A signal becomes Preempted; everything else is
    raised unchanged."""
    stop.on_forced_exit = progress.force_exit_status
    try:
        yield
    except (Stopped, Preempted) as error:
        preempted = error if isinstance(error, Preempted) else None
        preempted = preempted or Preempted(
            f"stopped by {stop.received} at step {progress.step}; {progress.checkpoint_status()}; "
            f"{progress.resume_command}"
        )
        progress.finish(
            "preempted", exit_code=Preempted.exit_code, reason=stop.received or str(preempted)
        )
        raise preempted from None
    except BaseException as error:
        state = "diverged" if isinstance(error, errors.DivergedError) else "failed"
        code = getattr(error, "exit_code", 1)
        progress.finish(state, exit_code=code, reason=launch.describe(error))
        if progress.saved_step and state == "failed":
            status, command = progress.checkpoint_status(), progress.resume_command
            log.warning("%s; when the problem is fixed, %s", status, command)
        raise


@contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Raise a known error with what to do about it, anything else unchanged."""
    try:
        yield
    except VisionkitError:
        raise
    except Exception as error:
        if known := explained(error, config):
            raise known from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether the GPU's memory or the machine's is exhausted."""
    lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return lacking or "DefaultCPUAllocator: can't allocate memory" in str(error)


def explained(error: Exception, config: Config) -> VisionkitError | None:
    """The same error with what to do about it, None if it is unknown. Those of loader workers are
    explained in `data.loading.workers`."""
    text = str(error)
    first_line = text.strip().partition("\n")[0][:200] or type(error).__name__
    if is_out_of_memory(error):
        sizes = ", ".join(
            f"data.{name}: batch_size {spec.batch_size}, image_size {spec.image_size}"
            for name, spec in config.data.items()
            if spec.train is not None
        )
        return errors.ResourceError(
            f"out of memory with {sizes}. Use a smaller batch_size (and "
            "train.accumulate_grad_batches to keep the images per step), a smaller image_size or "
            f"train.precision=bf16. {first_line}"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or (
        "Too many open files" in text
    ):
        return errors.ResourceError(
            f"too many open files; raise the limit with `ulimit -n 4096`, or use fewer "
            f"data.workers ({config.workers} now). {first_line}"
        )
    if "Expected more than 1 value per channel when training" in text:
        return errors.ConfigError(
            "batch_size: batch normalization got a single value for a channel, which has no "
            "variance; use a larger batch_size (at least 2 for each rank) or image_size, or a "
            f"backbone with norm: frozen or group. {first_line}"
        )
    hint = errors.shortage(error)
    return errors.ResourceError(f"{first_line}: {hint}") if hint else None


@contextmanager
def propagate_failures() -> Iterator[None]:
    """Report what is raised inside to the other ranks, where the next collective call fails with
    LostRank; they raise the reported error, or name the rank that is gone or hangs. Torchrun gets
    the error too."""
    try:
        yield
    except Preempted:
        raise
    except Stopped:  # by a signal that perhaps no other rank received
        if collectives.world_size() > 1:
            _publish(Preempted("stopped by a signal"))
        raise
    except LostRank as error:
        with signals_blocked():  # torchrun ends all ranks soon after the first one
            cause = _find_cause(error)
            launch.report_to_torchrun(cause, repeated=True)
        raise cause from error
    except BaseException as error:
        if collectives.world_size() > 1:
            launch.report_to_torchrun(error)
            _publish(error)
        raise


def agree_on_signal(signal_name: str | None) -> str:
    """The signal that some rank received, and which rank; the same in all ranks."""
    received = enumerate(collectives.all_gather_object(signal_name))
    rank, name = next((rank, name) for rank, name in received if name)
    return name if collectives.world_size() == 1 else f"{name} to rank {rank}"


def _publish(error: BaseException) -> None:
    kind = type(error).__name__ if isinstance(error, VisionkitError) else "VisionkitError"
    lines = error.lines if isinstance(error, VisionkitError) else [launch.describe(error)]
    rank, store = collectives.rank(), collectives.store
    others = set(range(collectives.world_size())) - {rank}
    if store is None:
        return
    with suppress(RuntimeError):  # the store is gone with the process that kept it
        store.set("error", json.dumps([rank, kind, *lines]))
        store.set(f"read/{rank}", "")
        if launch.keeps_store():  # it would go with this process: let the others read first
            collectives.teardown()
            until = time.monotonic() + PATIENCE
            while others and time.monotonic() < until:
                others = {r for r in others if not store.check([f"read/{r}"])}
                time.sleep(0.05)


def _find_cause(error: LostRank) -> VisionkitError:
    """The error that the failed rank reported, or one that names the ranks that do not answer."""
    rank, store = collectives.rank(), collectives.store
    others = set(range(collectives.world_size())) - {rank}
    missing = set(others)
    with suppress(RuntimeError):
        assert store is not None  # there are other ranks
        store.set(f"lost/{rank}", "")
        until = time.monotonic() + PATIENCE
        while missing and time.monotonic() < until:
            if store.check(["error"]):
                origin, kind, first, *others = json.loads(store.get("error"))
                store.set(f"read/{rank}", "")
                return getattr(errors, kind, VisionkitError)(f"rank {origin}: {first}", *others)
            missing = {r for r in others if not store.check([f"lost/{r}"])}
            time.sleep(0.05)
    who = ", ".join(map(str, sorted(missing or others)))
    what = "has gone"
    if "imed out" in str(error) or "imeout" in str(error):
        seconds = launch.timeout().total_seconds()
        what = f"hangs or is too slow: no answer for {seconds:.0f} seconds (VISIONKIT_TIMEOUT)"
    reason = re.sub(r"\[/\S+\] ", "", str(error).strip().split(". ")[0])  # a line of gloo's source
    return VisionkitError(f"rank {who} {what}; the other ranks stop ({reason})")
