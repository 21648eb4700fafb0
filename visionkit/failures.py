"""How a command ends that cannot do its work: one message without a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from visionkit.errors import Preempted, VisionkitError

if TYPE_CHECKING:
    from visionkit.data.problems import Finding

UNEXPECTED = 1
SHOWN = 20  # faults that a DataError tells, see `visionkit.data.problems.Problems`


def report(error: Exception, *, debug: bool = False) -> int:
    """Write what went wrong to standard error, with `debug` after the traceback; gives the code."""
    if debug:
        traceback.print_exception(error)
    text = printable(error)
    if isinstance(error, (VisionkitError, OSError)):
        label = "" if isinstance(error, Preempted) else "error: "
        print(f"{label}{text}", file=sys.stderr)
        _tell_all(getattr(error, "findings", ()))
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


def _tell_all(findings: Sequence[Finding]) -> None:
    """Say where all faults of the data are, if they are more than an error tells."""
    if len(findings) > SHOWN:
        from visionkit.fault_file import keep_all

        print(keep_all(findings), file=sys.stderr)


def printable(text: object) -> str:
    """Its text, in which names from files cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


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
