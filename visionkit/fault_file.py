"""A list of faults that is too long for the screen, in a file of the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from visionkit.cache import cache_folder, trim
from visionkit.data.problems import Finding
from visionkit.rundir import to_json, write_text

LIMIT = 100 * 2**20  # bytes of all such files


def keep_all(findings: Sequence[Finding]) -> str:
    """Write all of them; the sentence that says where, or why not."""
    content: dict[str, Any] = {"version": 1, "findings": [found.record() for found in findings]}
    text = to_json(content) + "\n"
    try:
        folder = cache_folder() / "faults"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        write_text(path, text)
        trim(folder, LIMIT, keep=path)
    except (OSError, RuntimeError) as error:  # a full disk, or no home folder
        return f"all {len(findings)} could not be written to the cache folder [{error}]"
    return f"all {len(findings)} are in {path}"
