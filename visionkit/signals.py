"""Being asked to stop: SIGTERM, SIGUSR1 and Ctrl-C let the current step finish first."""

from __future__ import annotations

import os
import signal
import threading

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
GRACE_SECONDS = 20

_ending = False  # whether the grace runs in this process


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


def outlive_first_signal() -> None:
    """For loader workers: a signal to the whole process group must not take the pictures away
    that the current step still needs. They end with the run, and at the latest when the grace
    is over or a second signal comes."""

    def forgive(number: int, _frame: object) -> None:
        global _ending
        _ending = True
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(GRACE_SECONDS)

    for number in STOPPING:
        signal.signal(number, forgive)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process; the parent's may not


def end_in(seconds: int) -> None:
    """For loader workers: SIGALRM ends the process then, whatever it hangs in, unless this is
    called again before; 0 is never. Not on Windows."""
    if not _ending and hasattr(signal, "alarm"):
        signal.alarm(seconds)
