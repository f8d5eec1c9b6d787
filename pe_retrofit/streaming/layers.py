"""Cache layers that forget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..errors import UnsupportedError


class ForgetfulLayer(DynamicLayer):
    """Gives attention what it holds and the new states, then keeps the first ``sinks`` and the last ``memory`` tokens.

    Args:
        memory: tokens kept before the next pass, besides the first ones; ``>= 0``.
        sinks: tokens kept from the start on.
        window: of a layer that attends to a sliding window; None where it attends to all.
    """

    is_croppable = False

    def __init__(self, memory: int, sinks: int = 0, window: int | None = None) -> None:
        super().__init__()
        self.memory = memory if window is None else min(memory, window - 1)
        self.sinks = sinks
        self.is_sliding = window is not None
        self.cumulative_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values ``[b, g, held + q, d]``; gradients reach the new ones only."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0].detach(), value_states[:, :, :0].detach()
        assert self.keys is not None
        assert self.values is not None
        keys = torch.cat((self.keys, key_states), dim=2)
        values = torch.cat((self.values, value_states), dim=2)
        self.cumulative_length += key_states.shape[2]
        self.keys, self.values = self._keep(keys), self._keep(values)
        return keys, values

    def _keep(self, states: Tensor) -> Tensor:
        states = states.detach()
        length = states.shape[2]
        if length <= self.sinks + self.memory:
            return states
        last = states[:, :, length - self.memory :]
        if self.sinks:
            return torch.cat((states[:, :, : self.sinks], last), dim=2)
        return last.clone() if 2 * self.memory < length else last  # a view would keep a long prompt alive

    def held(self) -> tuple[int, int]:
        """``(first, offset)``: the tokens ``0 .. first - 1`` and ``offset ..`` of those seen."""
        first = min(self.sinks, self.cumulative_length)
        return first, max(first, self.cumulative_length - self.memory)

    def get_seq_length(self) -> int:
        """Tokens seen, which the next position is."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of the next pass, and the index of the first of them, if they were the last tokens."""
        first, offset = self.held()
        held = first + self.cumulative_length - offset
        return held + query_length, self.cumulative_length - held

    def get_max_length(self) -> int:
        """Tokens kept."""
        return self.sinks + self.memory

    get_max_cache_shape = get_max_length  # its older name in transformers

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.cumulative_length = 0

    def reorder_cache(self, beam_idx: Any) -> None:
        if self.is_initialized:
            super().reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back, while nothing has been forgotten.

        Raises:
            UnsupportedError: tokens were forgotten, which cannot be brought back.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.cumulative_length - tokens_to_remove)
        if not remove:
            return
        forgotten = self.cumulative_length - self.sinks - self.memory
        if forgotten > 0:
            raise UnsupportedError(
                f"The last {remove} tokens cannot be taken back (as assisted generation does): the cache keeps "
                f"{self.sinks + self.memory} tokens and has forgotten {forgotten}, some of which would be in reach "
                "again. Generate without an assistant, or with a larger memory."
            )
        assert self.keys is not None
        assert self.values is not None
        self.cumulative_length -= remove
        self.keys, self.values = (t[:, :, : self.cumulative_length] for t in (self.keys, self.values))
