"""Files as untrusted data: bounded when read, checked value by value, all problems in one error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import shorten
from ...errors import ConfigError

MOST_SHOWN = 12
"""Problems listed in one error."""


def read_bytes(path: Path, most: int) -> bytes:
    """A file of at most ``most`` bytes.

    Raises:
        ConfigError: it is larger, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if len(data) > most:
        raise ConfigError(f"{path} is larger than {most // 2**20} MiB; is it the right file?")
    return data


def read_text(path: Path, most: int) -> str:
    """The same, as UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); is it the right file?") from error


def read_json(path: Path, most: int) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: the file is too large, damaged, or holds something else.
    """
    try:
        value = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not valid JSON ({type(error).__name__}: {str(error)[:200]}).") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


class Checker:
    """Takes values out of a file that may hold anything, and remembers what is wrong.

    Args:
        what: the file, for the error.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.problems: list[str] = []

    def fault(self, where: str, value: Any, allowed: str) -> None:
        """Remember a wrong value."""
        self.problems.append(f"{where}={shorten(value)} must be {allowed}")

    def mapping(self, owner: Mapping[str, Any], key: str, where: str = "", *, needed: bool = True) -> dict[str, Any]:
        """A mapping; empty where it is missing."""
        value = owner.get(key)
        if isinstance(value, dict):
            return value
        if needed or value is not None:
            self.fault(where + key, value, "an object")
        return {}

    def entries(
        self, owner: Mapping[str, Any], key: str, where: str = "", *, most: int, kind: type = dict
    ) -> list[Any]:
        """A list of at most ``most`` values of a kind; empty where it is missing."""
        value = owner.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most or not all(isinstance(entry, kind) for entry in value):
            self.fault(where + key, value, f"a list of at most {most} values of type {kind.__name__}")
            return []
        return value

    def words(self, owner: Mapping[str, Any], key: str, where: str = "", *, most: int = 2000) -> str:
        """A text; empty where it is missing."""
        value = owner.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > most:
            self.fault(where + key, value, f"a text of at most {most} characters")
            return ""
        return value

    def number(
        self, owner: Mapping[str, Any], key: str, where: str = "", *, low: float = -math.inf, high: float = math.inf
    ) -> float | None:
        """A finite number in ``[low, high]``; None where it is missing."""
        value = owner.get(key)
        if value is None:
            return None
        if not is_number(value) or not low <= value <= high:
            limits = (
                "" if low == -math.inf else f" of at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g}]"
            )
            self.fault(where + key, value, f"a finite number{limits}, or null")
            return None
        return float(value)

    def whole(
        self, owner: Mapping[str, Any], key: str, where: str = "", *, low: int = 0, high: int = 2**53
    ) -> int | None:
        """A whole number; None where it is missing."""
        value = owner.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(where + key, value, f"a whole number from {low} to {high}, or null")
            return None
        return value

    def pair(
        self, owner: Mapping[str, Any], key: str, where: str = "", *, low: float = -math.inf, high: float = math.inf
    ) -> tuple[float, float] | None:
        """An interval; None where it is missing."""
        value = owner.get(key)
        if value is None:
            return None
        good = isinstance(value, list) and len(value) == 2 and all(is_number(v) and low <= v <= high for v in value)
        if not good or value[0] > value[1]:
            self.fault(where + key, value, "two finite numbers, the lower first, or null")
            return None
        return float(value[0]), float(value[1])

    def done(self) -> None:
        """Report what was wrong.

        Raises:
            ConfigError: with the problems.
        """
        if not self.problems:
            return
        shown = self.problems[:MOST_SHOWN]
        more = len(self.problems) - len(shown)
        lines = "".join(f"\n  - {problem}" for problem in shown) + (f"\n  - and {more} more" if more else "")
        error = ConfigError(f"{self.what} is damaged, or was written by something else:{lines}")
        error.problems = tuple(self.problems)
        raise error


def is_number(value: Any) -> bool:
    """A finite number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value.bit_length() <= 1000 if isinstance(value, int) else math.isfinite(value)
