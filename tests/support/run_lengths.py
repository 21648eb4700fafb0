"""COCO's compressed run lengths, decoded one code at a time."""

import numpy as np


def run_lengths(counts: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed form; `ValueError` if it is not in that form.

    Six bits per character: five of the number, low ones first, and one that says that more
    follow; from the fourth number on, the difference to the one two places before is stored.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0  # the last character of each number
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("not a compressed run-length code")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run length needs more than 32 bits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shift, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)  # sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
