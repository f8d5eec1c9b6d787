"""Requests for ``patch_model`` in words: ``yarn factor=4``, ``native+t5``, ``3::4``, ``yarn:factor=4@MODEL``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .layering import read_selector
from .registry import NATIVE, get_encoding


def read_value(text: str) -> Any:
    """``4`` int, ``0.5`` float, ``true``, ``none``; ``1,2,3``, ``[1, 2, 3]`` or ``[512, 2k]`` a list; else a word."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    if text.startswith("[") and text.endswith("]") and not set(text[1:-1]) & set("[]{}\"'"):
        return [read_value(part.strip()) for part in text[1:-1].split(",")]
    return text


def read_options(items: Sequence[str]) -> dict[str, Any]:
    """``["factor=4", ...]`` to a mapping.

    Raises:
        ConfigError: an item is not ``key=value``, or a key comes twice.
    """
    options: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ConfigError(f"{item!r} is not an option of the form key=value, such as factor=4.")
        if key in options:
            raise ConfigError(f"The option {key!r} is given twice; give it once.")
        options[key] = read_value(value.strip())
    return options


def read_spec(
    name: str,
    items: Sequence[str],
    *,
    examples: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda name, given: {},
) -> tuple[list[Any], dict[str, Any]]:
    """The spec for ``patch_model`` from ``NAME`` (``alibi``, ``native+t5``) and ``key=value`` options.

    With several encodings an option goes to the one that has it; ``t5.num_buckets=64`` says whose it is.

    Args:
        name: encodings joined by ``+``.
        items: options.
        examples: values for options that are missing, from an encoding's name and its options so far.

    Returns:
        ``["native", T5Config(...)]``, and the options that were filled in.

    Raises:
        UnknownEncodingError, ConfigError: with the nearest names, or every wrong option.
    """
    return make_spec(name, read_options(items), examples=examples)


def make_spec(
    name: str,
    options: Mapping[str, Any],
    *,
    examples: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda name, given: {},
) -> tuple[list[Any], dict[str, Any]]:
    """As :func:`read_spec`, with the options as values."""
    parts = [part.strip() for part in name.split("+")]
    if "" in parts:
        raise ConfigError(f"{name!r} is no encoding. Name one, such as alibi, or join some with +, such as native+t5.")
    kinds = {part: get_encoding(part).Config for part in parts if part not in NATIVE}
    given: dict[str, dict[str, Any]] = {part: {} for part in kinds}
    for key, value in options.items():
        owner, _, rest = key.rpartition(".")
        if owner and owner not in kinds:
            raise ConfigError(f"{key!r} names no encoding of {name!r}; it has {', '.join(kinds) or 'no options'}.")
        owners = [owner] if owner else [p for p in kinds if rest in {o["option"] for o in kinds[p].describe()}]
        if len(owners) > 1:
            raise ConfigError(f"Several encodings have the option {rest!r}; write {owners[0]}.{rest}=... to say whose.")
        if not owners and len(kinds) != 1:
            raise ConfigError(f"No encoding of {name!r} has the option {rest!r}.")
        given[owners[0] if owners else next(iter(kinds))][rest] = value
    filled: dict[str, Any] = {}
    spec: list[Any] = []
    for part in parts:
        if part in NATIVE:
            spec.append(part)
            continue
        more = examples(part, given[part])
        filled.update(more)
        given[part].update(more)
        spec.append(kinds[part].from_options(given[part]))
    return spec, filled


def read_layers(text: str) -> Any:
    """``all``, ``0,3,7``, ``3::4`` or ``-4:`` to what ``patch_model(layers=...)`` takes.

    Raises:
        ConfigError: anything else.
    """
    text = text.strip()
    if text.lower() == "all":
        return None
    try:
        return read_selector(text)
    except ValueError as error:
        raise ConfigError(
            f"--layers {text!r} is not understood. Write all, indices such as 0,3,7, or a slice such as 3::4 (every "
            "fourth from the fourth on) or -4: (the last four)."
        ) from error


@dataclass(frozen=True)
class Named:
    """A model on the command line, perhaps to be patched on the fly.

    Attributes:
        text: as given.
        model: hub id, folder, adapter or GGUF file.
        spec: for ``patch_model``; None to leave the model as it is.
        layers: for ``patch_model``.
    """

    text: str
    model: str
    spec: list[Any] | None = None
    layers: Any = None

    @property
    def label(self) -> str:
        """The text, with the last part of a path only: what tables and published files show."""
        if not Path(self.model).exists():
            return self.text
        return self.text.removesuffix(self.model) + Path(self.model).resolve().name


def read_named(text: str) -> Named:
    """``MODEL``, or ``NAME@MODEL`` with options after a colon.

    ``alibi@MODEL``, ``yarn:factor=4@MODEL``, ``native+t5:num_buckets=64,max_distance=256@MODEL``,
    ``nope:layers=3::4@MODEL``. A file or folder of the whole name is that file or folder.

    Raises:
        UnknownEncodingError, ConfigError: as for :func:`read_spec` and :func:`read_layers`.
    """
    patch, at, model = text.partition("@")
    if not at or Path(text).exists():
        return Named(text, text)
    if not model or not patch:
        raise ConfigError(f"{text!r} lacks {'a model' if patch else 'an encoding'}; write yarn:factor=4@MODEL.")
    name, _, options = patch.partition(":")
    items = re.split(r",(?=[A-Za-z_][A-Za-z_0-9.]*=)", options) if options else []
    layers = [item for item in items if item.startswith("layers=")]
    if len(layers) > 1:
        raise ConfigError(f"{text!r} names layers twice; name them once.")
    spec, _ = read_spec(name, [item for item in items if item not in layers])
    if spec == ["native"]:
        return Named(text, model)
    return Named(text, model, spec, read_layers(layers[0].partition("=")[2]) if layers else None)
