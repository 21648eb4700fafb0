"""Multiple ranks in a test, without the seconds that starting Python and torch takes for each.

A server process that has imported visionkit once forks them; they meet over gloo as torchrun's do.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["visionkit.engine.train", "visionkit.engine.evaluate", "pytest"])
SECONDS = 250


def on_ranks(world: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What `work(*arguments)` returns in each of so many processes: tensors and plain values.

    `work` must be a function of a test module. Of an exception its `error`, the name, and `text`
    come back; of a process that dies its exit code.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        process = CONTEXT.Process(
            target=_run, args=(rank, world, port, folder / f"result{rank}", work, arguments)
        )
        process.start()
        processes.append(process)
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    files = [folder / f"result{rank}" for rank in range(world)]
    return [
        torch.load(file, weights_only=True) if file.exists() else process.exitcode
        for file, process in zip(files, processes, strict=True)
    ]


def _run(
    rank: int, world: int, port: int, file: Path, work: Callable[..., Any], arguments: tuple
) -> None:
    from visionkit.distributed import collectives

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    file.unlink(missing_ok=True)
    try:
        result = work(*arguments)
    except Exception as error:
        result = {"error": type(error).__name__, "text": str(error)}
    temporary = file.with_suffix(".tmp")
    torch.save(result, temporary)
    os.replace(temporary, file)
    collectives.teardown()
