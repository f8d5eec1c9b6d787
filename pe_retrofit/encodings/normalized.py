"""The position as a share of the text, for teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, ScalarInput


@dataclass(frozen=True)
class NormalizedConfig(EncodingConfig):
    """Options of ``normalized``."""

    name = "normalized"
    scale: float = number(1.0, low=1e-3, high=1e3, help="size at the end of the text, over that of the embeddings")


@register_encoding
class Normalized(ScalarInput[NormalizedConfig]):
    """The position over the length: ``x_i + a i / (n - 1) u`` with ``u = (1, -1, 1, -1, ...)``.

    ``n`` is the number of tokens of the text, without padding, and for packed texts that of each; with ``n = 1``
    nothing is added. ``a`` (one number, parameter ``gate``) is learned and starts at ``scale`` times the root mean
    square of the token embeddings. A baseline for teaching and diagnosis: the same position means another number in a
    text of another length. Replaces the native encoding, or adds to it with ``["native", ...]``, which is no identity.

    Source: the naive baseline of textbooks, against which Vaswani et al., "Attention Is All You Need", 2017,
    arXiv 1706.03762, chose sinusoids.

    Raises:
        UnsupportedError: when a cache is continued, because every cached token would have to change with the length.
            Generate with ``use_cache=False``.
    """

    Config = NormalizedConfig
    needs_length: ClassVar[bool] = True
    info = EncodingInfo(
        title="the position as a share of the text (baseline for teaching)",
        formula="x_i + a i / (n - 1) u,  u = (1, -1, 1, -1, ...)",
        paper="textbook baseline; see Vaswani et al. 2017, arXiv 1706.03762",
        relative=False,
        breaks="it is not consistent across lengths (one token more changes every position), nor relative, and no "
        "cache can be continued",
    )

    def forward(self, position_ids: Tensor, length: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``[..., hidden_size]`` for int64 positions ``[...]``.

        Args:
            position_ids: ``[..., q]``.
            length: int64 ``[..., q]``, tokens in the text of each; None: all are one text.
        """
        if length is None:
            length = torch.full_like(position_ids, position_ids.shape[-1])
        shares = position_ids.float() / (length - 1).clamp_min(1).float()
        return self.along(shares.masked_fill(length <= 1, 0))
