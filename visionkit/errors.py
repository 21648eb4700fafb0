"""Errors that are the user's to mend. Each says what, where, what was found, what to do.

The command line prints them without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class VisionkitError(Exception):
    """Base of the errors below; from Python, catch this one."""

    exit_code = 1


class ConfigError(VisionkitError, ValueError):
    """The config or the command line is wrong. Collects all problems of a config in one report."""

    exit_code = 2


class DataError(VisionkitError, ValueError):
    """A data set, an annotation file or an image is wrong.

    `findings` are all errors that were found, each a `visionkit.data.checks.findings.Finding`;
    the message may tell the first of them. `others` are warnings and notes from the same look.
    """

    exit_code = 3

    def __init__(self, message: str, findings: Sequence[Any] = (), others: Sequence[Any] = ()):
        super().__init__(message)
        self.findings, self.others = list(findings), list(others)


class CheckpointError(VisionkitError, RuntimeError):
    """A checkpoint or a weights file cannot be used."""

    exit_code = 4


class DivergedError(VisionkitError, ArithmeticError):
    """A loss or a gradient is not finite."""

    exit_code = 5


class ResourceError(VisionkitError):
    """The machine lacks memory, shared memory or open files for what a config asks."""


class Preempted(VisionkitError):
    """A signal asked a run to stop; its state is saved and it can be resumed."""

    exit_code = 75


class LostProcess(VisionkitError):
    """Another process of the same training went away or does not answer."""


def printable(text: object) -> str:
    """Its text, in which names from files cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


def unknown(name: object, valid: Iterable[str], what: str = "unknown key") -> str:
    """`unknown key; did you mean 'lr'? valid: ...`"""
    by_lower = {option.lower(): option for option in valid}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    guess = f"; did you mean {by_lower[close[0]]!r}?" if close else ";"
    return f"{what}{guess} valid: {', '.join(sorted(by_lower.values())) or 'none'}"
