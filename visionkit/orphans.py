"""A process that torchrun started ends when torchrun is gone.

Torchrun passes most signals on to its processes. If it is killed, or gets one that it does not know
(SIGUSR1), they would train on unattended, or wait for each other at a store that went with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

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
