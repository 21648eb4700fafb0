"""How a command ends that cannot do its work: one message without a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback

from visionkit.errors import Preempted, VisionkitError

UNEXPECTED = 1


def report(error: Exception, *, debug: bool = False) -> int:
    """Write what went wrong to standard error, with `debug` after the traceback; gives the code."""
    if debug:
        traceback.print_exception(error)
    text = _printable(error)
    if isinstance(error, (VisionkitError, OSError)):
        label = "" if isinstance(error, Preempted) else "error: "
        print(f"{label}{text}", file=sys.stderr)
        return error.exit_code if isinstance(error, VisionkitError) else UNEXPECTED
    if isinstance(error, ModuleNotFoundError):
        print(f"error: {text}; install it for {sys.executable}", file=sys.stderr)
        return UNEXPECTED
    print(
        f"unexpected error: {type(error).__name__}: {text} ({_place(error)}); run again with "
        "--debug for the traceback, and unless it comes from code of your own, please report it",
        file=sys.stderr,
    )
    return UNEXPECTED


def _printable(error: Exception) -> str:
    """Its text, in which names from files cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(error))


def _place(error: Exception) -> str:
    """File and line of the innermost code that is visionkit's or the user's own."""
    here, python = os.path.dirname(__file__), os.path.dirname(os.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (python, f"{os.sep}site-packages{os.sep}")
    known = [
        frame
        for frame in frames
        if frame.filename.startswith(here) or not any(lib in frame.filename for lib in libraries)
    ]
    frame = (known or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
