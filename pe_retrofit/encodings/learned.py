"""A learned table of absolute positions, extended or added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, choice, integer
from ..errors import UnsupportedError
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, InputEncoding


@dataclass(frozen=True)
class LearnedConfig(EncodingConfig):
    """Options of ``learned``."""

    name = "learned"
    max_positions: int = integer(low=1, high=2**20, help="rows of the new table, in tokens")
    init: str = choice(
        "tile",
        ("tile", "interpolate", "copy_last"),
        help="encoders: repeat the old rows, stretch them, or repeat the last; decoders start at zero",
    )


@register_encoding
class Learned(InputEncoding[LearnedConfig]):
    """A learned table ``p`` of absolute positions, ``x_i + p[i]``; ``p`` is ``weight [max_positions, hidden_size]``.

    Causal and bidirectional; ``max_positions`` has to be given. On an encoder with a position table: the table is
    extended to ``max_positions`` rows and the model stays a plain one (only ``max_position_embeddings`` changes on
    disk). ``tile`` repeats the old rows, ``copy_last`` repeats the last one: both keep inputs up to the old length
    exactly as they were. ``interpolate`` stretches the old rows linearly. On a decoder: a new table, zero at the start,
    hence an exact identity on top of the native encoding.

    Source: Gehring et al., "Convolutional Sequence to Sequence Learning", 2017, arXiv 1705.03122.

    Raises:
        UnsupportedError: when called with a position of ``max_positions`` or more.
    """

    Config = LearnedConfig
    info = EncodingInfo(
        title="learned absolute positions",
        formula="x_i + table[i]",
        paper="Gehring et al. 2017, arXiv 1705.03122",
        relative=False,
        identity="encoders: up to the old length with tile and copy_last; decoders: on top of the native encoding",
    )

    def __init__(self, config: LearnedConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.weight = nn.Parameter(torch.zeros(config.max_positions, host.hidden_size))

    def forward(self, position_ids: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        if not torch.compiler.is_compiling() and int(position_ids.max()) >= rows:
            raise UnsupportedError(
                f"Position {int(position_ids.max())} has no row in the learned table of max_positions={rows}. Shorten "
                "the input, or patch again with a larger max_positions."
            )
        return self.weight[position_ids]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native or config.init in ("tile", "copy_last")


def extend_table(table: Tensor, rows: int, init: str, *, reserved: int = 0) -> Tensor:
    """A position table with ``reserved + rows`` rows.

    Args:
        table: ``[reserved + n, hidden_size]``.
        rows: positions the new table must hold.
        init: ``tile``, ``interpolate`` or ``copy_last``.
        reserved: leading rows that stay as they are (RoBERTa keeps ``padding_idx + 1``).

    Raises:
        UnsupportedError: ``rows`` is not larger than ``n``.
    """
    head, body = table[:reserved], table[reserved:]
    if rows <= len(body):
        raise UnsupportedError(
            f"max_positions={rows} does not extend this model: its table already holds {len(body)} positions. "
            f"Choose a number above {len(body)}."
        )
    if init == "tile":
        new = body[torch.arange(rows, device=body.device) % len(body)]
    elif init == "copy_last":
        new = body[torch.arange(rows, device=body.device).clamp_max(len(body) - 1)]
    else:
        new = (
            nn.functional.interpolate(body.float().t()[None], size=rows, mode="linear", align_corners=True)[0]
            .t()
            .to(body.dtype)
        )
    return torch.cat((head, new))
