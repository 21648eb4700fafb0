"""Standard output, standard error and progress bars. No terminal, or lack of one, ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any

from tqdm import tqdm

from visionkit.errors import printable


def open_streams() -> None:
    """Lead standard streams that are closed (`>&-`, daemons) to the null device, or else the next
    file that is opened, a checkpoint perhaps, would be the one that is printed to. Escape what a
    stream cannot show."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the lowest free descriptor is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def discard_output(stream: IO[str] | None = None) -> None:
    """Keep Python from writing the rest of the output again when it ends; by default that of
    standard output."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


class _Screen:
    """Standard error for a bar. What cannot be written is dropped."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed, or cannot show the text
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def progress_bar(
    items: Iterable[Any] | None = None,
    what: str = "",
    *,
    hidden: bool = False,
    leave: bool = False,
    **options: Any,
) -> tqdm:
    """A bar on standard error, shown only on a terminal; `options` of tqdm."""
    shown = False
    with suppress(AttributeError, ValueError):  # there is no standard error, or it is closed
        shown = not hidden and sys.stderr.isatty()
    options |= {"desc": printable(what) or None, "disable": not shown, "leave": leave}
    return tqdm(items, file=_Screen(), **options)
