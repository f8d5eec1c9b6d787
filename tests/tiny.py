"""Small models and attention calls for the tests of single parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from pe_retrofit import AlibiConfig, BiasEncoding, HostShape, T5Config, patch_model
from pe_retrofit.attention.call import Call
from pe_retrofit.encodings.alibi import Alibi
from pe_retrofit.encodings.t5 import T5
from pe_retrofit.positions import Positions

VOCAB = 61
LENGTH = 32
"""Trained length of the tiny models."""


def llama(**more: Any) -> Any:
    """A Llama with grouped key heads and weights large enough for attention to matter."""
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**options)).eval()


def mistral(window: int = 8, **more: Any) -> Any:
    """A Mistral whose layers all see a window."""
    torch.manual_seed(0)
    config = hf.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        sliding_window=window,
        pad_token_id=0,
        **more,
    )
    return hf.MistralForCausalLM(config).eval()


def neox(**more: Any) -> Any:
    """A GPT-NeoX that rotates half of each head."""
    torch.manual_seed(0)
    config = hf.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        rotary_pct=0.5,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        **more,
    )
    return hf.GPTNeoXForCausalLM(config).eval()


def bert(head: str = "BertForMaskedLM", **more: Any) -> Any:
    """A BERT with a position table that matters."""
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        **more,
    }
    torch.manual_seed(0)
    return getattr(hf, head)(hf.BertConfig(**options)).eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """int64 ``[rows, length]`` random tokens, none of them special."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def shape(heads: int = 4, dim: int = 8, *, causal: bool = True) -> HostShape:
    """The host of an encoding built on its own."""
    return HostShape(heads, dim, dim, heads * dim, LENGTH, causal)


def alibi(heads: int = 4, *, causal: bool = True, dtype: torch.dtype = torch.float32, **options: Any) -> Alibi:
    """ALiBi on its own; learnable slopes moved off the paper's."""
    made = Alibi(AlibiConfig(**options), shape(heads, causal=causal)).to(dtype)
    if made.config.learnable:
        with torch.no_grad():
            made.learned_slopes.mul_(torch.linspace(0.5, 1.5, heads, dtype=dtype))
    return made


def t5(heads: int = 4, *, causal: bool = True, dtype: torch.dtype = torch.float32, train: bool = False) -> T5:
    """T5's bias on its own with a random table."""
    made = T5(T5Config(num_buckets=16, max_distance=40), shape(heads, causal=causal)).to(dtype)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(3))
    return made.requires_grad_(train)


def make_call(
    *,
    biases: Sequence[BiasEncoding] = (),
    batch: int = 1,
    heads: int = 4,
    groups: int = 1,
    queries: int = 19,
    past: int = 0,
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
    causal: bool = True,
    mask: Tensor | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    seed: int = 0,
    grad: bool = False,
    **more: Any,
) -> Call:
    """A call with random states; ``queries`` rows follow ``past`` keys. Given positions count as not contiguous.

    The random numbers are float32 first, so calls of different dtypes hold the same values up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)

    def states(count: int, length: int) -> Tensor:
        made = torch.randn(batch, count, length, dim, generator=generator).to(dtype)
        return made.requires_grad_(grad)

    keys = queries + past
    contiguous = query_positions is None and key_positions is None
    rows = torch.arange(queries)[None] + past if query_positions is None else query_positions
    columns = torch.arange(keys)[None] if key_positions is None else key_positions
    return Call(
        **{
            "query": states(heads, queries),
            "key": states(heads // groups, keys),
            "value": states(heads // groups, keys),
            "mask": mask,
            "causal": causal,
            "limit": past if causal and mask is None else None,
            "scaling": dim**-0.5,
            "dropout": 0.0,
            "softcap": None,
            "sinks": None,
            "query_positions": rows,
            "key_positions": columns,
            "shift": past if contiguous else None,
            "biases": list(biases),
            "positions": Positions(rows, columns, past, contiguous),
            **more,
        }
    )


def causal_mask(queries: int, past: int = 0) -> Tensor:
    """bool ``[1, 1, queries, past + queries]``."""
    return torch.ones(queries, queries + past, dtype=torch.bool).tril(past)[None, None]


OURS = {
    "alibi": ("alibi", {}),
    "t5": ("t5", {}),
    "native+t5": (["native", "t5"], {}),
    "dynamic": ("dynamic", {"factor": 2.0}),
    "longrope": ("longrope", {"factor": 2.0}),
    "nope, warm": ("nope", {"temperature": 0.3, "factor": 2.0}),
}
"""Encodings that run through our attention function."""

FREE = {
    "nope": ("nope", {}),
    "yarn": ("yarn", {"factor": 2.0}),
    "linear": ("linear", {"factor": 2.0}),
    "partial_rope": ("partial_rope", {"p": 0.5}),
}
"""Encodings that run on any."""


def patched(spec: Any, build: Callable[[], Any] = llama, *, layers: Any = None, **options: Any) -> Any:
    """A patched tiny model with filled tables."""
    model = build()
    patch_model(model, copy.deepcopy(spec), layers=layers, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".position_encoding." in f".{name}":
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model
