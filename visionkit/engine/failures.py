"""Several processes end together: the one at fault says why, and the others repeat it."""

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
from visionkit.errors import (
    ConfigError,
    DivergedError,
    LostProcess,
    Preempted,
    ResourceError,
    VisionkitError,
)
from visionkit.runs.signals import Stopped, StopRequest, signals_blocked

# --- How a run ends: status.json says it, whatever ends it.

log = logging.getLogger("visionkit")


@contextmanager
def record_status(progress: Progress, stop: StopRequest) -> Iterator[None]:
    """Around training. A signal becomes Preempted, everything else is raised as it came."""
    stop.on_forced_exit = progress.force_exit_status
    try:
        yield
    except (Stopped, Preempted) as error:
        told = error if isinstance(error, Preempted) else _preempted(progress, stop)
        progress.finish(
            "preempted", exit_code=Preempted.exit_code, reason=stop.received or str(told)
        )
        raise told from None
    except BaseException as error:
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        code = getattr(error, "exit_code", 1)
        progress.finish(state, exit_code=code, reason=f"{type(error).__name__}: {error}")
        if progress.kept and state == "failed":
            log.warning("%s; when it is mended, %s", progress.checkpoint_status(), _go_on(progress))
        raise


def _preempted(progress: Progress, stop: StopRequest) -> Preempted:
    return Preempted(
        f"stopped by {stop.received} at step {progress.step}; {progress.checkpoint_status()}; "
        f"{'start it again' if progress.kept is None else _go_on(progress)}"
    )


def _go_on(progress: Progress) -> str:
    return f"continue with: visionkit train --resume {progress.run}"


# --- Errors of torch and of the system that have a known remedy, told with it. Those of loader
# workers are told by `data.workers`.


@contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Raises what is known as an error that says what to do, anything else as it is."""
    try:
        yield
    except VisionkitError:
        raise
    except Exception as error:
        known = _explained(error, config)
        if known is None:
            raise
        raise known from error


def is_out_of_memory(error: Exception) -> bool:
    """Of the GPU's memory or of the machine's."""
    lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return lacking or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _explained(error: Exception, config: Config) -> VisionkitError | None:
    text = str(error)
    first_line = text.strip().partition("\n")[0][:200] or type(error).__name__
    if is_out_of_memory(error):
        sizes = ", ".join(
            f"data.{name}: batch_size {spec.batch_size}, image_size {spec.image_size}"
            for name, spec in config.data.items()
            if spec.train is not None
        )
        return ResourceError(
            f"out of memory with {sizes}. Use a smaller batch_size (as many times "
            "train.accumulate_grad_batches keeps the images per step), a smaller image_size or "
            f"train.precision=bf16. {first_line}"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or (
        "Too many open files" in text
    ):
        return ResourceError(
            f"too many open files; raise the limit with `ulimit -n 4096`, or set fewer "
            f"data.workers ({config.workers} now). {first_line}"
        )
    if "Expected more than 1 value per channel when training" in text:
        return ConfigError(
            "batch_size: batch normalization was given a single value for a channel, which has no "
            "variance; use a larger batch_size (2 for each process at least) or image_size, or a "
            f"backbone with norm: frozen or group. {first_line}"
        )
    return None


PATIENCE = 3.0  # seconds in which a process that is at fault may still say so


@contextmanager
def propagate_failures() -> Iterator[None]:
    """What is raised inside is told to the other processes, where it turns up as LostProcess; they
    raise what they are told, or say which process it is that went or hangs. Torchrun shows it too.
    """
    try:
        yield
    except Preempted:
        raise
    except Stopped:  # by a signal that perhaps no other process got
        if collectives.world_size() > 1:
            _tell(Preempted("stopped by a signal"))
        raise
    except LostProcess as error:
        with signals_blocked():  # torchrun ends all processes soon after the first one
            cause = _cause(error)
            launch.show_torchrun(cause, later=True)
        raise cause from error
    except BaseException as error:
        if collectives.world_size() > 1:
            launch.show_torchrun(error)
            _tell(error)
        raise


def agree_on_signal(signal_name: str | None) -> str:
    """The signal that some process got, and which one; the same in all processes."""
    told = enumerate(collectives.gather(signal_name))
    rank, name = next((rank, name) for rank, name in told if name)
    return name if collectives.world_size() == 1 else f"{name} to rank {rank}"


def _tell(error: BaseException) -> None:
    kind = type(error).__name__ if isinstance(error, VisionkitError) else "VisionkitError"
    text = str(error) if isinstance(error, VisionkitError) else launch.named(error)
    rank, others = collectives.rank(), set(range(collectives.world_size())) - {collectives.rank()}
    with suppress(RuntimeError):  # the place for messages went with the process that kept it
        collectives.board.set("fault", json.dumps([rank, kind, text]))
        collectives.board.set(f"read/{rank}", "")  # it needs to be told nothing
        if launch.keeps_store():  # it would go with this process: let the others read first
            collectives.teardown()
            until = time.monotonic() + PATIENCE
            while others and time.monotonic() < until:
                others = {r for r in others if not collectives.board.check([f"read/{r}"])}
                time.sleep(0.05)


def _cause(error: LostProcess) -> VisionkitError:
    """What was at fault, as told by that process or as seen by those that still live."""
    hung = "imed out" in str(error) or "imeout" in str(error)
    others = set(range(collectives.world_size())) - {collectives.rank()}
    missing = set(others)
    with suppress(RuntimeError):
        board = collectives.board
        board.set(f"lost/{collectives.rank()}", "")
        until = time.monotonic() + PATIENCE
        while missing and time.monotonic() < until:
            if board.check(["fault"]):
                rank, kind, text = json.loads(board.get("fault"))
                board.set(f"read/{collectives.rank()}", "")
                return getattr(errors, kind, VisionkitError)(f"rank {rank}: {text}")
            missing = {r for r in others if not board.check([f"lost/{r}"])}
            time.sleep(0.05)
    who = ", ".join(map(str, sorted(missing or others)))
    seconds = f"{launch.timeout().total_seconds():.0f} seconds"
    what = (
        f"hangs, or is too slow: it did not answer for {seconds} (VISIONKIT_TIMEOUT)"
        if hung
        else "has gone"
    )
    reason = re.sub(r"\[/\S+\] ", "", str(error).strip().split(". ")[0])  # a line of gloo's source
    return VisionkitError(f"process {who} {what}; the others stop ({reason})")
