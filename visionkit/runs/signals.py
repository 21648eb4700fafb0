"""Being asked to stop: SIGTERM, SIGUSR1, SIGHUP and Ctrl-C.

The first signal is a request: a step is finished and saved first, anything else is left where it
is. A second one ends the process at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
SAME_REQUEST_SECONDS = 1.0  # torchrun and job schedulers both pass a signal on: it comes twice
GRACE_SECONDS = 20
LAST_WORDS_SECONDS = 0.5


class Stopped(BaseException):
    """The first signal came where nothing has to be finished. Not an Exception, as
    KeyboardInterrupt is none, so that nobody takes it for a fault."""


_ending = False  # whether the grace runs in this process


class StopRequest:
    """While entered, a first signal sets `received` and raises Stopped in the main thread, within
    `deferred` only the former; a second one ends the process within a second.

    Outside the main thread, where Python delivers no signals, it does nothing. A signal that was
    ignored before, as under nohup, still is.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.on_forced_exit: Callable[[str, int], str] | None = (
            None  # of signal's name and exit code
        )
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
        """Meanwhile a signal is only noted in `received`."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within `deferred`, a time in which a signal raises Stopped, one noted before too."""
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

    # --- The second signal. Python runs a handler only between two of its own instructions, which
    # may be seconds apart during a backward; the number of a signal arrives here at once. ---

    def _start_watching(self) -> None:
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
        threading.Timer(LAST_WORDS_SECONDS, os._exit, (code,)).start()  # if the disk hangs
        try:
            words = f"; {self.on_forced_exit(name, code)}" if self.on_forced_exit else ""
            os.write(2, f"\nsecond signal ({name}): left at once{words}\n".encode())
            for worker in multiprocessing.active_children():
                worker.kill()
        finally:
            os._exit(code)


_watching: StopRequest | None = None


def _in_forked_child() -> None:
    """A child neither takes requests nor passes its own signals on to its parent's watcher."""
    if (watching := _watching) is not None:
        watching._restore()
        watching._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """While the last words of a process that ends anyway are written, no signal takes effect."""
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, signal.SIG_IGN) for n in STOPPING} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """From here on, because the work is done and its exit code stands: Python takes a moment to
    end, and gives signals their deadly default back meanwhile."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def outlive_first_signal() -> None:
    """For loader workers: a signal to the whole process group must not take the images away
    that the current step still needs. They end with the run, and at the latest when the grace
    is over or a second signal comes."""
    first: float | None = None

    def forgive(number: int, _frame: object) -> None:
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
            signal.signal(number, forgive)


def end_in(seconds: int) -> None:
    """For loader workers: SIGALRM ends the process then, whatever it hangs in, unless this is
    called again before; 0 is never. Not on Windows."""
    if not _ending and hasattr(signal, "alarm"):
        signal.alarm(seconds)
