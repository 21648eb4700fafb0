"""Argument types of the benchmarks, and error messages without a traceback."""

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
    """The path of an existing file or folder."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"got {text}; not found")
    return text


def start(main: Callable[[], None]) -> None:
    """Run `main`; an error of the user or of a measuring process ends in one line."""
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, error.cmd))}: {error.stderr or 'failed'}")
    except (VisionkitError, OSError) as error:
        sys.exit(f"error: {error}")
