"""Segment recurrence: what the caches hold, and that a stream computes what the formula says."""

from __future__ import annotations

from typing import Any

import matrix
import pytest
import tiny
import torch
from matrix import HOSTS, WINDOW, Cell, EncodingCase, cells, distance, logits, tokens
from torch import Tensor

from pe_retrofit import ConfigError, UnsupportedError, patch_model
from pe_retrofit.held import Held, held_by
from pe_retrofit.streaming import SegmentCache, stream
from pe_retrofit.streaming.layers import ForgetfulLayer

STREAMED = ("llama", "mistral", "gemma3", "gpt_neox", "gpt_oss")


def streams(cell: Cell) -> bool:
    """Whether positions mean distances in a cell, and no first tokens are kept."""
    kept = cell.host.rotates or not cell.encoding.keeps
    return kept and encoding_streams(cell.encoding)


def encoding_streams(encoding: EncodingCase) -> bool:
    """The same on a Llama. Self-Extend groups absolute positions, even where that happens to be exact."""
    grows = encoding.name.startswith(("dynamic", "longrope"))
    absolute = encoding.name.startswith(("lm_infinite", "self_extend"))
    return encoding.relative and not grows and not absolute


def reach(model: Any) -> int:
    """Tokens before each one that an input encoding looks at."""
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    installed = getattr(base, "position_encoding", None)
    return max((e.reach for e in installed.values()), default=0) if installed is not None else 0


def run(model: Any, ids: Tensor, segment: int, cache: Any, **more: Any) -> Tensor:
    """Logits ``[b, n, vocabulary]`` of a stream."""
    with torch.no_grad():
        return torch.cat([part.output.logits for part in stream(model, ids, segment, cache=cache, **more)], dim=1)


