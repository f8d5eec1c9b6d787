"""Biases and position tables against transformers' Bloom, MPT, Falcon, T5 and BERT, and against brute force."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import brute
import pytest
import tiny
import torch
import transformers as hf
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from pe_retrofit import patch_model
from pe_retrofit.attention.select import KERNELS
from pe_retrofit.encodings.alibi import alibi_slopes
from pe_retrofit.encodings.sinusoidal import sinusoids
from pe_retrofit.encodings.t5 import t5_bucket

HEADS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16, 20, 25, 32, 33, 40, 48, 64, 71, 96, 112, 128]
FUSED = ["separable", "toeplitz", "blockwise", "flex", "eager"]


@pytest.mark.parametrize("heads", HEADS)
def test_alibi_slopes(heads: int) -> None:
    """Key ``j`` of Bloom's and Falcon's tensor holds ``slope * j``; MPT's ``slope * (j - last)``."""
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float64)
    assert slopes.shape == (heads,)
    torch.testing.assert_close(slopes, torch.tensor(brute.alibi_slopes(heads), dtype=torch.float64))
    mask = torch.ones(1, 3)
    torch.testing.assert_close(slopes.float(), bloom_alibi(mask, heads, torch.float32)[:, 0, 1], rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes.float(), -build_mpt_alibi_tensor(heads, 3)[:, 0, 1], rtol=1e-5, atol=0)
    falcon = falcon_alibi(mask.long(), heads, torch.float32)[:, 0, 1]  # slopes in bfloat16, raised from a rounded base
    torch.testing.assert_close(slopes.float(), falcon, rtol=2e-2, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (16, 40), (64, 256), (8, 20), (32, 1024), (4, 4096)])
def test_t5_bucket(bidirectional: bool, buckets: int, far: int) -> None:
    distance = torch.arange(-5000, 5001)
    found = t5_bucket(distance, bidirectional, buckets, far)
    expected = T5Attention._relative_position_bucket(-distance, bidirectional, buckets, far)
    assert torch.equal(found, expected)
    assert found.min() == 0
    assert found.max() == buckets - 1
    for d in range(-300, 301):
        bucket, border = brute.t5_bucket(d, bidirectional, buckets, far)
        slack = 1 if border else 0  # exactly on a border the float logarithm falls to one side or the other
        assert bucket - slack <= int(found[d + 5000]) <= bucket


def compare(call: Any, expected: Tensor, kernels: list[str], tolerance: float = 2e-5) -> None:
    """Every kernel's ``[b, h, q, d]`` against transformers' ``[b, q, h * d]``."""
    for kernel in kernels:
        found = KERNELS[kernel](call).transpose(1, 2).flatten(2)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, k=kernel: f"{k}: {m}")


def call_for(query: Tensor, key: Tensor, value: Tensor, bias: Any, **more: Any) -> Any:
    """A causal call with given states."""
    b, h, q, d = query.shape
    made = tiny.make_call(biases=[bias], batch=b, heads=h, queries=q, dim=d, dtype=query.dtype, **more)
    return replace(made, query=query, key=key, value=value)


@pytest.mark.parametrize("heads", [4, 6])
def test_bloom_attention(heads: int) -> None:
    torch.manual_seed(0)
    config = hf.BloomConfig(hidden_size=heads * 8, n_head=heads, n_layer=1, vocab_size=9)
    module = hf.models.bloom.modeling_bloom.BloomAttention(config, 0).eval()
    module.dense = torch.nn.Identity()
    hidden = torch.randn(2, 37, heads * 8) * 3
    mask = torch.zeros(37, 37).masked_fill(~tiny.causal_mask(37)[0, 0], torch.finfo(torch.float32).min)
    alibi = bloom_alibi(torch.ones(2, 37), heads, torch.float32)
    with torch.no_grad():
        expected, _ = module(hidden, torch.zeros_like(hidden), alibi, mask[None, None])
        query, key, value = module._reshape(module.query_key_value(hidden))
        compare(call_for(query, key, value, tiny.alibi(heads)), expected, FUSED)


