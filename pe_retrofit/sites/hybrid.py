"""Hybrids: encodings that differ from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .encoding import C, Encoding


class HybridEncoding(Encoding[C]):
    """Says which layers get which encodings; acts at no site itself.

    ``patch_model`` expands it into one patch per group of layers, and so it is written to disk: a saved model says
    what each layer has, not what the recipe was called.
    """

    site = "hybrid"

    def __init__(self, config: C) -> None:
        self.config = config

    def layers(self, count: int) -> Mapping[Any, Any]:
        """Layer selector -> spec, as ``patch_model`` takes it, for a model of ``count`` layers."""
        raise NotImplementedError

    def least_layers(self) -> int:
        """How many layers a model must have."""
        return 1

    @classmethod
    def faults(cls) -> list[str]:
        faults = super().faults()
        if cls.layers is HybridEncoding.layers:
            faults.append("override layers()")
        return faults
