"""The environment of a rank that torchrun started: what it must hold, and what is sent back."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from visionkit.errors import ConfigError, VisionkitError

REQUIRED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = 600  # seconds; rank 0 may score a large dataset while the others wait
LONGEST = 30 * 24 * 3600  # seconds
GRACE_SECONDS = 60  # for the current step and its checkpoint, once torchrun is gone


def world_size() -> int:
    return _number("WORLD_SIZE", default="1")


def rank() -> int:
    return _number("RANK", default="0") if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this rank on its machine, and of the GPU that it uses."""
    return _number("LOCAL_RANK")


def timeout() -> timedelta:
    """How long a rank waits for the others: VISIONKIT_TIMEOUT, in seconds."""
    seconds = _number("VISIONKIT_TIMEOUT", default=str(TIMEOUT))
    if not 1 <= seconds <= LONGEST:
        what = f"at least 1 and at most {LONGEST}"
        raise ConfigError(f"VISIONKIT_TIMEOUT: got {seconds}; expected seconds, {what}")
    return timedelta(seconds=seconds)


def check() -> None:
    """Raise ConfigError unless the environment is complete and there is a GPU for this rank."""
    import torch  # slow to import, and those who only write a file do not need it

    missing = [name for name in REQUIRED if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} not set, so the ranks "
            "cannot find each other; start them with `torchrun --standalone --nproc-per-node N -m "
            "visionkit ...`, or unset WORLD_SIZE for a single process"
        )
    if not 1 <= (port := _number("MASTER_PORT")) <= 65535:
        raise ConfigError(f"MASTER_PORT: got {port} in the environment; expected 1 to 65535")
    if rank() >= world_size():
        raise ConfigError(f"RANK is {rank()} of WORLD_SIZE {world_size()}; ranks count from 0")
    if torch.cuda.is_available() and local_rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank()}, but this machine has {torch.cuda.device_count()} "
            "visible GPUs: start at most that many with --nproc-per-node, or set "
            "CUDA_VISIBLE_DEVICES= (empty) to train on CPUs"
        )
    timeout()


def connection_error(error: Exception) -> ConfigError:
    """The error to raise when the ranks cannot be connected."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error):
        return ConfigError(
            f"{address} (MASTER_ADDR, MASTER_PORT) is in use by another program: choose another "
            "--master-port, or use torchrun --standalone, which finds a free one"
        )
    reason = str(error).strip().splitlines()[0]
    return ConfigError(
        f"rank {rank()} of {world_size()} cannot connect to the others at {address} (MASTER_ADDR, "
        f"MASTER_PORT): {reason}. Start as many processes as WORLD_SIZE says. If another program "
        "answers at that port, choose another --master-port"
    )


def keeps_store() -> bool:
    """Whether the store through which the ranks connect is in this process, not in torchrun."""
    return rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def launch_id() -> str | None:
    """What all attempts of one launch share, and no other launch has; None without torchrun.
    Valid in rank 0."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given == "none":  # torchrun without an id: the attempts have the same parent
        return f"{socket.gethostname()}:{os.getppid()}"
    return given


def report_to_torchrun(error: BaseException, *, repeated: bool = False) -> None:
    """Write the message into the file that torchrun prints as the cause of a failure.

    Unlike torch's `elastic.multiprocessing.errors.record` it writes no traceback. Torchrun takes
    the earliest for the root cause; `repeated` marks one that only repeats another rank's.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not Path(file).exists():
        text = str(error) if isinstance(error, VisionkitError) else describe(error)
        extra = {"timestamp": str(int(time.time()) + repeated)}
        with suppress(OSError):  # the error itself matters more
            Path(file).write_text(
                json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8"
            )


def describe(error: BaseException) -> str:
    """`KeyError: 'boxes'`"""
    return f"{type(error).__name__}: {error}"


def watch_parent() -> None:
    """Stop this process as SIGTERM does within a second after its torchrun has gone, and kill it
    after a grace period. Does nothing for a single process."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if not alone and "TORCHELASTIC_RUN_ID" in os.environ and os.name != "nt":
        threading.Thread(target=_watch, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    with suppress(OSError):
        sys.stderr.write("torchrun is gone: this process stops\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable) or default
    if not text.isdecimal() or len(text) > 10:
        raise ConfigError(f"{variable}: got {text!r} in the environment; expected an integer")
    return int(text)