@pytest.mark.parametrize("heads", [4, 6])
def test_mpt_attention(heads: int) -> None:
    torch.manual_seed(0)
    config = hf.MptConfig(d_model=heads * 8, n_heads=heads, n_layers=1, vocab_size=9, max_seq_len=64)
    module = hf.models.mpt.modeling_mpt.MptAttention(config, 0).eval()
    module.out_proj = torch.nn.Identity()
    hidden = torch.randn(2, 37, heads * 8) * 3
    with torch.no_grad():
        bias = build_mpt_alibi_tensor(heads, 64)
        expected, _ = module(hidden, bias, attention_mask=~tiny.causal_mask(37))
        query, key, value = (t.view(2, 37, heads, 8).transpose(1, 2) for t in module.Wqkv(hidden).chunk(3, 2))
        compare(call_for(query, key, value, tiny.alibi(heads)), expected, FUSED)


@pytest.mark.parametrize("heads", [4, 6])
def test_falcon_attention(heads: int) -> None:
    """Falcon divides slopes by the root of the head size and rounds them to bfloat16: learnable slopes carry that."""
    torch.manual_seed(0)
    config = hf.FalconConfig(
        hidden_size=heads * 8,
        num_attention_heads=heads,
        num_hidden_layers=1,
        vocab_size=9,
        alibi=True,
        multi_query=True,
        new_decoder_architecture=False,
    )
    config._attn_implementation = "eager"
    module = hf.models.falcon.modeling_falcon.FalconAttention(config, 0).eval()
    module.dense = torch.nn.Identity()
    hidden = torch.randn(2, 37, heads * 8) * 3
    mask = torch.zeros(37, 37).masked_fill(~tiny.causal_mask(37)[0, 0], torch.finfo(torch.float32).min)
    tensor = falcon_alibi(torch.ones(2, 37, dtype=torch.long), heads, torch.float32)
    bias = tiny.alibi(heads, learnable=True)
    with torch.no_grad():
        expected, _ = module(hidden, tensor, mask[None, None])
        bias.learned_slopes.copy_(tensor.view(2, heads, -1)[0, :, 1] / 8**0.5)
        query, key, value = (t.transpose(1, 2) for t in module._split_heads(module.query_key_value(hidden)))
        assert key.shape[1] == 1
        tolerance = 2e-5 if heads == 4 else 3e-2  # bfloat16 holds slopes that are powers of two exactly
        compare(call_for(query, key, value, bias, groups=heads), expected, FUSED, tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_attention(causal: bool) -> None:
    torch.manual_seed(0)
    config = hf.T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal, dropout_rate=0.0, vocab_size=9)
    config._attn_implementation = "eager"
    direction = {"is_causal": causal} if "is_causal" in inspect.signature(T5Attention.__init__).parameters else {}
    module = T5Attention(config, has_relative_attention_bias=True, layer_idx=0, **direction).eval()
    module.o = torch.nn.Identity()
    hidden = torch.randn(2, 200, 32)
    with torch.no_grad():
        module.relative_attention_bias.weight.normal_()
        mask = torch.zeros(200, 200)
        if causal:
            mask = mask.masked_fill(~tiny.causal_mask(200)[0, 0], torch.finfo(torch.float32).min)
        expected = module(hidden, mask=mask[None, None])[0]
        bias = tiny.t5(causal=causal)
        bias.config = type(bias.config)(num_buckets=32, max_distance=128)
        bias.weight = module.relative_attention_bias.weight
        query, key, value = (f(hidden).view(2, 200, 4, 8).transpose(1, 2) for f in (module.q, module.k, module.v))
        call = call_for(query, key, value, bias, causal=causal, scaling=1.0)
        compare(call, expected, [k for k in FUSED if k != "separable"])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("past", [0, 5])
