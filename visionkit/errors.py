"""The errors that a user can fix, and helpers for their messages.

A message says what is wrong, where, what was found and what to do. The command line prints it
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from types import NoneType
from typing import Any

DISTRIBUTION = "visionkit-torch"  # what pip installs; on PyPI `visionkit` is another package
SHOWN_NAMES = 20  # names, for example of classes, in a message


class VisionkitError(Exception):
    """Base of the errors below; from Python, catch this one.

    Each argument is a line of the message. What is not printable in it is escaped, line breaks too,
    so that a name from a file cannot steer the terminal or look like another message.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args))

    @property
    def lines(self) -> list[str]:
        """The lines of the message, for an error that adds to it or joins several."""
        return str(self).split("\n")


class ConfigError(VisionkitError, ValueError):
    """The config or the command line is wrong. One error lists all problems of a config."""

    exit_code = 2


class ArgumentError(ConfigError, TypeError):
    """A command or a function was called with a wrong argument."""


class DataError(VisionkitError, ValueError):
    """A dataset, an annotation file or an image is wrong.

    `findings` has all errors, each a `visionkit.data.checks.findings.Finding`; the message may
    name only the first of them. `others` has the warnings and notes of the same check.
    """

    exit_code = 3

    def __init__(self, *lines: str, findings: Sequence[Any] = (), others: Sequence[Any] = ()):
        super().__init__(*lines)
        self.findings, self.others = list(findings), list(others)


class CheckpointError(VisionkitError, RuntimeError):
    """A checkpoint or a weights file cannot be used."""

    exit_code = 4


class DivergedError(VisionkitError, ArithmeticError):
    """A loss or a gradient is not finite."""

    exit_code = 5


class ResourceError(VisionkitError):
    """The machine lacks the memory, shared memory or open files that a config needs."""


class Preempted(VisionkitError):
    """A signal stopped a run; its state is saved and the run can be resumed."""

    exit_code = 75


class LostRank(VisionkitError):
    """Another rank of the same run ended or does not answer."""


def package_version() -> str:
    """The version of visionkit; "unknown" in a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def install_hint(extra: str) -> str:
    """The command that installs an extra of this package, such as `timm`."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def upgrade_hint() -> str:
    """The command that installs the newest version of this package."""
    return f"pip install --upgrade {DISTRIBUTION}"


def check_flags(**flags: object) -> None:
    """ArgumentError for one that is not a bool: most other values would count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}: got {shorten(repr(value))}; expected True or False")


def check_counts(**counts: object) -> None:
    """ArgumentError for one that is not an integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name}: got {shorten(repr(value))}; expected an integer >= 1")


def check_names(**lists: object) -> None:
    """ArgumentError for one that is neither None nor a list of names; a string has letters."""
    for name, value in lists.items():
        if isinstance(value, (str, bytes)) or not isinstance(value, (Iterable, NoneType)):
            text = f"{name}: got {shorten(repr(value))}; expected a list of names"
            raise ArgumentError(
                f"{text}, such as [{shorten(repr(value))}]" if isinstance(value, str) else text
            )


def printable(text: object) -> str:
    """The text on one line: what is not printable, such as line breaks, escape sequences and marks
    of the writing direction, is escaped. A VisionkitError, escaped already, keeps its lines."""
    plain = str(text)
    if plain.isprintable() or isinstance(text, VisionkitError):
        return plain
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)


def is_blank(name: str) -> bool:
    """Whether nothing of a name can be seen."""
    return not any(c.isprintable() and not c.isspace() for c in name)


def escape_arguments(record: logging.LogRecord) -> bool:
    """A filter of a logger: the arguments of its messages become `printable`."""
    texts = (str, os.PathLike, BaseException)
    if isinstance(record.args, tuple):
        record.args = tuple(printable(a) if isinstance(a, texts) else a for a in record.args)
    return True


logging.getLogger("visionkit").addFilter(escape_arguments)


