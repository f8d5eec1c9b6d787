"""Dynamic NTK: the rotary base grows with the length seen so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding, default_inv_freq


@dataclass(frozen=True)
class DynamicConfig(EncodingConfig):
    """Options of ``dynamic``."""

    name = "dynamic"
    factor: float = number(low=1.0, high=1024.0, help="scaling factor s of the growth")


@register_encoding
class Dynamic(RotationEncoding[DynamicConfig]):
    """Dynamic NTK-aware RoPE: ``theta_n = theta * (s * n / L - (s - 1))^(d / (d - 2))`` for ``n > L``.

    ``n`` is the number of tokens a query can see, itself included: query ``i`` is scored with every key rotated by
    ``theta_(i+1)``. That makes the model causal (a logit never depends on later tokens) and gives the same result with
    a cache, without one, and in chunks; transformers' own rule takes ``n`` from the current call, so its cached keys
    keep the rotation of an older base. Keys are therefore cached unrotated and rotated in the attention. Up to
    ``n = L`` the model is exactly the original. Beyond, ``n`` is rounded up to a multiple of ``L / 64`` (exact where
    ``L <= 64``), so that neighbouring queries share one rotation of the keys.

    Causal only. Config on disk: transformers' own ``rope_type: dynamic``; a model reloaded from it follows
    transformers' rule until it is patched again.

    Source: emozilla, "Dynamically Scaled RoPE further increases performance of long context LLaMA", 2023.
    """

    Config = DynamicConfig
    length_dependent = True
    info = EncodingInfo(
        title="dynamic NTK-aware RoPE",
        formula="theta_n = theta * (s * n / L - (s - 1))^(d / (d - 2)) for n > L",
        paper="emozilla 2023; see Peng et al. 2023, arXiv 2309.00071",
        bidirectional=False,
        relative=False,
        identity="up to the trained length",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._keep(rope), "rope_type": "dynamic", "factor": float(self.config.factor)}

    def max_position_embeddings(self) -> int:
        return self.host.max_positions  # transformers reads L from here; the formula needs the trained one

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        d, trained, s = self.host.rotary_dim, self.host.max_positions, self.config.factor
        n = max(length, trained)
        theta = rope["rope_theta"] * ((s * n / trained) - (s - 1)) ** (d / (d - 2))
        return default_inv_freq(theta, d)

    def groups(self, positions: Tensor) -> Tensor:
        trained = self.host.max_positions
        step = max(1, trained // 64)
        beyond = (positions + 1 - trained).clamp_min(0)
        return trained + torch.div(beyond + step - 1, step, rounding_mode="floor") * step

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return True
