"""Hybrids: which layer has what."""

from __future__ import annotations

from typing import Any

from ..layering import split_spec
from ..plan import parse_spec
from ..sites import HybridEncoding
from .kinds import HybridView

LAYERS = 8
"""How many layers are shown at least."""


def see_hybrid(encoding: HybridEncoding[Any]) -> HybridView:
    """Two groups of layers at least."""
    count = max(LAYERS, 2 * encoding.least_layers())
    words, options = [""] * count, {}
    for part in split_spec(encoding.config, {}, None, count):
        configs, keeps = parse_spec(part.spec, {})
        for layer in part.layers:
            words[layer] = " + ".join((["native"] if keeps else []) + [c.name for c in configs])
        for one in configs:
            given = {row["option"]: getattr(one, row["option"]) for row in type(one).describe()}
            shown = [f"{key} = {value}" for key, value in given.items() if value not in (None, False, 0.0, 1.0)]
            options[one.name] = f"{one.name}: {', '.join(shown) or 'defaults'}"
    return HybridView(words, "; ".join(options.values()))
