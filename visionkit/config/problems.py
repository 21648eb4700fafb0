"""All that is wrong with a config, in one report that says where each value was written."""

from __future__ import annotations

from collections.abc import Mapping

from visionkit.config.yaml import Key
from visionkit.errors import ConfigError


class Problems:
    """Collects problems by key. A place is the line of the file, or the override."""

    def __init__(self, source: str, lines: Mapping[Key, int]) -> None:
        self.source = source
        self._places = {key: ((0, line), f"{source}:{line}") for key, line in lines.items()}
        self._places[()] = ((0, 0), source)
        self._renamed: dict[Key, Key] = {}
        self._overrides = 0
        self._found: dict[str, tuple[int, int]] = {}

    def overridden(self, key: Key, text: str) -> None:
        """What is at `key` and below comes from that override and no longer from the file."""
        for stale in [place for place in self._places if place[: len(key)] == key]:
            del self._places[stale]
        self._overrides += 1
        place = ((1, self._overrides), f"override {text}")
        self._places[key] = place
        for length in range(1, len(key)):  # sections that only the override mentions
            self._places.setdefault(key[:length], place)

    def refused(self, text: str, message: str) -> None:
        """That override cannot be applied."""
        self._overrides += 1
        self._found[f"override {text}: {message}"] = (1, self._overrides)

    def renamed(self, key: Key, written: Key) -> None:
        """What is checked as `key` is called `written` by the user."""
        self._renamed[key] = written

    def add(self, key: Key, message: str) -> None:
        key = self._as_written(key)
        place = next(key[:n] for n in range(len(key), -1, -1) if key[:n] in self._places)
        order, text = self._places[place]
        entry = ": ".join(part for part in (text, ".".join(key), message) if part)
        self._found.setdefault(entry, order)

    def raise_found(self) -> None:
        """One ConfigError with a line for each problem, in the order of the places."""
        if self._found:
            raise ConfigError("\n".join(sorted(self._found, key=lambda e: (self._found[e], e))))

    def __bool__(self) -> bool:
        return bool(self._found)

    def _as_written(self, key: Key) -> Key:
        for long, written in self._renamed.items():
            if key[: len(long)] == long:
                return written + key[len(long) :]
        return key


def shorten(value: object, limit: int = 60) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
