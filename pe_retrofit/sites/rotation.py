"""The rotation site: queries and keys turned by position before the score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .encoding import C, Encoding, HostShape


class RotationEncoding(Encoding[C]):
    """Changes how a model that rotates queries and keys (RoPE) does so.

    ``rope_parameters`` is what transformers' own configuration understands; a model changed this way is a plain model
    for every other tool.
    """

    site = "rotation"
    length_dependent: ClassVar[bool] = False
    extends: ClassVar[bool] = True
    expressible: ClassVar[bool] = True
    """Whether ``rope_parameters`` says all of it."""

    def __init__(self, config: C, host: HostShape) -> None:
        self.config = config
        self.host = host

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        """New ``rope_parameters`` from the model's own."""
        raise NotImplementedError

    def max_position_embeddings(self) -> int:
        """The length the model is meant for afterwards, in tokens."""
        factor = getattr(self.config, "factor", 1.0)
        return round(self.host.max_positions * factor)

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        """float32 ``[rotary_dim / 2]`` angular frequencies in radians per token for a context of ``length`` tokens.

        Only for encodings with ``length_dependent = True``.
        """
        raise NotImplementedError

    def groups(self, positions: Tensor) -> Tensor:
        """Length each query's rotation is made for: int64, same shape as ``positions``. Only when length dependent."""
        raise NotImplementedError

    def amplitude(self, positions: Tensor, length: int, *, query: bool) -> Tensor | None:
        """float32 ``[b, t, rotary_dim / 2]`` factor on queries (or keys) at positions ``[b, t]``; None: 1.

        Args:
            length: the group, as :meth:`groups` numbers them.
        """
        return None

    @staticmethod
    def _keep(rope: Mapping[str, Any]) -> dict[str, Any]:
        return {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if rope.get(k) is not None}


def default_inv_freq(theta: float, dim: int) -> Tensor:
    """RoPE's frequencies ``theta^(-2m/d)``: float32 ``[dim / 2]``, computed on the CPU as transformers does."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim))
