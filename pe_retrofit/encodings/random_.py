"""A random number per position, for teaching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, ScalarInput


@dataclass(frozen=True)
class RandomConfig(EncodingConfig):
    """Options of ``random``."""

    name = "random"
    scale: float = number(1.0, low=1e-3, high=1e3, help="largest size, over that of the token embeddings")
    seed: int = integer(0, low=0, high=2**31 - 1, help="another seed gives every position another number")


@register_encoding
class Random(ScalarInput[RandomConfig]):
    """A random number per position: ``x_i + a r_i u`` with ``r_i ~ U(-1, 1)`` and ``u = (1, -1, 1, -1, ...)``.

    ``r_i`` is a function of seed and position alone (:func:`uniform`), so it is the same in every pass, process and
    length of text. ``a`` (one number, parameter ``gate``) is learned and starts at ``scale`` times the root mean square
    of the token embeddings. A baseline for teaching and diagnosis: neighbours have nothing in common, and nothing of
    their order or distance can be read. Replaces the native encoding, or adds to it with ``["native", ...]``, which is
    no identity.

    Source: the naive baseline of textbooks, against which Vaswani et al., "Attention Is All You Need", 2017,
    arXiv 1706.03762, chose sinusoids.
    """

    Config = RandomConfig
    info = EncodingInfo(
        title="a random number per position (baseline for teaching)",
        formula="x_i + a r_i u,  r_i ~ U(-1, 1),  u = (1, -1, 1, -1, ...)",
        paper="textbook baseline; see Vaswani et al. 2017, arXiv 1706.03762",
        relative=False,
        breaks="it is not relative and has no order (neighbours are as unlike as strangers); it is consistent across "
        "lengths only because seed and position fix it",
    )

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.along(uniform(position_ids, self.config.seed))


_BITS = 0xFFFFFFFF


def uniform(position_ids: Tensor, seed: int) -> Tensor:
    """float32 ``[...]`` in (-1, 1) for int64 positions ``[...]``: odd multiples of 2^-24.

    The upper 24 of 32 bits of ``mix(mix(seed) + i)``, where ``mix`` is an invertible integer hash: exact in 64-bit
    integers, hence the same on every device.
    """
    start = int(_mix(torch.tensor(seed, dtype=torch.int64, device="cpu")))
    bits = _mix((position_ids + start) & _BITS) >> 8
    return (2 * bits + 1 - 2**24).float() / 2**24


def _mix(value: Tensor) -> Tensor:
    """A bijection of the 32-bit numbers, in int64; the factors lie below 2^31, so no product overflows."""
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _BITS
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _BITS
    return value ^ (value >> 15)
