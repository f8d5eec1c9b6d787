"""Score encodings and piecewise rotations against brute force, XLNet, DeBERTa-v2, Wav2Vec2-BERT and x-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import brute
import brute_scores
import pytest
import tiny
import torch
import transformers as hf
from torch import Tensor
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta_v2
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from pe_retrofit import get_encoding
from pe_retrofit.attention.call import Call
from pe_retrofit.attention.piecewise import PiecewiseRotation
from pe_retrofit.attention.select import KERNELS, obstacle
from pe_retrofit.encodings.deberta import log_bucket

HEADS, DIM = 6, 8
THETA = 10000.0


def score(name: str, *, causal: bool = True, heads: int = HEADS, dim: int = DIM, **options: Any) -> Any:
    """An encoding on its own in float64, its parameters random."""
    kind = get_encoding(name)
    made = kind(kind.Config(**options), tiny.shape(heads, dim, causal=causal)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def piecewise(name: str, **options: Any) -> PiecewiseRotation:
    """A piecewise rotation of half or all of each head."""
    kind = get_encoding(name)
    return PiecewiseRotation(kind(kind.Config(**options), tiny.shape(HEADS, DIM)), brute.plain(THETA, DIM), 1.0)


def call_for(*scores: Any, queries: int = 13, past: int = 0, causal: bool = True, **more: Any) -> Call:
    return tiny.make_call(
        heads=HEADS, groups=3, batch=2, queries=queries, past=past, causal=causal, scores=scores, first=past, **more
    )


def check(call: Call, expected: Tensor, tolerance: float) -> None:
    """Every kernel that can run the call gives the expected numbers."""
    names = [name for name in KERNELS if obstacle(name, call) is None]
    assert {"eager", "blockwise"} <= set(names)
    with torch.no_grad():
        for name in names:
            found = KERNELS[name](call)
            torch.testing.assert_close(
                found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def content(call: Call, n: int, h: int, i: int, j: int) -> Tensor:
    return call.query[n, h, i].double() @ call.key[n, h // call.groups, j].double()


CASES = [(13, 0, True), (6, 9, True), (1, 11, True), (13, 0, False)]
"""Queries, keys before them, causal."""


def ranges(past: int, causal: bool) -> Callable[[int, int, int], bool]:
    return lambda n, i, j: not causal or j <= i + past


@pytest.mark.parametrize(("queries", "past", "causal"), CASES)
@pytest.mark.parametrize("values", [False, True])
def test_shaw(queries: int, past: int, causal: bool, values: bool) -> None:
    made = score("shaw", causal=causal, max_distance=4, values=values)
    call = call_for(made, queries=queries, past=past, causal=causal)

    def row(i: int, j: int) -> int:
        clipped = max(-4, min(4, i + past - j))
        return clipped if causal else clipped + 4

    def logit(n: int, h: int, i: int, j: int) -> float:
        key = call.key[n, h // 3, j] + made.keys[row(i, j)].detach()
        return float(call.query[n, h, i] @ key) / math.sqrt(DIM)

    def value_at(i: int, j: int) -> Tensor:
        return made.values[row(i, j)].detach()

    expected = brute_scores.attention(call.query, call.value, logit, ranges(past, causal), value_at if values else None)
    check(call, expected, 1e-10)


@pytest.mark.parametrize(("queries", "past", "causal"), CASES)
def test_transformer_xl(queries: int, past: int, causal: bool) -> None:
    made = score("transformer_xl", causal=causal, base=500.0)
    call = call_for(made, queries=queries, past=past, causal=causal)
    u, v, w = made.content_weight.detach(), made.position_weight.detach(), made.projection.detach()

    def logit(n: int, h: int, i: int, j: int) -> float:
        query, key = call.query[n, h, i], call.key[n, h // 3, j]
        relative = w[h] @ brute_scores.transformer_xl_sinusoid(i + past - j, HEADS * DIM, 500.0)
        return float((query + u[h]) @ key + (query + v[h]) @ relative) / math.sqrt(DIM)

    expected = brute_scores.attention(call.query, call.value, logit, ranges(past, causal))
    check(call, expected, 2e-5)  # sines of float32 angles


@pytest.mark.parametrize(("queries", "past", "causal"), [*CASES, (40, 0, True), (40, 0, False)])
def test_deberta(queries: int, past: int, causal: bool) -> None:
    made = score("deberta", causal=causal, position_buckets=8, max_relative_positions=20)
    call = call_for(made, queries=queries, past=past, causal=causal)
    pk, pq = made.position_key.detach(), made.position_query.detach()

    def row(i: int, j: int) -> int:
        bucket, _ = brute_scores.deberta_bucket(i + past - j, 8, 20)
        return max(0, min(7, bucket)) if causal else max(0, min(15, bucket + 8))

    def logit(n: int, h: int, i: int, j: int) -> float:
        query, key, at = call.query[n, h, i], call.key[n, h // 3, j], row(i, j)
        return float(query @ key + query @ pk[h, at] + key @ pq[h, at]) / math.sqrt(DIM)

    expected = brute_scores.attention(call.query, call.value, logit, ranges(past, causal))
    check(call, expected, 1e-10)


@pytest.mark.parametrize(("queries", "past"), [(13, 0), (6, 9), (1, 11)])
@pytest.mark.parametrize("most", [2, 4, 64])
def test_cope(queries: int, past: int, most: int) -> None:
    made = score("cope", max_positions=most)
    call = call_for(made, queries=queries, past=past)
    table = made.weight.detach()

    def logit(n: int, h: int, i: int, j: int) -> float:
        plain = [float(content(call, n, h, i, t)) / math.sqrt(DIM) for t in range(i + past + 1)]
        gates = [1 / (1 + math.exp(-x)) for x in plain]
        where = brute_scores.cope_positions(gates, most)[j]
        return plain[j] + brute_scores.cope_term(call.query[n, h, i], table, where)

    expected = brute_scores.attention(call.query, call.value, logit, ranges(past, True))
    check(call, expected, 1e-10)


def test_several_scores_and_biases_add_up() -> None:
    """Each once, whatever the number of the others."""
    encodings = [
        score("shaw", max_distance=4),
        score("transformer_xl"),
        score("deberta", position_buckets=8, max_relative_positions=20),
    ]
    plain = call_for(queries=21)
    parts = [encoding.scores(replace(plain, scores=[encoding]).block()) for encoding in encodings]
    bias = tiny.t5(HEADS, dtype=torch.float64)
    total = sum(parts).detach() + bias.bias_at(plain.query_positions, plain.key_positions, causal=True)

    def logit(n: int, h: int, i: int, j: int) -> float:
        return float(content(plain, n, h, i, j) / math.sqrt(DIM) + total[n, h, i, j])

    expected = brute_scores.attention(plain.query, plain.value, logit, ranges(0, True))
    check(replace(plain, scores=encodings, biases=[bias]), expected, 1e-10)


PIECEWISE: dict[str, tuple[str, dict[str, Any], Callable[[int, int], float | None]]] = {
    "self_extend": ("self_extend", {"window": 6, "group": 3}, lambda i, j: brute_scores.self_extend(i, j, 6, 3)),
    "self_extend_odd": ("self_extend", {"window": 7, "group": 4}, lambda i, j: brute_scores.self_extend(i, j, 7, 4)),
    "rerope": ("rerope", {"window": 9}, lambda i, j: brute_scores.rerope(i, j, 9, None)),
    "rerope_default": ("rerope", {}, lambda i, j: brute_scores.rerope(i, j, 16, None)),
    "rerope_leaky": ("rerope", {"window": 5, "leak": 2.5}, lambda i, j: brute_scores.rerope(i, j, 5, 2.5)),
    "lm_infinite": (
        "lm_infinite",
        {"sinks": 3, "window": 8},
        lambda i, j: brute_scores.lm_infinite(i, j, 3, 8, 32),
    ),
    "lm_infinite_near_limit": (
        "lm_infinite",
        {"sinks": 2, "window": 9, "limit": 5},
        lambda i, j: brute_scores.lm_infinite(i, j, 2, 9, 5),
    ),
    "lm_infinite_no_sinks": (
        "lm_infinite",
        {"sinks": 0, "window": 8},
        lambda i, j: brute_scores.lm_infinite(i, j, 0, 8, 32),
    ),
    "dual_chunk": ("dual_chunk", {"chunk": 6, "context": 10}, lambda i, j: brute_scores.dual_chunk(i, j, 6, 10)),
    "dual_chunk_default": ("dual_chunk", {}, lambda i, j: brute_scores.dual_chunk(i, j, 24, 32)),
    "string": ("string", {"shift": 9, "local": 3}, lambda i, j: brute_scores.string(i, j, 9, 3)),
    "string_default": ("string", {}, lambda i, j: brute_scores.string(i, j, 10, 9)),
    "string_factor": ("string", {"factor": 1.75, "local": 4}, lambda i, j: brute_scores.string(i, j, 24, 4)),
}


@pytest.mark.parametrize("case", PIECEWISE)
@pytest.mark.parametrize(("queries", "past"), [(45, 0), (7, 38), (1, 40)])
def test_piecewise(case: str, queries: int, past: int) -> None:
    """Explicit rotation matrices at explicit distances."""
    name, options, effective = PIECEWISE[case]
    turn = piecewise(name, **options)
    call = call_for(queries=queries, past=past)
    inv_freq = brute.plain(THETA, DIM)

    def logit(n: int, h: int, i: int, j: int) -> float:
        distance = effective(i + past, j)
        assert distance is not None
        product = brute_scores.rotated_product(call.query[n, h, i], call.key[n, h // 3, j], distance, inv_freq)
        return product / math.sqrt(DIM)

    def allowed(n: int, i: int, j: int) -> bool:
        return j <= i + past and effective(i + past, j) is not None

    expected = brute_scores.attention(call.query, call.value, logit, allowed)
    with torch.no_grad():
        torch.testing.assert_close(
            turn(call, lambda c: KERNELS["eager"](c)), expected, rtol=1e-5, atol=1e-5
        )  # float32 angles
        if queries > 1:
            names: list[str] = []
            turn(call, lambda c: names.extend(n for n in KERNELS if obstacle(n, c) is None) or c.query)
            assert set(names) == {"merged", "blockwise", "eager"}
            for kernel in names:
                found = turn(call, lambda c, k=kernel: KERNELS[k](c))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda m, k=kernel: f"{k}: {m}")


@pytest.mark.parametrize("case", PIECEWISE)
def test_effective_distances(case: str) -> None:
    """``effective`` says the distance of every pair, and None exactly where a pair is masked."""
    name, options, effective = PIECEWISE[case]
    encoding = piecewise(name, **options).encoding
    for i in range(70):
        for j in range(i + 1):
            wanted = effective(i, j)
            found = encoding.effective(i - j, i)
            assert (found is None) == (wanted is None), (i, j)
            if wanted is not None:
                assert found == pytest.approx(wanted, abs=1e-9), (i, j)


def test_dual_chunk_worked_example() -> None:
    """The paper's: c = 10, s = 6, w = 4."""
    kind = get_encoding("dual_chunk")
    encoding = kind(kind.Config(chunk=6, context=10), tiny.shape())
    positions = torch.arange(12)
    intra, successive, inter = encoding.pieces()
    assert intra.query(positions).tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert successive.query(positions).tolist() == [6, 7, 8, 9, 9, 9, 6, 7, 8, 9, 9, 9]
    assert inter.query(positions).tolist() == [9] * 12
    for piece in (intra, successive, inter):
        assert piece.key(positions).tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    for distance in range(4):  # w = c - s: exact across the border of neighbouring chunks too
        for i in range(distance, 40):
            assert encoding.effective(distance, i) == distance
    assert max(encoding.effective(i - j, i) for i in range(80) for j in range(i + 1)) == 9


