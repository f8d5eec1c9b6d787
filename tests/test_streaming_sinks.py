"""``SinkCache``: the first tokens and a window, at positions counted anew."""

from __future__ import annotations

import math
from typing import Any

import brute
import pytest
import tiny
import torch
import transformers as hf
from matrix import HOSTS, distance, logits, tokens
from torch import Tensor

from pe_retrofit import ConfigError, UnsupportedError, patch_model
from pe_retrofit.positions import KEYWORD
from pe_retrofit.streaming import SegmentCache, SinkCache, stream

CLOSE = 1e-5
"""Angles are float32 in every model, and the positions differ between a cache and none."""

CASES = [(4, 10, 32), (4, 10, 7), (1, 12, 12), (0, 9, 32), (4, 40, 20), (3, 1, 5)]
"""First tokens, window, largest distance."""


def patched(sinks: int, window: int, limit: int, build: Any = tiny.llama) -> Any:
    model = build().double()
    return patch_model(model, "lm_infinite", sinks=sinks, window=window, limit=limit)


def run(model: Any, ids: Tensor, segment: int, cache: Any, **more: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([part.output.logits for part in stream(model, ids, segment, cache=cache, **more)], dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 11, 40])
@pytest.mark.parametrize(("sinks", "window", "limit"), CASES)
@pytest.mark.parametrize("host", ["llama", "gpt_neox"])
def test_streaming_equals_no_cache(host: str, sinks: int, window: int, limit: int, chunk: int) -> None:
    model = patched(sinks, window, limit, HOSTS[host].fresh)
    ids = tokens(2, 130)
    cache = SinkCache(model)
    wanted = logits(model, ids, use_cache=False)
    assert distance(run(model, ids, chunk, cache), wanted) < CLOSE
    assert [layer.keys.shape[2] for layer in cache.layers] == [sinks + window - 1] * len(cache.layers)
    assert cache._position_encoding_tokens.shape[1] <= sinks + window - 1 + chunk


def test_chunks_of_changing_size_equal_no_cache() -> None:
    model = patched(4, 10, 32)
    ids, cache, start, parts = tiny.ids(2, 120), SinkCache(model), 0, []
    for size in (2, 1, 1, 30, 1, 17, 1, 1, 50, 16):
        parts.append(run(model, ids[:, start : start + size], size, cache))
        start += size
    assert distance(torch.cat(parts, dim=1), logits(model, ids, use_cache=False)) < CLOSE


