"""What the benchmarks take as arguments, and a line instead of a traceback for what they do not."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from visionkit.errors import VisionkitError


def count(text: str) -> int:
    """An integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected an integer >= 1")
    return int(text)


def existing(text: str) -> str:
    """The name of a file or folder that is there."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"got {text}; there is no such file or folder")
    return text


def start(main: Callable[[], None]) -> None:
    """Errors that are the user's to mend, and those of a process that measures, end in a line."""
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, error.cmd))}: {error.stderr or 'has failed'}")
    except (VisionkitError, OSError) as error:
        sys.exit(f"error: {error}")
