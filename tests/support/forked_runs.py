"""Whole runs and resumed ones in processes that may really be killed, on one or several ranks.

A script for test_resume_ranks.py: it imports torch once, and each run is a fork of it.

    python tests/forked_runs.py CASES.json

Each case says `folder`, `what`, `ranks` and `cuts`: lists of the step, how, and the number of
workers; other keys are settings of training. Its folder gets the runs `whole` and, for each cut,
`parts N`, and in `codes N.json` the exit codes of the ranks that were cut off; below 0 are signals.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.runs import cut_off, die, spec, train
from visionkit import errors
from visionkit.distributed import collectives


def on_ranks(ranks: int, work: Callable[[], Any]) -> list[int]:
    """Do it in that many processes that know of each other; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            values = (rank, rank, ranks, "127.0.0.1", port)
            os.environ.update(zip(names, map(str, values), strict=True))
            os._exit(_exit_code(work))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def _exit_code(work: Callable[[], Any]) -> int:
    try:
        work()
    except errors.VisionkitError as error:
        if not isinstance(error, errors.Preempted):
            traceback.print_exc()
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    collectives.teardown()
    return 0


def run_case(folder: str, what: str, ranks: int, cuts: list[Any], **settings: Any) -> None:
    place = Path(folder)
    place.mkdir(parents=True)
    whole = spec(what, place / "whole", **settings)
    if any(on_ranks(ranks, lambda: train(whole))):
        raise SystemExit(f"{folder}: the whole run failed")
    for number, (stop_after, how, workers) in enumerate(cuts):
        parts = spec(what, place / f"parts {number}", workers=workers, **settings)

        def begin() -> None:
            with cut_off(stop_after, how, die):  # noqa: B023, which is called at once
                train(parts)  # noqa: B023

        codes = on_ranks(ranks, begin)
        (place / f"codes {number}.json").write_text(json.dumps(codes))
        if any(on_ranks(ranks, lambda: train(parts, resume=True))):  # noqa: B023
            raise SystemExit(f"{folder}: resuming {number} failed")


if __name__ == "__main__":
    for case in json.loads(Path(sys.argv[1]).read_text()):
        run_case(**case)
