"""How a run ends: status.json says it, whatever ends it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from visionkit.errors import DivergedError, Preempted
from visionkit.progress import Progress
from visionkit.signals import Stopped, StopRequest

log = logging.getLogger("visionkit")


@contextmanager
def recorded(progress: Progress, stop: StopRequest) -> Iterator[None]:
    """Around training. A signal becomes Preempted, everything else is raised as it came."""
    stop.last_words = progress.left_at_once
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
            log.warning("%s; when it is mended, %s", progress.what_is_kept(), _go_on(progress))
        raise


def _preempted(progress: Progress, stop: StopRequest) -> Preempted:
    return Preempted(
        f"stopped by {stop.received} at step {progress.step}; {progress.what_is_kept()}; "
        f"{'start it again' if progress.kept is None else _go_on(progress)}"
    )


def _go_on(progress: Progress) -> str:
    return f"continue with: visionkit train --resume {progress.run}"
