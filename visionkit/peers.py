"""Several processes end together: the one at fault says why, and the others repeat it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from visionkit import distributed, errors, launch
from visionkit.errors import LostProcess, Preempted, VisionkitError
from visionkit.signals import Stopped, deaf

PATIENCE = 3.0  # seconds in which a process that is at fault may still say so


@contextmanager
def together() -> Iterator[None]:
    """What is raised inside is told to the other processes, where it turns up as LostProcess; they
    raise what they are told, or say which process it is that went or hangs. Torchrun shows it too.
    """
    try:
        yield
    except Preempted:
        raise
    except Stopped:  # by a signal that perhaps no other process got
        if distributed.world_size() > 1:
            _tell(Preempted("stopped by a signal"))
        raise
    except LostProcess as error:
        with deaf():  # torchrun ends all processes soon after the first one
            cause = _cause(error)
            launch.show_torchrun(cause, later=True)
        raise cause from error
    except BaseException as error:
        if distributed.world_size() > 1:
            launch.show_torchrun(error)
            _tell(error)
        raise


def first_told(signal_name: str | None) -> str:
    """The signal that some process got, and which one; the same in all processes."""
    told = enumerate(distributed.gather(signal_name))
    rank, name = next((rank, name) for rank, name in told if name)
    return name if distributed.world_size() == 1 else f"{name} to process {rank}"


def _tell(error: BaseException) -> None:
    kind = type(error).__name__ if isinstance(error, VisionkitError) else "VisionkitError"
    text = str(error) if isinstance(error, VisionkitError) else launch.named(error)
    rank, others = distributed.rank(), set(range(distributed.world_size())) - {distributed.rank()}
    with suppress(RuntimeError):  # the place for messages went with the process that kept it
        distributed.board.set("fault", json.dumps([rank, kind, text]))
        distributed.board.set(f"read/{rank}", "")  # it needs to be told nothing
        if launch.keeps_store():  # it would go with this process: let the others read first
            distributed.teardown()
            until = time.monotonic() + PATIENCE
            while others and time.monotonic() < until:
                others = {r for r in others if not distributed.board.check([f"read/{r}"])}
                time.sleep(0.05)


def _cause(error: LostProcess) -> VisionkitError:
    """What was at fault, as told by that process or as seen by those that still live."""
    hung = "imed out" in str(error) or "imeout" in str(error)
    others = set(range(distributed.world_size())) - {distributed.rank()}
    missing = set(others)
    with suppress(RuntimeError):
        board = distributed.board
        board.set(f"lost/{distributed.rank()}", "")
        until = time.monotonic() + PATIENCE
        while missing and time.monotonic() < until:
            if board.check(["fault"]):
                rank, kind, text = json.loads(board.get("fault"))
                board.set(f"read/{distributed.rank()}", "")
                return getattr(errors, kind, VisionkitError)(f"process {rank}: {text}")
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
