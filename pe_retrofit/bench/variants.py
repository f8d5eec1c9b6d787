"""What is compared: the stock model, patches of it, and the two ways a user would otherwise add a bias."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations import sdpa_attention

from ..encodings.alibi import alibi_slopes
from ..errors import UnsupportedError
from ..patchers.family import find_host
from ..patching import patch_model, unpatch_model
from ..registry import NATIVE

STOCK = "stock"
DENSE = "dense position_bias (sdpa)"
EAGER = "eager bias (Bloom way)"
PEERS = (DENSE, EAGER)

OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "ntk": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0},
    "longrope": {"factor": 2.0},
    "llama3": {"factor": 2.0},
    "learned": {"max_positions": 32768},
}
"""Options of encodings that need some."""


def options(name: str, length: int) -> dict[str, Any]:
    """Options of an encoding at a length; windows are a quarter of it, so that every piece of a rotation has work."""
    window = max(1, length // 4)
    by_length: dict[str, dict[str, Any]] = {
        "self_extend": {"window": window},
        "rerope": {"window": window},
        "lm_infinite": {"window": window},
        "dual_chunk": {"chunk": window, "context": 2 * window},
        "string": {"shift": 2 + window, "local": min(128, 1 + window)},
        "window": {"size": window},
    }
    return by_length.get(name, OPTIONS.get(name, {}))


@contextmanager
def variant(model: nn.Module, name: str, length: int) -> Iterator[dict[str, Any]]:
    """The model as a variant, and the keyword arguments a forward of ``length`` tokens needs.

    Learned tables get random values, so that no shortcut for zero tables is measured.
    """
    base = find_host(model).base
    if name == STOCK:
        yield {}
    elif name == DENSE:
        if "create_position_bias_mask" not in vars(sdpa_attention):
            raise UnsupportedError(
                f"transformers {transformers.__version__} ignores position_bias in sdpa, so there is no dense peer to "
                "measure. Upgrade to transformers 5.14 or newer, or leave the peers out with --peer-length none."
            )
        yield {"position_bias": dense_alibi(model, length)}
    elif name == EAGER:
        before = base.config._attn_implementation
        base.set_attn_implementation("eager")
        try:
            bias = dense_alibi(model, length)
            future = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
            yield {"attention_mask": bias.masked_fill_(future, torch.finfo(bias.dtype).min)}
        finally:
            base.set_attn_implementation(before)
    else:
        parts = name.split("+")
        spec = [part if part in NATIVE else {"name": part, **options(part, length)} for part in parts]
        patch_model(model, spec, verify=False)
        try:
            randomise(base)
            yield {}
        finally:
            unpatch_model(model)


def randomise(base: nn.Module) -> None:
    """Give learned positional parameters values as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in base.named_parameters():
        if ".position_encoding." in f".{name}" and not name.endswith("learned_slopes"):
            values = torch.randn(parameter.shape, generator=generator) * 0.5
            with torch.no_grad():
                parameter.copy_(values)


def dense_alibi(model: nn.Module, length: int) -> Tensor:
    """ALiBi as the full tensor ``[1, h, length, length]`` that the peers need."""
    host = find_host(model)
    like = host.reference_parameter()
    slopes = torch.tensor(alibi_slopes(host.config.num_attention_heads), dtype=like.dtype, device=like.device)
    index = torch.arange(length, device=like.device)
    distance = (index[None, :] - index[:, None]).to(like.dtype)
    return (slopes[:, None, None] * distance)[None]