def test_equals_the_formula() -> None:
    """One layer of a Llama by hand: the tokens attended to, and RoPE at the capped distance, in float64."""
    sinks, window, limit, n = 3, 8, 12, 60
    model = tiny.llama(num_hidden_layers=1).double()
    layer, ids = model.model.layers[0], tiny.ids(1, n)
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(ids))[0]
        attention = layer.self_attn
        query, key, value = (p(hidden).view(n, -1, 8) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        theta = brute.plain(10000.0, 8)
        rows = []
        for i in range(n):
            seen = [j for j in range(i + 1) if i - j < window or j < sinks]
            heads = []
            for h in range(4):
                scores = []
                for j in seen:
                    far = min(i - j, limit)
                    q, k = query[i, h], key[j, h // 2]
                    score = 0.0
                    for m in range(4):
                        cos, sin = math.cos(far * theta[m]), math.sin(far * theta[m])
                        a, b, c, d = (float(x) for x in (q[m], q[m + 4], k[m], k[m + 4]))
                        score += (a * cos - b * sin) * c + (a * sin + b * cos) * d
                    scores.append(score)
                weights = (torch.tensor(scores, dtype=torch.float64) / math.sqrt(8)).softmax(0)
                heads.append(weights @ value[seen, h // 2])
            rows.append(torch.cat(heads))
        wanted = attention.o_proj(torch.stack(rows))
    patch_model(model, "lm_infinite", sinks=sinks, window=window, limit=limit)
    found: list[Tensor] = []
    handle = layer.self_attn.register_forward_hook(lambda module, args, output: found.append(output[0][0]))
    for chunk in (1, 7):
        found.clear()
        run(model, ids, chunk, SinkCache(model))
        assert distance(torch.cat(found), wanted) < CLOSE
    handle.remove()


def test_positions_stay_small() -> None:
    model = patched(4, 10, 32)
    seen: list[int] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs[KEYWORD]
        seen.append(int(positions.query.amax()))
        keys = positions.keys(0, positions.tokens.shape[1])
        assert keys[0, :4].tolist() == [0, 1, 2, 3]

    handle = model.model.layers[0].self_attn.register_forward_pre_hook(look, with_kwargs=True)
    run(model, tiny.ids(1, 600), 6, SinkCache(model))
    handle.remove()
    assert max(seen) <= 4 + 32 + 10 + 6
    assert len(seen) == 100


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_generation_without_a_cache(beams: int) -> None:
    model = patched(2, 8, 32)
    prompt = tiny.ids(2, 15)
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "num_beams": beams}
    cache = SinkCache(model)
    found = model.generate(prompt, past_key_values=cache, **settings)
    assert torch.equal(found, model.generate(prompt, use_cache=False, **settings))
    assert cache.layers[0].keys.shape[2] == 9


def test_biases_on_top_see_the_true_distances() -> None:
    model = tiny.llama().double()
    patch_model(model, ["lm_infinite", "alibi"])
    cache = SinkCache(model)
    assert cache.reach is None
    ids = tiny.ids(1, 90)
    assert distance(run(model, ids, 7, cache), logits(model, ids, use_cache=False)) < CLOSE


def test_the_trained_length_is_the_default_window() -> None:
    cache = SinkCache(patch_model(tiny.llama(), "lm_infinite"))
    assert (cache.sinks, cache.window, cache.reach) == (10, tiny.LENGTH, tiny.LENGTH)


def test_padding_and_positions_are_refused() -> None:
    model = patched(4, 10, 32)
    ids = tiny.ids(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    run(model, ids, 5, SinkCache(model), attention_mask=mask)
    mask[1, :3] = 0
    with pytest.raises(UnsupportedError, match="first 4 of each row for ever: padding"):
        run(model, ids, 5, SinkCache(model), attention_mask=mask)
    with pytest.raises(UnsupportedError, match="first 4 of each row for ever: padding"):
        model.generate(ids, attention_mask=mask, past_key_values=SinkCache(model), max_new_tokens=2)
    with pytest.raises(UnsupportedError, match="position_ids must count on"):
        model(ids, position_ids=torch.arange(12)[None] + 5, past_key_values=SinkCache(model))


@pytest.mark.parametrize(
    ("build", "spec", "options", "words"),
    [
        (tiny.llama, None, {}, "in no layer.*SegmentCache"),
        (tiny.llama, "alibi", {}, "in no layer"),
        (tiny.llama, "lm_infinite", {"layers": [1]}, r"only in layers \[1\]"),
        (tiny.bert, None, {}, "attends to both sides"),
    ],
)
def test_other_models_are_refused(build: Any, spec: Any, options: dict[str, Any], words: str) -> None:
    model = build()
    if spec is not None:
        patch_model(model, spec, **options)
    with pytest.raises(UnsupportedError, match=words):
        SinkCache(model)


def test_other_numbers_than_the_encodings_are_refused() -> None:
    model = patched(4, 10, 32)
    SinkCache(model, sinks=4, window=10)
    with pytest.raises(ConfigError, match=r"window=12 differs from the window=10 .*patch again"):
        SinkCache(model, window=12)
    with pytest.raises(ConfigError, match="sinks=0 differs"):
        SinkCache(model, sinks=0)


def test_a_segment_cache_would_forget_the_first_tokens() -> None:
    with pytest.raises(UnsupportedError, match="SinkCache"):
        SegmentCache(patched(4, 10, 32), 20)


def test_the_usual_cache_agrees_too() -> None:
    model = patched(4, 10, 32)
    ids = tiny.ids(1, 60)
    assert distance(run(model, ids, 7, hf.DynamicCache()), run(model, ids, 7, SinkCache(model))) < CLOSE
