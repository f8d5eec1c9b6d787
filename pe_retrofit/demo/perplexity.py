"""Perplexity without ever holding the logits of a long text: hidden states first, then logits in chunks.

16384 tokens of a vocabulary of 49152 would be 3.2 GB of float32 logits; a chunk of 512 is 100 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..patchers.family import find_host

CHUNK = 512


@torch.no_grad()
def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Last hidden state ``[b, n, hidden_size]`` of ``ids`` ``[b, n]``, in one forward without a cache."""
    states: Tensor = find_host(model).base(input_ids=ids, use_cache=False).last_hidden_state
    return states


@torch.no_grad()
def token_nll(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats: float32 ``[n]`` from ``[n, hidden_size]`` and ``[n]``."""
    head = model.get_output_embeddings()
    parts = [
        nn.functional.cross_entropy(head(hidden[i : i + CHUNK]).float(), targets[i : i + CHUNK], reduction="none")
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts)


def tail_nll(model: nn.Module, ids: Tensor, lengths: Sequence[int], tail: int) -> dict[int, float]:
    """Mean nll of the ``tail`` predictions that end at each length, from one forward over ``ids`` ``[n]``.

    Each of these predictions sees all tokens before it, so at length N between ``N - tail`` and ``N - 1``.
    """
    hidden = hidden_states(model, ids[None])[0]
    return {n: token_nll(model, hidden[n - tail - 1 : n - 1], ids[n - tail : n]).mean().item() for n in lengths}


def window_nll(model: nn.Module, windows: Tensor) -> float:
    """Mean nll over all predictions within windows ``[w, n]``, each run on its own."""
    total = 0.0
    for window in windows:
        hidden = hidden_states(model, window[None])[0]
        total += token_nll(model, hidden[:-1], window[1:]).mean().item()
    return total / len(windows)
