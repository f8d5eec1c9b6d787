"""NoPE: no positional encoding at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import EncodingConfig, flag, number
from ..registry import register_encoding
from ..sites import EncodingInfo, RotationEncoding


@dataclass(frozen=True)
class NopeConfig(EncodingConfig):
    """Options of ``nope``."""

    name = "nope"
    temperature: float = number(
        0.0, low=-10.0, high=10.0, help="c of the factor 1 + c ln(s) on the logits, for s times the trained length"
    )
    factor: float = number(1.0, low=1.0, high=1024.0, help="extension factor s of that temperature")
    allow_bag_of_words: bool = flag(
        False, help="remove positions from an encoder too, which then no longer knows the order of its input"
    )


@register_encoding
class Nope(RotationEncoding[NopeConfig]):
    """No rotation (cos = 1, sin = 0) and no position table; the causal mask alone tells the order.

    Optional temperature: logits are multiplied by ``1 + c ln(s)``. Causal only: an encoder without positions is a bag
    of words, so it is refused unless ``allow_bag_of_words=True``. Retrofit: hard drop, then healing at the original
    length. Patched layers stay NoPE whatever attention backend the model uses.

    Source: Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466; dropping RoPE from a trained
    model: DroPE, 2025, arXiv 2512.12167.
    """

    Config = NopeConfig
    extends = False
    info = EncodingInfo(
        title="NoPE, no positional encoding",
        formula="logit = q . k / sqrt(d) * (1 + c ln s)",
        paper="Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466",
        bidirectional=False,
    )

    def logit_scale(self) -> float:
        """Factor on the attention logits."""
        config = self.config
        return 1.0 + config.temperature * math.log(config.factor)
