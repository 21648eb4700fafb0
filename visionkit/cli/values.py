"""What the values of options mean: each function is the `type` of an argparse option."""

from __future__ import annotations

import argparse
from contextlib import suppress


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def fraction(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"got {text}; expected a number from 0 to 1")


def threshold(text: str) -> float | str:
    if text == "best" or text.startswith("p="):
        return text
    try:
        return fraction(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, best, or a precision such as p=0.9") from None


def size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"got {text}; expected H,W such as 480,640")
    return int(sides[0]), int(sides[1])


def batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    try:
        return count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or dynamic") from None


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text}; expected an integer >= 0")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected an integer >= 1")
    return int(text)


def shares(text: str) -> dict[str, float]:
    """`train=0.8,val=0.2`: names with shares that add up to 1."""
    found: dict[str, float] = {}
    for part in names(text):
        name, _, share = part.partition("=")
        if name.strip() in found:
            raise argparse.ArgumentTypeError(f"got {text}; {name.strip()} is there twice")
        found[name.strip()] = fraction(share) if share else -1.0
    if len(found) < 2 or min(found.values()) <= 0 or abs(sum(found.values()) - 1) > 1e-6:
        wanted = "two or more names with shares that add up to 1, such as train=0.8,val=0.2"
        raise argparse.ArgumentTypeError(f"got {text}; expected {wanted}")
    return found