_MEMORY = (
    "allow more memory or address space (`ulimit -v unlimited`), or use fewer data.workers, "
    "smaller batches or smaller images"
)
SHARED_MEMORY = (
    "the shared memory of loader workers (/dev/shm) is full, read-only or not there: make it "
    "larger (`docker run --shm-size=8g`), use fewer data.workers or smaller batches, or "
    "data.workers=0"
)
_SHORTAGES = {  # by a regular expression of what Python or a library says
    # First: torch says it of shared memory too.
    r"Too many open files|ancdata|was lost": "allow more open files with `ulimit -n 65536`, or use "
    "fewer data.workers",
    r"shared memory|</torch_": SHARED_MEMORY,
    r"can't start new thread|Resource temporarily unavailable": "allow more processes and threads "
    "(`ulimit -u`) and memory (`ulimit -v`), or use fewer data.workers",
    r"an't allocate memory|annot allocate memory|failed to map segment|bad_alloc": _MEMORY,
    r"could not create a (primitive|memory)": _MEMORY,  # oneDNN
    r"operator torchvision::\w+ does not exist": "torchvision's native code was not loaded: "
    f"install the torchvision of this torch, or {_MEMORY}",
}


def shortage(error: BaseException) -> str | None:
    """What the machine lacks or Python forbids, if that caused an error, and what to do."""
    if isinstance(error, Warning):
        return "Python raises warnings as errors (`-W error`, PYTHONWARNINGS): run it without that"
    if isinstance(error, MemoryError):
        return _MEMORY
    text = (str(error).strip().splitlines() or [""])[-1]  # the others may be a worker's traceback
    return next((hint for regex, hint in _SHORTAGES.items() if re.search(regex, text)), None)


def plural(count: int, noun: str, several: str = "") -> str:
    """`1 image`, `2 images`; `several` is the plural of other nouns than those with an s."""
    return f"{count} {noun if count == 1 else several or f'{noun}s'}"


def shorten(value: object, limit: int = 60) -> str:
    """A string, or the `repr` of another value, of at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(items: Collection[object], limit: int = 10) -> str:
    """`a, b, c`, or the first `limit` items and the number of the others; `none` without items."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join(map(str, islice(items, limit))) or "none") + more


def other_form(name: str, names: Iterable[str]) -> str:
    """A clause if `names` has the name in another Unicode form, such as a letter and its accent as
    two characters (NFD, as macOS writes names) instead of one (NFC); else ""."""
    if (other := _twin(name, names)) is None:
        return ""
    kind = "NFC" if unicodedata.is_normalized("NFC", other) else "NFD"
    return f", but the same name in another Unicode form ({kind}) is: rename one of the two"


def other_case(name: str, folded: Mapping[str, str]) -> str:
    """A clause if `folded`, names by their `casefold`, has the name with other capitals; or ""."""
    other = folded.get(name.casefold(), name)
    return (
        "" if other == name else f", but {other!a}, with other capitals, is: rename one of the two"
    )


def _twin(name: str, names: Iterable[str]) -> str | None:
    form = unicodedata.normalize("NFC", name)
    others = () if name.isascii() else (other for other in names if other != name)
    return next((one for one in others if unicodedata.normalize("NFC", one) == form), None)


def unknown(
    name: object,
    valid: Iterable[str],
    what: str = "unknown key",
    limit: int = SHOWN_NAMES,
    meant: str | None = None,
) -> str:
    """`unknown key; did you mean 'lr'? valid: ...`; of more options than `limit` those most like
    the name. `meant` is known to be meant; None: the nearest option, if one is near."""
    by_lower = {option.lower(): option for option in valid}
    if meant is None and (close := difflib.get_close_matches(str(name).lower(), by_lower, n=1)):
        meant = by_lower[close[0]]
    guess = f"; did you mean {meant!r}?" if meant else ";"
    if twin := _twin(str(name), by_lower.values()):
        guess = f"; did you mean {twin!a}, the same in another Unicode form?"
    shown, more = [*by_lower], ""
    if len(shown) > limit:
        shown = difflib.get_close_matches(str(name).lower(), by_lower, n=limit, cutoff=0.0)
        more = f" and {len(by_lower) - limit} more"
    options = ", ".join(sorted(by_lower[option] for option in shown)) or "none"
    return f"{what}{guess} valid: {options}{more}"
