"""A Llama and a BERT written out with loops over layers only, for patches partly in force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def alibi_bias(heads: int, length: int) -> Tensor:
    """``[h, q, k]``: minus the slope times the distance, for a power of two of heads."""
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], dtype=torch.float64)
    at = torch.arange(length, dtype=torch.float64)
    return -slopes[:, None, None] * (at[:, None] - at).abs()


def t5_bias(table: Tensor, length: int) -> Tensor:
    """``[h, q, k]`` from T5's causal buckets (32, up to 128) of a table with one row or column per head."""
    table = table.detach().double()
    table = table if table.shape[0] == 32 else table.t()
    bias = torch.zeros(table.shape[1], length, length, dtype=torch.float64)
    for i in range(length):
        for j in range(i + 1):
            n = i - j
            bucket = n if n < 16 else min(31, 16 + int(math.log(n / 16) / math.log(128 / 16) * 16))
            bias[:, i, j] = table[bucket]
    return bias


def attend(query: Tensor, key: Tensor, value: Tensor, added: Tensor | float, heat: Tensor | float) -> Tensor:
    """``[b, q, h d]`` for states ``[b, h, n, d]``."""
    scores = heat * (query @ key.transpose(2, 3)) / math.sqrt(query.shape[-1]) + added
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def llama(
    model: Any,
    ids: Tensor,
    *,
    inv_freq: Tensor,
    factor: float,
    bias: Sequence[Tensor] | None,
    heat: Tensor | float,
) -> Tensor:
    """Logits with given frequencies, factor on cos and sin, bias by layer and factor on the logits."""
    config, length = model.config, ids.shape[1]
    angles = torch.arange(length, dtype=torch.float64)[:, None] * inv_freq
    turn = torch.polar(torch.full_like(angles, factor), angles)

    def split(states: Tensor, heads: int) -> Tensor:
        return states.view(*ids.shape, heads, -1).transpose(1, 2)

    def rotate(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    future = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids)
        for number, layer in enumerate(model.model.layers):
            own, normed = layer.self_attn, layer.input_layernorm(hidden)
            heads, groups = config.num_attention_heads, config.num_key_value_heads
            key = rotate(split(own.k_proj(normed), groups)).repeat_interleave(heads // groups, 1)
            value = split(own.v_proj(normed), groups).repeat_interleave(heads // groups, 1)
            added = future if bias is None else future + bias[number]
            hidden = hidden + own.o_proj(attend(rotate(split(own.q_proj(normed), heads)), key, value, added, heat))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.lm_head(model.model.norm(hidden))


def bert(model: Any, ids: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Logits with given position vectors ``[n, hidden_size]`` and bias."""
    own, heads = model.bert.embeddings, model.config.num_attention_heads

    def split(states: Tensor) -> Tensor:
        return states.view(*ids.shape, heads, -1).transpose(1, 2)

    with torch.no_grad():
        hidden = own.LayerNorm(own.word_embeddings(ids) + own.token_type_embeddings.weight[0] + rows)
        for layer in model.bert.encoder.layer:
            part, out = layer.attention.self, layer.attention.output
            query, key, value = (split(project(hidden)) for project in (part.query, part.key, part.value))
            mixed = attend(query, key, value, 0.0 if bias is None else bias, 1.0)
            hidden = out.LayerNorm(out.dense(mixed) + hidden)
            inner = functional.gelu(layer.intermediate.dense(hidden))
            hidden = layer.output.LayerNorm(layer.output.dense(inner) + hidden)
        return model.cls(hidden)
