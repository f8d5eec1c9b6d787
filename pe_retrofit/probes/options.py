"""Options to measure an encoding with on a model trained to 128 tokens, where none were given.

Defaults are made for models that were trained to thousands of tokens: a window of 1024 would never act on the small
model. What stands here bears the same relation to 128 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import get_encoding

EXAMPLES: dict[str, Any] = {"factor": 4.0, "max_positions": 256}
"""Values for required options, by option."""

SMALL: dict[str, dict[str, Any]] = {
    "deberta": {"position_buckets": 64, "max_relative_positions": 128},
    "fire": {"length": 32},
    "rnope": {"window": 64},
    "self_extend": {"window": 32},
    "string": {"local": 8},
    "swan": {"window": 32},
    "window": {"size": 32},
    "xpos": {"scale_base": 64.0},
}
"""Options whose default is a number of tokens beyond the small model, by encoding."""


def example_options(name: str, given: Mapping[str, Any], *, small: bool = True) -> dict[str, Any]:
    """Values for options that were not given: required ones, and (with ``small``) those of :data:`SMALL`.

    Args:
        name: of the encoding.
        given: its options so far.
    """
    required = [row["option"] for row in get_encoding(name).Config.describe() if row["default"] == "required"]
    values = {key: EXAMPLES[key] for key in required if key in EXAMPLES}
    if small:
        values |= SMALL.get(name, {})
    return {key: value for key, value in values.items() if key not in given}
