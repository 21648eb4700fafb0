"""Stop on SIGTERM, SIGUSR1, SIGHUP and Ctrl-C.

The first signal is a request: the current step is finished and saved, anything else is interrupted.
A second one ends the process immediately.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
SAME_REQUEST_SECONDS = 1.0  # torchrun and schedulers both forward a signal: it comes twice
GRACE_SECONDS = 20
STATUS_SECONDS = 0.5  # to write the status before a forced exit


class Stopped(BaseException):
    """The first signal came where nothing has to be finished. Not an Exception, like
    KeyboardInterrupt, so that no `except Exception` catches it."""


_ending = False  # whether the grace period runs in this process


class StopRequest:
    """While entered, a first signal sets `received` and, outside `deferred`, raises Stopped in the
    main thread; a second one ends the process within a second.

    Outside the main thread, where Python delivers no signals, it does nothing. A signal that was
    ignored before, as under nohup, still is.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        # Called with the signal's name and the exit code; returns what to print.
        self.on_forced_exit: Callable[[str, int], str] | None = None
        self._deferred = False

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._start_watching()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        self._restore()
        self._writer.shutdown(socket.SHUT_WR)  # which ends the watching thread
        self._watcher.join()
        self._close()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is only recorded in `received`."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within `deferred`: signals raise Stopped again, one recorded before too."""
        before, self._deferred = self._deferred, False
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            if not self._deferred:
                raise Stopped

    def _restore(self) -> None:
        global _watching
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        _watching = None

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _start_watching(self) -> None:
        """For the second signal. Python runs a handler only between two of its own instructions,
        which may be seconds apart in a backward; the wakeup descriptor gets the number at once."""
        global _watching
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="second signal", daemon=True)
        self._watcher.start()
        _watching = self

    def _watch(self) -> None:
        first: float | None = None
        while number := self._reader.recv(1):
            now = time.monotonic()
            if number[0] not in self._before:
                continue
            if first is None:
                first = now
            elif now - first > SAME_REQUEST_SECONDS:
                self._leave(number[0])

    def _leave(self, number: int) -> None:
        code = 128 + number
        name = signal.Signals(number).name
        threading.Timer(STATUS_SECONDS, os._exit, (code,)).start()  # if the disk hangs
        try:
            status = f"; {self.on_forced_exit(name, code)}" if self.on_forced_exit else ""
            with suppress(OSError):
                os.write(2, f"\nsecond signal ({name}): exiting immediately{status}\n".encode())
            for worker in multiprocessing.active_children():
                worker.kill()
        finally:
            os._exit(code)


_watching: StopRequest | None = None


def _in_forked_child() -> None:
    """A child handles no requests and does not forward its signals to its parent's watcher."""
    if (watching := _watching) is not None:
        watching._restore()
        watching._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Ignore signals while a process that ends anyway writes its error."""
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, signal.SIG_IGN) for n in STOPPING} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """Ignore signals from now on, because the exit code is decided: while Python shuts down, they
    would get their default, which kills the process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def outlive_first_signal() -> None:
    """For loader workers: a signal to the whole process group must not end them while the current
    step needs images. They end with the run, after the grace period, or at a second signal."""
    first: float | None = None

    def tolerate(number: int, _frame: object) -> None:
        nonlocal first
        global _ending
        now = time.monotonic()
        if first is None:
            first, _ending = now, True
            signal.alarm(GRACE_SECONDS)
        elif now - first > SAME_REQUEST_SECONDS:
            os._exit(128 + number)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, tolerate)


def end_in(seconds: int) -> None:
    """For loader workers: SIGALRM ends the process after that time, whatever it hangs in, unless
    this is called again before; 0 is never. Not on Windows."""
    if not _ending and hasattr(signal, "alarm"):
        signal.alarm(seconds)
