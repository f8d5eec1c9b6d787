"""``section.key=value`` on the command line, over what a recipe file says."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..specs import read_value
from .schema import SECTIONS, options_of


def read_overrides(items: Sequence[str]) -> dict[str, Any]:
    """``["finetune.max_steps=100", ...]`` to a mapping; ``fade=false`` leaves a section out.

    Raises:
        ConfigError: an item is not of this form, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            raise ConfigError(
                f"{item[:80]!r} is not of the form section.key=value, such as finetune.seed=1; fade=false leaves a "
                "section out."
            )
        if key in found:
            raise ConfigError(f"{key!r} is given twice; give it once.")
        word = text.strip()
        found[key] = word if _takes_word(key, word) else _value(word, item)
    return found


def _takes_word(key: str, word: str) -> bool:
    """Whether ``none`` is a word that an option knows (``evaluate.against=none``), and not the absence of a value."""
    section, _, option = key.partition(".")
    if word != "none" or section not in SECTIONS:
        return False
    known = options_of(section)
    fields = dataclasses.fields(known) if dataclasses.is_dataclass(known) else ()
    check = next((f.metadata.get("check") for f in fields if f.name == option), None)
    return check is not None and check(word) is None


def _value(text: str, item: str) -> Any:
    try:
        value = read_value(text)
    except RecursionError as error:
        raise ConfigError(f"{item[:80]!r}: the value is nested too deeply.") from error
    _measure(value, item, 0)
    return value


def apply(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's sections with other values; sections that were left out come in.

    Raises:
        ConfigError: a key leads through a value that has no keys.
    """
    made = copy.deepcopy(dict(raw))
    for key, value in overrides.items():
        section, *path = key.split(".")
        if not path:
            made[section] = value
            continue
        where = made.get(section)
        if where is None or isinstance(where, bool):
            where = made[section] = {}
        elif isinstance(where, str):  # patch: yarn, model: smollm2
            where = made[section] = {"name": where}
        for part in path[:-1]:
            inner = where.get(part) if isinstance(where, dict) else None
            if inner is None and isinstance(where, dict):
                inner = where[part] = {}
            where = inner
        if not isinstance(where, dict):
            raise ConfigError(f"{key}={value!r} cannot be set: the recipe's {section!r} has no options of this form.")
        where[path[-1]] = value
    return made


def _measure(value: Any, item: str, depth: int) -> None:
    if depth > 12:
        raise ConfigError(f"{item[:80]!r}: the value is nested too deeply.")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _measure(part, item, depth + 1)
