"""Being asked to stop: SIGTERM, SIGUSR1 and Ctrl-C let the current step finish first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
GRACE_SECONDS = 20


class StopRequest:
    """While entered, the first signal sets `received`, and a second one leaves at once.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received:
            os._exit(130 if number == signal.SIGINT else 128 + number)
        self.received = signal.Signals(number).name


@contextmanager
def deaf() -> Iterator[None]:
    """While the last words of a process that ends anyway are written, no signal takes effect."""
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, signal.SIG_IGN) for n in STOPPING} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_first_signal(_worker: int) -> None:
    """For loader workers: a signal to the whole process group must not take the pictures away
    that the current step still needs. They end with the run, and at the latest when the grace
    is over or a second signal comes."""

    def forgive(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(GRACE_SECONDS)

    for number in STOPPING:
        signal.signal(number, forgive)
