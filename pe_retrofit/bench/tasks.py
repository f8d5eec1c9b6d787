"""What is measured: prefill and decode, a training step, and attention alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..attention.interface import attention_forward
from ..encodings.alibi import Alibi, AlibiConfig
from ..encodings.t5 import T5, T5Config
from ..patchers.family import find_host
from ..positions import KEYWORD, resolve
from ..sites import BiasEncoding, HostShape, Installed
from .measure import Measured, measure
from .variants import DENSE, EAGER, dense_alibi, variant


def tokens(model: nn.Module, length: int) -> Tensor:
    """Random ids ``[1, length]``, the same for every variant."""
    base = find_host(model).base
    embeddings = base.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, embeddings.shape[0], (1, length), generator=generator).to(embeddings.device)


def prefill_and_decode(model: nn.Module, name: str, length: int, steps: int) -> tuple[Measured, float | None]:
    """One forward over ``length`` tokens with a cache, then the median seconds of ``steps`` single-token steps."""
    ids = tokens(model, length)
    base = find_host(model).base
    with torch.no_grad(), variant(model, name, length) as kwargs:
        measured = measure(lambda: base(ids, use_cache=True, **kwargs), ids.device)
        cache, measured.value = measured.value.past_key_values, None
        if not steps or kwargs:  # the peers' dense tensors have no decoding of their own
            return measured, None
        seconds = []
        for step in range(steps):
            start = time.perf_counter()
            base(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            if ids.device.type == "cuda":
                torch.cuda.synchronize(ids.device)
            seconds.append(time.perf_counter() - start)
    return measured, sorted(seconds)[len(seconds) // 2]


def attention_projections(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the attentions: q, k, v and o, or what a family calls them."""
    inside = {name.rpartition(".")[2] for a in find_host(model).attentions for name, _ in _linears(a)}
    return sorted(inside)


def _linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, nn.Linear)]


def training_step(model: nn.Module, name: str, length: int) -> Measured:
    """Forward and backward of the next-token loss with LoRA (r = 16) on q, k, v and o; the base frozen."""
    from peft import LoraConfig, get_peft_model

    ids = tokens(model, length)
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with variant(model, name, length) as kwargs:
        learned = [p for n, p in model.named_parameters() if ".position_encoding." in f".{n}"]
        targets = attention_projections(model)
        wrapped = get_peft_model(model, LoraConfig(r=16, target_modules=targets))
        for parameter in learned:
            parameter.requires_grad_(True)
        wrapped.train()
        try:

            def step() -> None:
                wrapped(input_ids=ids, labels=ids, use_cache=False, **kwargs).loss.backward()

            measured = measure(step, ids.device)
        finally:
            wrapped.zero_grad(set_to_none=True)
            wrapped.unload()
            model.eval()
            for parameter, before in frozen.items():
                parameter.requires_grad_(before)
    return measured


@dataclass(frozen=True)
class AttentionCall:
    """One way to compute the same attention.

    Attributes:
        prepare: builds what all layers of a model share (a dense bias), outside the time measured.
        run: the call, given that.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


def attention_calls(model: nn.Module, length: int, dtype: torch.dtype) -> dict[str, AttentionCall]:
    """Attention alone, with the model's head shape: causal SDPA, our ALiBi and T5, and transformers' two dense ways."""
    host = find_host(model)
    heads, dim = host.shape().num_heads, host.shape().head_dim
    groups = getattr(host.config, "num_key_value_heads", None) or heads
    device = host.reference_parameter().device
    generator = torch.Generator().manual_seed(0)

    def states(count: int) -> Tensor:
        return torch.randn(1, count, length, dim, generator=generator).to(device, dtype)

    query, key, value = states(heads), states(groups), states(groups)

    def ours(encoding: BiasEncoding) -> AttentionCall:
        module = _Layer(encoding.to(device))

        def run(_: Any) -> Any:
            positions = resolve(query_length=length, batch_size=1, device=device)
            carried: dict[str, Any] = {KEYWORD: positions}
            return attention_forward(module, query, key, value, None, **carried)

        return AttentionCall(run)

    def masked() -> Tensor:
        bias = dense_alibi(model, length).to(dtype)
        future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        return bias.masked_fill_(future, torch.finfo(dtype).min)

    def position_bias(bias: Tensor) -> Tensor:
        layer = _Layer()
        layer.num_key_value_groups = heads // groups
        return sdpa_attention_forward(layer, query, key, value, None, scaling=dim**-0.5, position_bias=bias)[0]

    def eager(bias: Tensor) -> Tensor:
        repeat = heads // groups
        scores = query @ key.repeat_interleave(repeat, 1).transpose(2, 3) * dim**-0.5 + bias
        return scores.softmax(-1, dtype=torch.float32).to(dtype) @ value.repeat_interleave(repeat, 1)

    shape = HostShape(heads, dim, 0, heads * dim, length, True)
    t5 = T5(T5Config(), shape)
    nn.init.normal_(t5.weight)
    return {
        "causal sdpa": AttentionCall(
            lambda _: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        ),
        "alibi": ours(Alibi(AlibiConfig(), shape)),
        "t5": ours(t5),
        DENSE: AttentionCall(position_bias, lambda: dense_alibi(model, length).to(dtype)),
        EAGER: AttentionCall(eager, masked),
    }


class _Layer(nn.Module):
    """Stands for an attention module, with one encoding or none."""

    is_causal = True
    layer_idx = 0
    num_key_value_groups = 1

    def __init__(self, encoding: BiasEncoding | None = None) -> None:
        super().__init__()
        self.position_encoding = Installed()
        if encoding is not None:
            self.position_encoding[encoding.config.name] = encoding
