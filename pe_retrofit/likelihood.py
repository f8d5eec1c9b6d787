"""Likelihoods of long texts without ever holding their logits: hidden states first, then logits in chunks.

16384 tokens of a vocabulary of 49152 would be 3.2 GB of float32 logits; a chunk of 512 is 100 MB. The logits come from
the model's own head, whatever it does (soft-capping, scaling, the transform of a masked language model): the base model
stands aside for the moment and hands it the hidden states that were computed before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .patchers.family import find_host

CHUNK = 512


@torch.no_grad()
def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Last hidden state ``[b, n, hidden_size]`` of ``ids`` ``[b, n]``, in one forward without a cache."""
    host = find_host(model)
    cache = {"use_cache": False} if host.family.rotary else {}
    states: Tensor = host.base(input_ids=ids, **cache).last_hidden_state
    return states


@torch.no_grad()
def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits ``[n, vocabulary]`` of hidden states ``[n, hidden_size]``, in float32, by the model's own head."""
    with _standing_aside(model, hidden[None]):
        # the ids are looked at by nobody but for their shape
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return model(input_ids=ids).logits[0].float()


@torch.no_grad()
def token_nll(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats: float32 ``[n]`` from ``[n, hidden_size]`` and ``[n]``."""
    parts = [
        nn.functional.cross_entropy(logits_of(model, hidden[i : i + CHUNK]), targets[i : i + CHUNK], reduction="none")
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


def predicts(model: Any) -> bool:
    """Whether a model predicts next tokens."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None and find_host(model).causal()


def perplexity(model: Any, windows: Tensor) -> float | None:
    """Over token ids ``[w, n]``, each window on its own; None for models that predict no next tokens."""
    if not predicts(model):
        return None
    return math.exp(min(window_nll(model, windows.to(find_host(model).base.device)), 700.0))


class _Given(BaseModelOutputWithPast):
    """An output of a base model that holds hidden states, and None for whatever else its kind has."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, this instance's forward is another one."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # another instance-level forward, e.g. accelerate's
            module.forward = before


def _standing_aside(model: nn.Module, hidden: Tensor) -> AbstractContextManager[None]:
    """Within, this instance's base model returns ``hidden`` ``[b, n, hidden_size]`` for any input."""
    return replaced_forward(find_host(model).base, lambda *_, **__: _Given(last_hidden_state=hidden))
