"""What the output of a :class:`~pe_retrofit.probes.lab.Lab`'s model says about its positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..patchers.family import find_host
from .lab import TRAINED, VOCABULARY, Lab

BF16_TOKENS = 32


def pair_outputs(lab: Lab, distances: Tensor) -> Tensor:
    """``[n, width]``: output at the second of two tokens that are ``distances`` apart, the second in the same place."""
    ids = lab.tokens(2).expand(len(distances), -1)
    last = distances.max()
    return lab.output(ids, torch.stack((last - distances, last.expand_as(distances)), dim=1))[:, 1]


def prefix_output(lab: Lab, short: int, longer: int) -> Tensor:
    """Output of the first ``short`` tokens within ``longer``: of text (decoders) or of padding (encoders)."""
    ids = lab.tokens(longer)
    mask = torch.ones_like(ids)
    if not lab.causal:
        mask[:, short:] = 0
    ids = torch.cat((lab.tokens(short, seed=7), ids[:, short:]), dim=1)
    return lab.output(ids, attention_mask=mask)[:, :short]


def input_change(lab: Lab, short: int, longer: int) -> float:
    """Change of what enters the first layer for the first half of ``short`` tokens, alone and within a longer text."""
    seen: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[:, : short // 2])

    handle = find_host(lab.model).layers[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        ids = lab.tokens(longer)
        lab.output(ids[:, :short])
        lab.output(ids)
    finally:
        handle.remove()
    return lab.change(*seen)


def permutation_change(lab: Lab, count: int) -> float:
    """Change of the last token's output when the others are permuted."""
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))[None, :count]
    order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(3))
    permuted = torch.cat((ids[:, :-1][:, order], ids[:, -1:]), dim=1)
    return lab.change(lab.output(ids)[:, -1], lab.output(permuted)[:, -1])


def shift_change(lab: Lab, count: int, shift: int) -> float:
    """Change of the output when ``shift`` is added to all positions."""
    ids, positions = lab.tokens(count), torch.arange(count)
    return lab.change(lab.output(ids, positions), lab.output(ids, positions + shift))


@torch.no_grad()
def cache_change(lab: Lab) -> float | None:
    """Change of the output when text is read in chunks and token by token, across L where the encoding allows."""
    if not lab.causal:
        return None
    start = min(TRAINED + 16, lab.reach) - 24
    ids = lab.tokens(start + 24)
    whole = lab.model(input_ids=ids, use_cache=False).last_hidden_state
    cache = DynamicCache(config=lab.model.config)
    parts = [(0, start), (start, start + 8), *((i, i + 1) for i in range(start + 8, start + 24))]
    outputs = [lab.model(input_ids=ids[:, a:b], past_key_values=cache).last_hidden_state for a, b in parts]
    return lab.change(whole, torch.cat(outputs, dim=1))


def farthest(lab: Lab, wanted: int) -> int:
    """First position of a stretch for :func:`bf16_error`, as near to ``wanted`` as the encoding takes."""
    return wanted if lab.takes(wanted, wanted + BF16_TOKENS - 1) else max(0, lab.reach - BF16_TOKENS)


def bf16_error(lab: Lab, first: int, count: int = BF16_TOKENS) -> float:
    """Root mean square error of the bfloat16 model, over the size of the output, from a position on."""
    ids = lab.tokens(count, rows=4)
    positions = torch.arange(first, first + count)
    exact = lab.output(ids, positions)
    try:
        rough = lab.output(ids, positions, model=lab.model.bfloat16()).double()
    finally:
        lab.model.double()
    return lab.size(rough - exact) / lab.size(exact)