def segment_mask(length: int, segment: int, memory: int, window: int | None = None) -> Tensor:
    """bool ``[1, 1, n, n]``: a query sees its segment up to itself, and the memory before the segment."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        first = i // segment * segment
        for j in range(max(0, first - memory), i + 1):
            mask[i, j] = window is None or i - j < window
    return mask[None, None]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("memory", "sinks"), [(0, 0), (5, 0), (9, 0), (5, 3), (9, 1)])
def test_a_layer_keeps_the_first_and_the_last_tokens(memory: int, sinks: int, window: int | None) -> None:
    if sinks and window:
        pytest.skip("refused together")
    layer = ForgetfulLayer(memory, sinks, window)
    kept = memory if window is None else min(memory, window - 1)
    seen = 0
    record = torch.zeros(1, 0)
    gap = 0
    for size in (1, 3, 1, 7, 1, 1, 20, 2):
        before = list(range(seen))
        if seen > sinks + kept:
            before = before[:sinks] + before[seen - kept :]
        states = torch.arange(seen, seen + size, dtype=torch.float64).view(1, 1, -1, 1).requires_grad_()
        held = Held((layer.held(),))
        length, offset = layer.get_mask_sizes(size)
        keys, values = layer.update(states, 2 * states)
        seen += size
        assert keys.flatten().tolist() == before + list(range(seen - size, seen))
        assert torch.equal(values, 2 * keys)
        assert length == keys.shape[2]
        assert offset + length == seen == layer.get_seq_length()
        record = held.cut(torch.cat((record, states.detach()[0, :, :, 0]), dim=1), gap)
        gap = held.gap
        assert record[0].tolist() == keys.flatten().tolist() == held.of_layer(0, record)[0].tolist()
        assert record.shape[1] + gap == seen
        assert keys.requires_grad
        assert not layer.keys.requires_grad


def test_a_prompt_is_not_kept_alive() -> None:
    layer = ForgetfulLayer(4)
    layer.update(torch.zeros(1, 1, 1000, 2), torch.zeros(1, 1, 1000, 2))
    assert layer.keys.untyped_storage().nbytes() == 4 * 2 * 4


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in STREAMED and streams(c)))
def test_with_a_memory_of_everything_a_stream_is_one_pass(cell: Cell) -> None:
    model = cell.patched(double=True)
    ids = tokens(2, cell.length)
    wanted = logits(model, ids, use_cache=False)
    assert distance(run(model, ids, 7, SegmentCache(model, 1000)), wanted) < 1e-10


@pytest.mark.parametrize("name", STREAMED)
def test_unpatched_models_stream(name: str) -> None:
    model = HOSTS[name].fresh()
    ids = tokens(2, 40)
    wanted = logits(model, ids, use_cache=False)
    assert distance(run(model, ids, 9, SegmentCache(model, 40)), wanted) < 1e-5


@pytest.mark.parametrize(("segment", "memory"), [(7, 11), (8, 3), (5, 0), (1, 6)])
@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "gpt_neox", "mistral") and streams(c)))
def test_a_stream_equals_one_pass_with_the_mask_of_the_segments(cell: Cell, segment: int, memory: int) -> None:
    """What a token computes depends on what it sees alone, so states that are reused are states computed anew."""
    model = cell.patched(double=True)
    if memory < reach(model):
        with pytest.raises(ConfigError, match="is less than the"):
            SegmentCache(model, memory)
        return
    ids = tokens(2, 40)
    window = WINDOW if cell.host.windows else None
    wanted = logits(
        model, ids, use_cache=False, attention_mask=segment_mask(40, segment, memory, window).expand(2, -1, -1, -1)
    )
    assert distance(run(model, ids, segment, SegmentCache(model, memory)), wanted) < 1e-10
    if memory < 11 and window is None:
        assert distance(logits(model, ids, use_cache=False), wanted) > 1e-3, "the mask must matter"


def rows_of_bias(kind: str, model: Any, query: range, key: range) -> Tensor:
    """What an encoding adds to the scores of a tiny Llama, from its formula: ``[1, h, q, k]``."""
    import brute

    heads = model.config.num_attention_heads
    bias = torch.zeros(1, heads, len(query), len(key), dtype=torch.float64)
    slopes = brute.alibi_slopes(heads)
    for h in range(heads):
        for r, i in enumerate(query):
            for c, j in enumerate(key):
                if j > i:
                    bias[0, h, r, c] = -torch.inf
                elif kind == "alibi":
                    bias[0, h, r, c] = -slopes[h] * (i - j)
    return bias


@pytest.mark.parametrize("kind", ["native", "alibi", "nope"])
def test_deep_models_reuse_the_states_of_earlier_segments(kind: str) -> None:
    """Against Transformer-XL as its paper writes it: the hidden states of the layer below are the memory."""
    segment, memory, length = 6, 10, 40
    ids = tiny.ids(2, length)
    plain = tiny.llama(num_hidden_layers=3).double()
    plain.set_attn_implementation("sdpa")  # in float64, which the eager one is not
    remembered: list[Tensor] = [torch.zeros(2, 0, 32, dtype=torch.float64)] * 3
    parts = []
    with torch.no_grad():
        for start in range(0, length, segment):
            stop = min(start + segment, length)
            hidden = plain.model.embed_tokens(ids[:, start:stop])
            for n, layer in enumerate(plain.model.layers):
                both = torch.cat((remembered[n], hidden), dim=1)
                remembered[n] = both[:, -memory:]
                first = stop - both.shape[1]
                positions = range(first, stop)
                mask = rows_of_bias(kind, plain, positions, positions)
                turn = plain.model.rotary_emb(both, torch.arange(first, stop)[None])
                if kind != "native":
                    turn = (torch.ones_like(turn[0]), torch.zeros_like(turn[1]))
                hidden = layer(both, attention_mask=mask, position_embeddings=turn)[:, start - stop :]
            parts.append(plain.lm_head(plain.model.norm(hidden)))
    model = tiny.llama(num_hidden_layers=3).double()
    if kind != "native":
        patch_model(model, kind)
    found = run(model, ids, segment, SegmentCache(model, memory))
    assert distance(found, torch.cat(parts, dim=1)) < 1e-10
    whole = logits(model, ids, use_cache=False)
    assert distance(found, whole) > 1e-3, "what is forgotten must matter"


def test_the_memory_reaches_further_with_every_layer() -> None:
    """A token can matter through ``layers * memory`` tokens, and none before that."""
    model = tiny.llama(num_hidden_layers=2).double()
    ids = tiny.ids(1, 40)
    wanted = run(model, ids, 1, SegmentCache(model, 5))
    for place, changes in ((28, False), (29, True)):
        other = ids.clone()
        other[0, place] = (other[0, place] + 1 - 3) % (tiny.VOCAB - 3) + 3
        found = run(model, other, 1, SegmentCache(model, 5))
        assert (not torch.equal(found[:, 39], wanted[:, 39])) == changes


@pytest.mark.parametrize("name", ["native", "alibi", "native+t5", "nope"])
@pytest.mark.parametrize("host", ["llama", "gemma3"])
def test_left_padded_rows_equal_rows_alone(host: str, name: str) -> None:
    model = HOSTS[host].fresh().double()
    if name != "native":
        matrix.ENCODINGS[name].patch(model)
    ids = tokens(3, 40)
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, :5], mask[2, :17] = 0, 0
    for memory in (40, 9):
        found = run(model, ids, 8, SegmentCache(model, memory), attention_mask=mask)
        for row, pad in ((0, 0), (1, 5), (2, 17)):
            cache = SegmentCache(model, memory)
            first = (8 - pad % 8) % 8  # segments break where they break in the padded row
            own = ids[row : row + 1, pad:]
            parts = [run(model, own[:, :first], 8, cache)] if first else []
            alone = torch.cat([*parts, run(model, own[:, first:], 8, cache)], dim=1)
            # transformers computes rotations in float32, at other positions here
            assert distance(found[row : row + 1, pad:], alone) < (1e-5 if "native" in name else 1e-10)


def test_size_and_record_stay_the_same() -> None:
    model = HOSTS["gemma3"].fresh()
    patch_model(model, "alibi")
    cache = SegmentCache(model, 30)
    sizes = set()
    for n, _ in enumerate(stream(model, tokens(2, 400), 10, cache=cache)):
        held = held_by(cache)
        assert held is not None
        if n > 5:
            record = cache._position_encoding_tokens
            sizes.add((tuple(layer.keys.shape[2] for layer in cache.layers), record.shape[1]))
    assert sizes == {((WINDOW - 1, 30, WINDOW - 1), 40)}
    assert cache.get_seq_length() == 400
    cache.reset()
    assert distance(run(model, tokens(1, 20), 10, cache), logits(model, tokens(1, 20), use_cache=False)) < 1e-5


@pytest.mark.parametrize("name", ["native", "alibi", "t5"])
def test_generation_forgets_and_agrees_with_its_mask(name: str) -> None:
    model = tiny.llama(num_hidden_layers=1, eos_token_id=None).double()
    if name != "native":
        matrix.ENCODINGS[name].patch(model)
    prompt, new, memory = tiny.ids(2, 13), 30, 6
    cache = SegmentCache(model, memory)
    found = model.generate(prompt, past_key_values=cache, max_new_tokens=new, do_sample=False)
    total = prompt.shape[1] + new
    mask = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        mask[i, 0 if i < 13 else max(0, i - memory) : i + 1] = True
    chosen = logits(model, found, use_cache=False, attention_mask=mask[None, None].expand(2, -1, -1, -1)).argmax(-1)
    assert torch.equal(found[:, 13:], chosen[:, 12:-1])
    assert cache.layers[0].keys.shape[2] == memory
    assert not torch.equal(found, model.generate(prompt, max_new_tokens=new, do_sample=False)), "the memory must matter"


def test_generation_goes_on_after_a_stream() -> None:
    model = tiny.patched("alibi")
    prompt = tiny.ids(1, 60)
    cache = SegmentCache(model, 10)
    run(model, prompt[:, :-1], 8, cache)
    found = model.generate(prompt, past_key_values=cache, max_new_tokens=5, do_sample=False, eos_token_id=None)
    whole = SegmentCache(model, 10)
    run(model, found[:, :59], 8, whole)
    wanted = [int(run(model, found[:, i : i + 1], 1, whole).argmax()) for i in range(59, 64)]
    assert found[0, 60:].tolist() == wanted


def test_beam_search_within_the_memory_equals_the_usual_cache() -> None:
    model = tiny.patched("alibi")
    prompt = tiny.ids(2, 9)
    settings = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, past_key_values=SegmentCache(model, 40), **settings), wanted)
    model.generate(prompt, past_key_values=SegmentCache(model, 4), **settings)


def test_tokens_come_back_only_while_nothing_is_forgotten() -> None:
    model = tiny.patched("alibi")
    ids = tiny.ids(1, 20)
    cache = SegmentCache(model, 20)
    wanted = run(model, ids, 5, cache)
    cache.crop(-8)
    assert cache.get_seq_length() == 12
    assert distance(run(model, ids[:, 12:], 8, cache), wanted[:, 12:]) < 1e-5
    run(model, ids, 5, cache)
    with pytest.raises(UnsupportedError, match=r"cannot be taken back.*larger memory"):
        cache.crop(-1)


def test_a_cache_the_model_did_not_use_is_noticed() -> None:
    model = tiny.patched("alibi")
    cache = SegmentCache(model, 10)
    run(model, tiny.ids(1, 20), 5, cache)
    for layer in cache.layers:
        layer.keys = layer.keys[:, :, 1:]
    with pytest.raises(UnsupportedError, match="did not use the cache"):
        run(model, tiny.ids(1, 5), 5, cache)
