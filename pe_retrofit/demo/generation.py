"""Greedy generation with the cache, and the check that the cache changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(model: Any, prompt: Tensor, new_tokens: int) -> tuple[Tensor, float]:
    """Continue ``prompt`` ``[n]`` greedily with the cache.

    Returns:
        The new tokens (fewer when the model ends by itself) and the seconds it took, the prompt's pass included.
    """
    ids = prompt[None]
    pad = model.generation_config.pad_token_id
    started = time.perf_counter()
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0 if pad is None else pad,
    )
    return result[0, len(prompt) :], time.perf_counter() - started


@torch.no_grad()
def agrees_without_cache(model: Any, prompt: Tensor, continuation: Tensor) -> bool:
    """Whether greedy decoding without a cache gives the same tokens.

    One pass over prompt and continuation shows what each step would choose: attention is causal, so the choice after a
    prefix depends on that prefix only, and by induction the two decodings are equal exactly when every choice is.
    """
    whole = torch.cat((prompt, continuation))
    logits = model(whole[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return bool(torch.equal(logits.argmax(-1), continuation))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Parameters in float32 for a while; bfloat16 and float16 survive the way there and back exactly.

    In half precision two tokens may tie to the last bit, and which one wins then says nothing about the cache. Buffers
    are left alone: rotary frequencies are float32 already, and casting them back would round them.
    """
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(kinds[name])
