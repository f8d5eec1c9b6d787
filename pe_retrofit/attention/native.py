"""A patched model's attention as it was before the patch, from the same query, key, value and mask."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations whose mask follows from that of ours, so that they can be taken up again at any call."""


def native_attention(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the model's own attention returns.

    Args:
        implementation: one of :data:`IMPLEMENTATIONS`.
        mask: bool or float ``[b or 1, 1, q, k]``, or None, as made for ``sdpa``.
        **options: of the call, as the model gave them.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if implementation == "sdpa":
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    causal = bool(options.get("is_causal", getattr(module, "is_causal", True)))
    return eager_function(module)(module, query, key, value, _added(mask, query, key, causal), **options)


def eager_function(module: nn.Module) -> Callable[..., Any]:
    """The ``eager`` attention function of the model that a module belongs to."""
    places = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    return next(found for place in places if (found := getattr(place, "eager_attention_forward", None)))


def _added(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The mask as ``eager`` gets it: added to the scores, and never left out where it is causal."""
    q, k = query.shape[2], key.shape[2]
    if mask is None:
        if not causal:
            return None
        first = k - q if q == 1 else 0  # one query sees every key; else what follows it is empty slots
        mask = torch.ones(q, k, dtype=torch.bool, device=query.device).tril(first)[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), device=mask.device, dtype=query.dtype), torch.finfo(query.dtype).min)