def llama_logits(model: Any, ids: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Logits of a Llama whose attention is ``attend(layer, q, k, v)``, of unrotated ``[b, h, n, d]``."""
    hidden = model.model.embed_tokens(ids)
    for layer, block in enumerate(model.model.layers):
        states = block.input_layernorm(hidden)
        own = block.self_attn
        q, k, v = (
            p(states).unflatten(-1, (-1, own.head_dim)).transpose(1, 2) for p in (own.q_proj, own.k_proj, own.v_proj)
        )
        hidden = hidden + own.o_proj(attend(layer, q, k, v).transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.mark.parametrize("case", [c for c in PIECEWISE if "default" not in c])
def test_piecewise_in_a_model(case: str) -> None:
    name, options, effective = PIECEWISE[case]
    model, ids = tiny.patched(name, **options).double(), tiny.ids(1, 40)
    inv_freq = brute.plain(THETA, 8)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def logit(n: int, h: int, i: int, j: int) -> float:
            distance = effective(i, j)
            assert distance is not None
            return brute_scores.rotated_product(q[n, h, i], k[n, h // 2, j], distance, inv_freq) / math.sqrt(8)

        return brute_scores.attention(q, v, logit, lambda n, i, j: j <= i and effective(i, j) is not None)

    with torch.no_grad():
        expected = llama_logits(model, ids, attend)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", ["shaw", "transformer_xl", "deberta", "cope"])
def test_scores_in_a_model(name: str, native: bool) -> None:
    """On top of the rotation, the encoding sees queries and keys as they were before it."""
    config = {
        "shaw": {"max_distance": 5, "values": True},
        "transformer_xl": {},
        "deberta": {"position_buckets": 8, "max_relative_positions": 20},
        "cope": {"max_positions": 6},
    }[name]
    spec = get_encoding(name).Config(**config)
    model, ids = tiny.patched(["native", spec] if native else [spec]).double(), tiny.ids(1, 26)
    inv_freq = brute.plain(THETA, 8)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = model.model.layers[layer].self_attn.position_encoding[name]

        def added(n: int, h: int, i: int, j: int) -> float:
            query, key = q[n, h, i], k[n, h // 2, j]
            if name == "shaw":
                return float(query @ made.keys[min(i - j, 5)]) / math.sqrt(8)
            if name == "transformer_xl":
                relative = made.projection[h] @ brute_scores.transformer_xl_sinusoid(i - j, 32, 10000.0)
                both = made.content_weight[h] @ key + (query + made.position_weight[h]) @ relative
                return float(both) / math.sqrt(8)
            if name == "deberta":
                at = min(brute_scores.deberta_bucket(i - j, 8, 20)[0], 7)
                return float(query @ made.position_key[h, at] + key @ made.position_query[h, at]) / math.sqrt(8)
            gates = [1 / (1 + math.exp(-float(query @ k[n, h // 2, t]) / math.sqrt(8))) for t in range(i + 1)]
            return brute_scores.cope_term(query, made.weight, brute_scores.cope_positions(gates, 6)[j])

        def logit(n: int, h: int, i: int, j: int) -> float:
            turned = brute_scores.rotated_product(q[n, h, i], k[n, h // 2, j], (i - j) * native, inv_freq)
            return turned / math.sqrt(8) + added(n, h, i, j)

        def value_at(i: int, j: int) -> Tensor:
            return made.values[min(i - j, 5)]

        return brute_scores.attention(q, v, logit, lambda n, i, j: j <= i, value_at if name == "shaw" else None)

    with torch.no_grad():
        expected = llama_logits(model, ids, attend)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("buckets", "furthest"), [(256, 512), (8, 20), (4, 4), (4, 64), (5, 9), (32, 128), (64, 4096), (256, 300)]
)
def test_deberta_buckets(buckets: int, furthest: int) -> None:
    distance = torch.arange(-5000, 5001)
    found = log_bucket(distance, buckets, furthest)
    theirs = deberta_v2.make_log_bucket_position(distance, buckets, furthest).long()
    clamp = {"min": -buckets, "max": buckets - 1}
    assert torch.equal(found.clamp(**clamp), theirs.clamp(**clamp))
    for d in [*range(-400, 401), -5000, 5000]:
        bucket, border = brute_scores.deberta_bucket(d, buckets, furthest)
        slack = 1 if border else 0
        assert abs(int(found[d + 5000]) - bucket) <= slack, d


def test_deberta_against_deberta_v2() -> None:
    """With the same projected tables: DeBERTa-v2's bias, which it divides by sqrt(3 d), is ours."""
    torch.manual_seed(0)
    config = hf.DebertaV2Config(
        hidden_size=32,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=8,
        max_relative_positions=20,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="none",
    )
    module = deberta_v2.DisentangledSelfAttention(config).eval()
    length = 45
    query, key, value = torch.randn(3, 2, 4, length, 8)
    table = torch.randn(16, 32)
    made = score("deberta", causal=False, heads=4, position_buckets=8, max_relative_positions=20).float()
    with torch.no_grad():
        theirs = module.disentangled_attention_bias(
            query.flatten(0, 1), key.flatten(0, 1), None, table, scale_factor=3
        ).view(2, 4, length, length)
        made.position_key.copy_(module.key_proj(table).view(16, 4, 8).transpose(0, 1))
        made.position_query.copy_(module.query_proj(table).view(16, 4, 8).transpose(0, 1))
        call = tiny.make_call(queries=length, batch=2, causal=False, dtype=torch.float32, scores=[made])
        call = replace(call, query=query, key=key, value=value)
        ours = made.scores(call.block())
    torch.testing.assert_close(ours, theirs * math.sqrt(3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_transformer_xl_against_xlnet(causal: bool) -> None:
    """XLNet's attention core with its relative shift, the same u, v and W_R."""
    torch.manual_seed(0)
    length = 37
    config = hf.XLNetConfig(
        d_model=32, n_head=4, n_layer=1, d_inner=8, vocab_size=9, dropout=0.0, attn_type="uni" if causal else "bi"
    )
    module = XLNetRelativeAttention(config).eval()
    made = score("transformer_xl", causal=causal, heads=4).float()
    states = torch.randn(3, length, 2, 4, 8)
    with torch.no_grad():
        module.r_w_bias.copy_(made.content_weight)
        module.r_r_bias.copy_(made.position_weight)
        module.r.copy_(made.projection.permute(2, 0, 1))
        relative = XLNetModel(config).relative_positional_encoding(length, length, bsz=2)
        relative = torch.einsum("ibh,hnd->ibnd", relative, module.r)
        mask = torch.ones(length, length).triu(1)[:, :, None, None] if causal else None
        expected = module.rel_attn_core(*states, relative, attn_mask=mask)
        call = tiny.make_call(queries=length, batch=2, causal=causal, dtype=torch.float32, scores=[made])
        query, key, value = (s.permute(1, 2, 0, 3) for s in states)
        call = replace(call, query=query, key=key, value=value)
        check(call, expected.permute(1, 2, 0, 3), 2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_shaw_against_wav2vec2_bert(causal: bool) -> None:
    """Its ``relative_key`` counts distances from the key; rows are turned around."""
    torch.manual_seed(0)
    length, clip = 41, 7
    config = hf.Wav2Vec2BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=clip,
        right_max_position_embeddings=clip,
        attention_dropout=0.0,
    )
    config._attn_implementation = "eager"
    module = Wav2Vec2BertSelfAttention(config).eval()
    module.linear_out = torch.nn.Identity()
    made = score("shaw", causal=causal, heads=4, max_distance=clip).float()
    hidden = torch.randn(2, length, 32)
    mask = torch.zeros(1, 1, length, length)
    if causal:
        mask = mask.masked_fill(~tiny.causal_mask(length), torch.finfo(torch.float32).min)
    with torch.no_grad():
        rows = module.distance_embedding.weight.normal_().flip(0)
        made.keys.copy_(rows[clip:] if causal else rows)
        expected = module(hidden, attention_mask=mask)[0]
        states = (
            p(hidden).view(2, length, 4, 8).transpose(1, 2) for p in (module.linear_q, module.linear_k, module.linear_v)
        )
        call = tiny.make_call(queries=length, batch=2, causal=causal, dtype=torch.float32, scores=[made])
        call = replace(call, **dict(zip(("query", "key", "value"), states, strict=True)))
        check(call, expected.view(2, length, 4, 8).transpose(1, 2), 2e-5)


@pytest.mark.parametrize("most", [4, 64])
def test_cope_against_x_transformers(most: int) -> None:
    cope = pytest.importorskip("x_transformers.x_transformers").CoPE(8, 4, most).double()
    made = score("cope", heads=4, max_positions=most)
    call = tiny.make_call(queries=33, batch=2, scores=[made])
    with torch.no_grad():
        cope.pos_emb.copy_(made.weight)
        plain = call.query @ call.key.transpose(2, 3) / math.sqrt(8)
        future = ~tiny.causal_mask(33)
        theirs = cope(call.query, plain.masked_fill(future, -torch.finfo(torch.float64).max))
        ours = made.scores(call.block())
    torch.testing.assert_close(ours.masked_fill(future, 0.0), theirs.masked_fill(future, 0.0), rtol=1e-10, atol=1e-10)
