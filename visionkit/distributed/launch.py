"""What torchrun tells each process in its environment, and what to do when that is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from visionkit.errors import ConfigError, VisionkitError

if TYPE_CHECKING:
    import torch.distributed as dist

# --- How the processes of one attempt find each other, and not what an earlier attempt left.


def meet() -> dist.PrefixStore:
    """A store for the processes that are alive now.

    With --max-restarts torchrun keeps its store, in which the addresses of dead processes remain,
    and on several machines its count of restarts may differ from one to another. So rank 0
    makes up a name for this attempt and tells it to those that call with a new word each.
    """
    import torch.distributed as dist  # not above: commands without a model start without torch

    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout()))
    if rank == 0:
        return dist.PrefixStore(_welcome(store, world_size), store)
    word = uuid.uuid4().hex
    store.set(f"visionkit/hello/{rank}", word)
    name = store.get(f"visionkit/welcome/{word}").decode()
    store.set(f"{name}/here/{rank}", "")
    return dist.PrefixStore(name, store)


def _welcome(store: dist.Store, world_size: int) -> str:
    """Answer all others, also one whose word of an earlier attempt was found first."""
    name = f"visionkit/{uuid.uuid4().hex}"
    missing = set(range(1, world_size))
    wrap_errors: dict[int, bytes] = {}
    until = time.monotonic() + timeout().total_seconds()
    while missing:
        for rank in sorted(missing):
            key = f"visionkit/hello/{rank}"
            if store.check([key]) and (word := store.get(key)) != wrap_errors.get(rank):
                store.set(f"visionkit/welcome/{word.decode()}", name)
                wrap_errors[rank] = word
        missing = {rank for rank in missing if not store.check([f"{name}/here/{rank}"])}
        if missing and time.monotonic() > until:
            who = ", ".join(map(str, sorted(missing)))
            raise ConfigError(
                f"process {who} of {world_size} did not come within "
                f"{timeout().total_seconds():.0f} seconds; start as many as WORLD_SIZE says"
            )
        time.sleep(0.01)
    return name


# --- A process that torchrun started ends when torchrun is gone.

GRACE_SECONDS = 60  # for the step and the checkpoint


def watch_parent() -> None:
    """Ask this process to stop, as SIGTERM does, within a second after its torchrun has gone; and
    end it if it does not. Does nothing in a single process."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and "TORCHELASTIC_RUN_ID" in os.environ and os.name != "nt":
        threading.Thread(target=_watch, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    sys.stderr.write("torchrun is gone: this process stops\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


WANTED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = 600  # seconds; rank 0 may score a large data set while the others wait


def world_size() -> int:
    return _number("WORLD_SIZE", default="1")


def rank() -> int:
    return _number("RANK", default="0") if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, and of the GPU that it uses."""
    return _number("LOCAL_RANK")


def timeout() -> timedelta:
    """How long a process waits for the others: VISIONKIT_TIMEOUT, in seconds."""
    seconds = _number("VISIONKIT_TIMEOUT", default=str(TIMEOUT))
    if seconds < 1:
        raise ConfigError(f"VISIONKIT_TIMEOUT: got {seconds}; expected seconds, at least 1")
    return timedelta(seconds=seconds)


def check() -> None:
    """ConfigError unless the environment is complete and there is a GPU for this process."""
    import torch  # not by those who only write a file

    missing = [name for name in WANTED if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} not set, so the processes "
            "cannot find each other; start them with `torchrun --standalone --nproc-per-node N -m "
            "visionkit ...`, or unset WORLD_SIZE for a single process"
        )
    _number("MASTER_PORT")
    if rank() >= world_size():
        raise ConfigError(f"RANK is {rank()} of WORLD_SIZE {world_size()}; ranks count from 0")
    if torch.cuda.is_available() and local_rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank()}, but this machine shows {torch.cuda.device_count()} "
            "GPUs: give torchrun no more --nproc-per-node than that, or CUDA_VISIBLE_DEVICES= "
            "(empty) to train on CPUs"
        )
    timeout()


def unreachable(error: Exception) -> str:
    """What to say when the processes cannot be joined."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    reason = str(error).strip().splitlines()[0]
    if "EADDRINUSE" in str(error):
        return (
            f"{place} (MASTER_ADDR, MASTER_PORT) is in use by another program: give another "
            "--master-port, or torchrun --standalone, which finds a free one"
        )
    return (
        f"process {rank()} of {world_size()} cannot join the others at {place} (MASTER_ADDR, "
        f"MASTER_PORT): {reason}"
    )


def keeps_store() -> bool:
    """Whether the place where the processes meet is in this one, and not in torchrun."""
    return rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def name() -> str | None:
    """What all attempts of one launch have in common, and no other launch has; None without
    torchrun. Of value in rank 0."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given in (None, "none"):  # torchrun without an id: attempts have the same parent
        return given and f"{socket.gethostname()}:{os.getppid()}"
    return given


def show_torchrun(error: BaseException, *, later: bool = False) -> None:
    """Write the message into the file whose content torchrun prints as the cause of a failure.

    It takes the earliest for the root; `later` is one that only repeats another's."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not Path(file).exists():
        stamp = {"timestamp": str(int(time.time()) + later)}
        text = str(error) if isinstance(error, VisionkitError) else named(error)
        with suppress(OSError):  # the error itself matters more
            Path(file).write_text(
                json.dumps({"message": {"message": text, "extraInfo": stamp}}), encoding="utf-8"
            )


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable) or default
    if not text.isdecimal():
        raise ConfigError(f"{variable}: got {text!r} in the environment; expected a number")
    return int(text)
