"""What a config from anywhere may say, checked before anything is built from it.

A config is data: it can name no code (an attention kernel of the Hub, a method of its class), and no size that would
allocate without limit or make no sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..config import shorten
from ..errors import ConfigError

SIZES = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "embedding_size": 1 << 20,
    "dim": 1 << 20,
    "hidden_dim": 1 << 22,
    "num_hidden_layers": 1 << 12,
    "n_layers": 1 << 12,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "n_heads": 1 << 14,
    "head_dim": 1 << 14,
    "num_local_experts": 1 << 12,
    "num_experts": 1 << 12,
    "num_experts_per_tok": 1 << 12,
    "max_position_embeddings": 1 << 28,
    "type_vocab_size": 1 << 16,
    "num_labels": 1 << 20,
}
"""Fields that decide how much is allocated, and their largest value; the smallest is 1."""

OPTIONAL = ("num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "embedding_size")
"""Sizes that may be null."""

CODE = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "fusion_config",
    "kernel_config",
    "transformers_weights",
    "custom_generate",
)
"""Fields through which a config could choose code, or files outside of what is checked."""

DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")
MOST_LABELS = 1 << 20
MOST_VALUES = 1 << 22
DEEPEST = 24


def check_bounds(values: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Refuse a host's config whose values could do harm.

    Args:
        values: of ``config.json``.
        config_class: of the host.

    Raises:
        ConfigError: all that is wrong, one line each.
    """
    problems = [*_sizes(values), *_code(values), *_shadows(values, config_class), *_numbers(values)]
    if problems:
        shown = "".join(f"\n  - {p}" for p in problems[:20])
        more = f"\n  - and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ConfigError(f"config.json is not valid:{shown}{more}")


def _sizes(values: Mapping[str, Any]) -> Iterator[str]:
    for name, most in SIZES.items():
        if name not in values or (values[name] is None and name in OPTIONAL):
            continue
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 < value <= most:
            yield f"{name}={shorten(value)} must be a whole number from 1 to {most}"
    for name in ("id2label", "label2id"):
        labels = values.get(name)
        if labels is not None and (not isinstance(labels, Mapping) or len(labels) > MOST_LABELS):
            yield f"{name} must be a mapping of at most {MOST_LABELS} labels"


def _code(values: Mapping[str, Any]) -> Iterator[str]:
    for name in CODE:
        if values.get(name) is not None:
            yield f"{name}={shorten(values[name])} must not be set: a config chooses no code and no files"
    for name in ("dtype", "torch_dtype"):
        dtype = values.get(name)
        if dtype is not None and (not isinstance(dtype, str) or dtype.removeprefix("torch.") not in DTYPES):
            yield f"{name}={shorten(dtype)} must be one of {', '.join(DTYPES)}"


def _shadows(values: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> Iterator[str]:
    """Unknown keys become attributes of the config: none may take the place of a method."""
    for name in values:
        if not isinstance(name, str) or name.startswith("__") or callable(getattr(config_class, name, None)):
            yield f"{shorten(name)} must not be set: it is part of how the config works"


def _numbers(values: Mapping[str, Any]) -> Iterator[str]:
    """Numbers anywhere must be finite, and the whole of bounded size."""
    stack: list[tuple[str, Any, int]] = [("", dict(values), 0)]
    seen = 0
    while stack:
        path, value, depth = stack.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            yield f"it holds more than {MOST_VALUES} values, or values nested more than {DEEPEST} deep"
            return
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{path}={value} must be a finite number"
        elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
            yield f"{path}={shorten(value)} must fit into 64 bits"
        elif isinstance(value, Mapping):
            stack += [(f"{path}.{key}" if path else str(key), inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            stack += [(f"{path}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]
