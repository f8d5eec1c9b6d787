"""An encoding as numbers to look at: what is installed on a small model, at each position, distance or frequency."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import EncodingConfig
from ..registry import get_encoding
from ..sites import BiasEncoding, HybridEncoding, InputEncoding, PiecewiseEncoding, ScoreEncoding
from .biases import see_bias
from .hybrids import see_hybrid
from .inputs import see_input
from .kinds import (
    BiasView,
    HybridView,
    InputView,
    PiecewiseView,
    RotationView,
    Shape,
    Turning,
    View,
    fill_zero_parameters,
)
from .pieces import see_pieces
from .rotations import see_rotation
from .scores import see_score

__all__ = [
    "BiasView",
    "HybridView",
    "InputView",
    "PiecewiseView",
    "RotationView",
    "Shape",
    "Turning",
    "View",
    "fill_zero_parameters",
    "view",
]


def view(config: EncodingConfig, shape: Shape) -> View:
    """What an encoding looks like on a model of this shape."""
    kind: Any = get_encoding(config.name)
    if issubclass(kind, HybridEncoding):
        return see_hybrid(kind(config))
    if issubclass(kind, BiasEncoding):
        return see_bias(kind(config, shape.host), shape)
    if issubclass(kind, ScoreEncoding):
        return see_score(kind(config, shape.host), shape)
    if issubclass(kind, PiecewiseEncoding):
        return see_pieces(kind(config, shape.host), shape)
    if issubclass(kind, InputEncoding):
        return see_input(kind(config, replace(shape.host, hidden_size=min(128, shape.host.hidden_size))), shape)
    return see_rotation(config, shape)
