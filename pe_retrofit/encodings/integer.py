"""The position itself as a number, for teaching."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, ScalarInput


@dataclass(frozen=True)
class IntegerConfig(EncodingConfig):
    """Options of ``integer``."""

    name = "integer"
    scale: float = number(1.0, low=1e-3, high=1e3, help="size of the step per token, over that of the token embeddings")


@register_encoding
class Integer(ScalarInput[IntegerConfig]):
    """The position as it is: ``x_i + a i u`` with ``u = (1, -1, 1, -1, ...)``.

    ``a`` (one number, parameter ``gate``) is learned and starts at ``scale`` times the root mean square of the token
    embeddings, so position 1 is as large as a token and position 1000 a thousand times larger. A baseline for teaching
    and diagnosis: it is not bounded and does not extrapolate, and in bfloat16 it drowns the token. Replaces the native
    encoding, or adds to it with ``["native", ...]``, which is no identity.

    Source: the naive baseline of textbooks, against which Vaswani et al., "Attention Is All You Need", 2017,
    arXiv 1706.03762, chose sinusoids.
    """

    Config = IntegerConfig
    info = EncodingInfo(
        title="the position as a number (baseline for teaching)",
        formula="x_i + a i u,  u = (1, -1, 1, -1, ...)",
        paper="textbook baseline; see Vaswani et al. 2017, arXiv 1706.03762",
        relative=False,
        breaks="it is not bounded (far positions drown the token embeddings) and does not extrapolate",
    )

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.along(position_ids.float())