def test_against_brute_force(causal: bool, past: int) -> None:
    """All biases from the formula, head by head, in float64."""
    call = tiny.make_call(batch=2, heads=6, groups=3, queries=13, past=past, causal=causal)

    def allowed(n: int, i: int, j: int) -> bool:
        return not causal or j <= i + past

    slopes = brute.alibi_slopes(6)
    linear = tiny.alibi(6, causal=causal)
    expected = brute.attention(
        call.query, call.key, call.value, call.scaling, lambda h, i, j: -slopes[h] * abs(i + past - j), allowed
    )
    names = FUSED if causal else FUSED[1:]
    for kernel in names:
        torch.testing.assert_close(KERNELS[kernel](replace(call, biases=[linear])), expected, rtol=1e-6, atol=1e-6)

    table = tiny.t5(6, causal=causal, dtype=torch.float64)

    def bucketed(h: int, i: int, j: int) -> float:
        return float(table.weight[brute.t5_bucket(i + past - j, not causal, 16, 40)[0], h])

    expected = brute.attention(call.query, call.key, call.value, call.scaling, bucketed, allowed)
    for kernel in FUSED[1:]:
        if kernel != "flex":  # FlexAttention adds the bias in float32
            found = KERNELS[kernel](replace(call, biases=[table]))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_split_sides_against_brute_force() -> None:
    """Encoders with one direction per head: even heads look left, odd ones right."""
    call = tiny.make_call(queries=11, causal=False, biases=[tiny.alibi(causal=False, sides="split")])
    slopes = brute.alibi_slopes(4)

    def bias(h: int, i: int, j: int) -> float:
        hidden = i < j if h % 2 == 0 else i > j
        return float("-inf") if hidden else -slopes[h] * abs(i - j)

    expected = brute.attention(call.query, call.key, call.value, call.scaling, bias, lambda *_: True)
    for kernel in FUSED[1:]:
        torch.testing.assert_close(KERNELS[kernel](call), expected, rtol=1e-6, atol=1e-6)


def test_sinusoids() -> None:
    positions = [0, 1, 2, 17, 511, 5000]
    for dim, base in ((32, 10000.0), (33, 10000.0), (8, 500.0)):
        found = sinusoids(torch.tensor(positions), dim, base)
        torch.testing.assert_close(found.double(), brute.sinusoids(positions, dim, base), rtol=0, atol=1e-3)
        torch.testing.assert_close(found[:4].double(), brute.sinusoids(positions[:4], dim, base), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["tile", "copy_last", "interpolate"])
@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification"])
def test_bert_with_a_longer_table(init: str, head: str) -> None:
    """``learned`` makes exactly the plain BERT whose table has the longer rows."""
    model, rows = tiny.bert(head), 3 * tiny.LENGTH - 5
    old = model.bert.embeddings.position_embeddings.weight.detach().clone()
    table = torch.zeros(rows, old.shape[1])
    for i in range(rows):
        if init == "interpolate":
            where = i * (len(old) - 1) / (rows - 1)
            low = min(int(where), len(old) - 2)
            table[i] = old[low] * (1 - (where - low)) + old[low + 1] * (where - low)
        else:
            table[i] = old[i % len(old)] if init == "tile" else old[min(i, len(old) - 1)]
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = rows
    plain = type(model)(config).eval()
    state = {**model.state_dict(), "bert.embeddings.position_embeddings.weight": table}
    plain.load_state_dict(state, strict=False)
    patch_model(model, "learned", max_positions=rows, init=init)
    tokens = tiny.ids(2, rows)
    mask = torch.ones_like(tokens)
    mask[1, rows // 2 :] = 0
    found, expected = (m(tokens, attention_mask=mask).logits for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bert_with_sinusoids() -> None:
    """``sinusoidal`` makes the plain BERT whose table holds ``alpha * sin/cos + offset``, fitted to the old one."""
    model = tiny.bert()
    old = model.bert.embeddings.position_embeddings.weight.detach().double()
    waves = brute.sinusoids(range(tiny.LENGTH), 32, 10000.0)
    columns = torch.cat([waves.flatten()[:, None], torch.eye(32, dtype=torch.float64).repeat(tiny.LENGTH, 1)], 1)
    fitted = torch.linalg.lstsq(columns, old.flatten()[:, None]).solution[:, 0]  # alpha and the offset at once
    rows = 2 * tiny.LENGTH
    plain = tiny.bert(max_position_embeddings=rows)
    table = fitted[0] * brute.sinusoids(range(rows), 32, 10000.0) + fitted[1:]
    state = {**model.state_dict(), "bert.embeddings.position_embeddings.weight": table.float()}
    plain.load_state_dict(state, strict=False)
    patch_model(model, "sinusoidal")
    encoding = model.bert.embeddings.position_embeddings.position_encoding["sinusoidal"]
    assert encoding.gate.item() == pytest.approx(float(fitted[0]), rel=1e-4)
    tokens = tiny.ids(2, rows)
    torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=1e-3, atol=1e-3)
