"""Lists of lengths and numbers on the command line."""

from __future__ import annotations

import math

from ..errors import ConfigError

UNITS = {"k": 1024, "m": 1024**2}


def read_lengths(text: str, flag: str = "--lengths") -> list[int]:
    """``512,2k,16k`` to ascending tokens; ``k`` is 1024, ``m`` 1024 k.

    Raises:
        ConfigError: a part is no length from 16 tokens to 16m.
    """
    found = []
    for part in text.split(","):
        word = part.strip().lower()
        digits, factor = (word[:-1], UNITS[word[-1]]) if word[-1:] in UNITS else (word, 1)
        if not digits.isdecimal() or not 16 <= int(digits) * factor <= 16 * UNITS["m"]:
            raise ConfigError(f"{flag}: {part!r} is no length from 16 tokens to 16m (write 4096 or 4k).")
        found.append(int(digits) * factor)
    return sorted(set(found))


def read_numbers(text: str, flag: str) -> list[float]:
    """``0,0.5,1`` to ascending numbers.

    Raises:
        ConfigError: a part is no finite number.
    """
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{flag}: {part!r} is no number; write 0,0.5,1.")
        found.append(value)
    return sorted(set(found))


def read_size(text: str) -> int | str:
    """``auto`` or a whole number; anything else is left to the setting to refuse."""
    return int(text) if text.isdecimal() else text
