"""The pieces of a large text, each read by one of a few processes, before they are asked for."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

MOST = 4  # processes
SMALLEST = 32 << 20  # bytes of a text that is worth starting any

Read = Callable[[bytes], Any]

_text: Any = b""  # in the other processes: the whole of it
_read: Read = bytes


def can_help(size: int) -> bool:
    """Whether other processes are of use for a text of that many bytes, and can be had."""
    return (
        size >= SMALLEST
        and cores() > 1
        and "fork" in multiprocessing.get_all_start_methods()
        and hasattr(os, "sched_getaffinity")  # not on macOS, where a fork may crash
        and not multiprocessing.current_process().daemon
    )


def cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class ReadAhead:
    """Hands out `read(text[start:end])` for the given spans in their order; use it with `with`.

    Processes are forked, so that `text` is not copied. What they cannot do is left to the caller.
    """

    def __init__(self, text: Any, read: Read, spans: Iterable[tuple[int, int]]):
        spans = list(spans)
        self._pool = ProcessPoolExecutor(
            min(MOST, cores()), multiprocessing.get_context("fork"), _begin, (text, read)
        )
        self._results: Iterator[Any] = zip(spans, self._pool.map(_piece, spans), strict=True)
        self._next: Any = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def get(self, start: int, end: int) -> Any:
        """What was read there; None if that is not one of the spans, or nothing came of it."""
        try:
            while self._next is None or self._next[0] < (start, end):
                self._next = next(self._results)
        except (StopIteration, BrokenProcessPool):
            return None
        span, result = self._next
        if span != (start, end):
            return None
        self._next = None
        return result


def _begin(text: Any, read: Read) -> None:
    global _text, _read
    _text, _read = text, read


def _piece(span: tuple[int, int]) -> Any:
    return _read(_text[span[0] : span[1]])
