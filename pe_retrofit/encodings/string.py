"""STRING: well-trained distances take the place of the far, rarely trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, Piece, PiecewiseEncoding


@dataclass(frozen=True)
class StringConfig(EncodingConfig):
    """Options of ``string``."""

    name = "string"
    factor: float = number(1.0, low=1.0, high=2.0, help="length to be reached over the trained one; moves the shift")
    shift: int | None = integer(
        None, low=1, high=2**24, optional=True, help="distances from here on are shifted (S); None: see the page"
    )
    local: int = integer(128, low=1, high=2**20, help="distance that the first shifted one becomes (W), in tokens")

    def check(self) -> Sequence[str]:
        if self.shift is not None and self.local >= self.shift:
            return [f"local={self.local} must be smaller than shift={self.shift}, or nothing is shifted down"]
        return ()


@register_encoding
class String(PiecewiseEncoding[StringConfig]):
    """STRING: RoPE at distance ``i - j`` below ``S``, at ``i - j - S + W`` from ``S`` on.

    The far distances, which training saw rarely, are overwritten by frequent ones; ``W = 128`` keeps them apart from
    the nearest neighbours. The paper shifts within the trained length, with ``S = L / 3``. With ``factor`` it also
    reaches ``factor * L`` tokens: ``S`` is then at least ``(factor - 1) L``, so that no distance exceeds ``L + W``;
    twice ``L`` is the most, since distances below ``S`` stay as they are. Changes outputs beyond ``S`` tokens even
    within the trained length: no identity, by design. Causal only; a shift of all positions changes nothing.

    Source: An et al., "Why Does the Effective Context Length of LLMs Fall Short?", 2024, arXiv 2410.18745.

    Raises:
        ConfigError: ``local`` is not smaller than the shift.
    """

    Config = StringConfig
    info = EncodingInfo(
        title="STRING, shifted rotary positions",
        formula="i - j below S, i - j - S + W from S on",
        paper="An et al. 2024, arXiv 2410.18745",
        bidirectional=False,
    )

    @property
    def shift(self) -> int:
        """``S`` in tokens."""
        return shift_of(self.config, self.host.max_positions)

    @property
    def local(self) -> int:
        """``W`` in tokens, smaller than ``S``."""
        return min(self.config.local, self.shift - 1)

    def pieces(self) -> list[Piece]:
        s, w = self.shift, self.local
        return [Piece(high=s), Piece(low=s, query=lambda i: i - s + w)]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return shift_of(config, host.max_positions) >= host.max_positions


def shift_of(config: StringConfig, trained: int) -> int:
    """``S`` in tokens for a trained length in tokens."""
    return config.shift or max(2, trained // 3, round((config.factor - 1) * trained))
