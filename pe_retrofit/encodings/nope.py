"""NoPE: no positional encoding at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, flag, integer, number
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
    attn_scale: float = number(
        0.0,
        low=0.0,
        high=10.0,
        help="c of the factor 1 + c ln(1 + floor((i + 1) / floor_scale)) on the logits of query i (Llama 4: 0.1)",
    )
    floor_scale: int | None = integer(
        None, low=1, high=2**31, optional=True, help="tokens until that factor first grows; none: the trained length"
    )
    gains: bool = flag(
        False, help="learn a complex gain for each frequency of each head's query, 1 at the start; calibration sets it"
    )


@register_encoding
class Nope(RotationEncoding[NopeConfig]):
    """No rotation (cos = 1, sin = 0) and no position table; the causal mask alone tells the order.

    Two optional temperatures on ``q . k`` (not on biases): ``1 + c ln(s)`` for all queries with ``temperature`` and
    ``factor``, and ``1 + c ln(1 + floor((i + 1) / floor_scale))`` for the query at position ``i`` with ``attn_scale``
    and ``floor_scale``, which keeps attention sharp over texts longer than trained. The latter depends on the query's
    position alone, so it is the same with a cache and without, but a shift of all positions changes the output.

    With ``gains=True`` each head learns a complex number per frequency of the removed rotation, ``gain [h, n, 2]``. It
    multiplies the same pair of dimensions of its queries. It starts at 1. A head that looks at a usual distance D loses
    little without its rotation if ``g_m = e^(i D theta_m)`` takes its place, which calibration finds in closed form.

    Causal only: an encoder without positions is a bag of words, so it is refused unless ``allow_bag_of_words=True``.
    Retrofit: hard drop, then healing at the original length; with ``floor_scale`` at least the trained length the
    growing temperature is 1 for all but the last trained position. Patched layers stay NoPE whatever attention backend
    the model uses; with a temperature they run on ours.

    Source: Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466; dropping RoPE from a trained
    model: DroPE, 2025, arXiv 2512.12167. Temperature by position: Llama 4 (Meta, 2025), after Nakanishi,
    "Scalable-Softmax Is Superior for Attention", 2025, arXiv 2501.19399.
    """

    Config = NopeConfig
    extends = False
    info = EncodingInfo(
        title="NoPE, no positional encoding",
        formula="logit = q . k / sqrt(d) * (1 + c ln s) * (1 + attn_scale ln(1 + floor((i + 1) / floor_scale)))",
        paper="Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466",
        bidirectional=False,
    )

    def logit_scale(self) -> float:
        """Factor on the attention logits of all queries."""
        config = self.config
        return 1.0 + config.temperature * math.log(config.factor)

    def floor_scale(self) -> int:
        """Tokens until the factor by position first grows."""
        return self.config.floor_scale or self.host.max_positions

    @classmethod
    def is_relative(cls, config: Any) -> bool:
        return not config.attn_scale
