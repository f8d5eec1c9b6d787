"""What convolution and recurrence remember beside a cache: the last embeddings, row by row, on that cache alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from matrix import HOSTS, PAD, cached_logits, distance, logits, randomise, tokens
from transformers import DynamicCache, StaticCache

from pe_retrofit import ConvConfig, RecurrentConfig, UnsupportedError, patch_model, positions
from pe_retrofit.patchers import tails
from pe_retrofit.streaming import SegmentCache

EXACT = 1e-9
SPECS = {
    "conv": ConvConfig(4),
    "native+conv": ["native", ConvConfig(3)],
    "recurrent": RecurrentConfig(5, 6),
    "native+recurrent": ["native", RecurrentConfig(4, 6)],
}
every = pytest.mark.parametrize("spec", SPECS)


def patched(spec: str, host: str = "llama", **more: Any) -> Any:
    model = patch_model(HOSTS[host].fresh(**more).double(), copy.deepcopy(SPECS[spec]))
    randomise(model)
    return model


def filled(model: Any, ids: torch.Tensor, cache: Any = None) -> Any:
    """A cache that has read some tokens."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    cached_logits(model, ids, [ids.shape[1]], cache)
    return cache


@every
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_chunks_of_any_size(spec: str, size: int) -> None:
    """Shorter than the reach, as long, longer."""
    model, ids = patched(spec), tokens(2, 15)
    found = cached_logits(model, ids, [size] * (15 // size) + [15 % size] * bool(15 % size))
    assert distance(found, logits(model, ids, use_cache=False)) < EXACT


@every
def test_texts_in_one_batch_differ_in_padding_and_go_on(spec: str) -> None:
    model, ids = patched(spec), tokens(3, 18)
    ids[0, :5], ids[2, :9] = PAD, PAD
    mask = (ids != PAD).long()
    cache, parts = None, []
    for start, stop in ((0, 10), (10, 11), (11, 12), (12, 18)):
        with torch.no_grad():
            output = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        cache, parts = output.past_key_values, [*parts, output.logits]
    found = torch.cat(parts, 1)
    for row, start in enumerate((5, 0, 9)):
        alone = logits(model, ids[row : row + 1, start:], use_cache=False)
        assert distance(found[row : row + 1, start:], alone) < 1e-5  # a rotation's angles are float32


@every
def test_cutting_back_as_far_as_is_remembered(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "SPARE", 6)
    model, ids = patched(spec), tokens(1, 30)
    wanted = logits(model, ids, use_cache=False)
    cache = filled(model, ids[:, :24])
    cache.crop(-6)
    assert distance(cached_logits(model, ids[:, 18:22], [1, 3], cache), wanted[:, 18:22]) < EXACT
    cache.crop(-7)
    with pytest.raises(UnsupportedError, match=r"cut back by 7 tokens.*Cut back by at most 6 at a time"):
        cached_logits(model, ids[:, 15:16], [1], cache)


@every
def test_cutting_back_to_the_beginning_and_to_nothing(spec: str) -> None:
    model, ids = patched(spec), tokens(2, 12)
    wanted = logits(model, ids, use_cache=False)
    cache = filled(model, ids)
    cache.crop(-11)
    assert distance(cached_logits(model, ids[:, 1:], [11], cache), wanted[:, 1:]) < EXACT
    cache.reset()
    assert distance(cached_logits(model, ids[:1], [5, 7], cache), wanted[:1]) < EXACT, "other rows after a reset"


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies_are_independent(spec: str, copied: Any) -> None:
    model, ids = patched(spec), tokens(2, 20)
    wanted = logits(model, ids, use_cache=False)
    cache = filled(model, ids[:, :9])
    twin = copied(cache)
    twin.reorder_cache(torch.tensor([1, 0]))
    twin.batch_repeat_interleave(2)
    assert distance(cached_logits(model, ids[:, 9:], [2, 9], cache), wanted[:, 9:]) < EXACT
    del cache
    gc.collect()
    twin.batch_select_indices(torch.tensor([3, 0]))
    assert distance(cached_logits(model, ids[:, 9:], [1, 10], twin), wanted[:, 9:]) < EXACT


def test_a_shallow_copy_without_its_original_says_so() -> None:
    model, ids = patched("conv"), tokens(2, 8)
    twin = copy.copy(filled(model, ids))
    with pytest.raises(UnsupportedError, match=r"reorder_cache\(\) was called on a shallow copy.*copy\.deepcopy"):
        twin.reorder_cache(torch.tensor([1, 0]))


@every
def test_rows_go_where_the_cache_puts_them(spec: str) -> None:
    model, ids = patched(spec, "gemma3"), tokens(3, 25)
    cache = filled(model, ids[:, :16])
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 0, 3, 3, 1, 4]))
    cache.batch_select_indices(torch.tensor([0, 2, 4]))
    rows = ids[[2, 1, 0]]
    found = cached_logits(model, rows[:, 16:], [1, 8], cache)
    assert distance(found, logits(model, rows, use_cache=False)[:, 16:]) < EXACT


def test_only_this_cache_is_accompanied() -> None:
    """No class is touched, and a cache is freed as soon as nobody holds it."""
    before = {name: vars(type(c)).get(name) for c in (DynamicCache(),) for name in tails._ROWS}
    model, ids = patched("conv"), tokens(1, 8)
    cache = filled(model, ids)
    assert {name for name in vars(cache) if name in tails._ROWS} == set(tails._ROWS)
    assert not set(vars(DynamicCache())) & set(tails._ROWS)
    assert before == {name: vars(DynamicCache).get(name) for name in tails._ROWS}
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_a_long_prompt_leaves_a_short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "SPARE", 10)
    model, ids = patched("conv"), tokens(1, 64)
    cache = filled(model, ids[:, :60])
    ((tail, seen),) = getattr(cache, tails._TAILS).values()
    assert (tail.shape[1], seen) == (13, 60)
    assert tail.untyped_storage().nbytes() == tail.numel() * tail.element_size()
    cached_logits(model, ids[:, 60:], [1, 1, 1, 1], cache)
    ((tail, seen),) = getattr(cache, tails._TAILS).values()
    assert (tail.shape[1], seen) == (13, 64)
    static = filled(model, ids[:, :60], StaticCache(config=model.config, max_cache_len=70))
    ((tail, _),) = getattr(static, tails._TAILS).values()
    assert tail.shape[1] == 3


@every
def test_what_was_read_without_this_encoding_is_refused(spec: str) -> None:
    model, ids = patched(spec), tokens(2, 12)
    other = patch_model(HOSTS["llama"].fresh().double(), "alibi")
    cache = filled(other, ids)
    with pytest.raises(UnsupportedError, match=r"12 tokens whose embeddings this model has not seen.*Fill the cache"):
        cached_logits(model, ids[:, :1], [1], cache)
    foreign = DynamicCache()
    for layer, held in enumerate(cache.layers):
        foreign.update(held.keys, held.values, layer)
    with pytest.raises(UnsupportedError, match="of which this model has seen 0"):
        cached_logits(model, ids[:, :1], [1], foreign)
    positions.declare(foreign, torch.arange(12)[None])
    with pytest.raises(UnsupportedError, match="whose embeddings this model has not seen"):
        cached_logits(model, ids[:, :1], [1], foreign)
    mine = filled(model, ids)
    cached_logits(other, ids[:, :2], [2], mine)
    with pytest.raises(UnsupportedError, match="holds 14 tokens, of which this model has seen 12"):
        cached_logits(model, ids[:, :1], [1], mine)


def test_rows_that_changed_behind_the_cache_are_refused() -> None:
    model, ids = patched("native+conv"), tokens(2, 9)
    cache = filled(model, ids)
    for layer in cache.layers:
        layer.batch_repeat_interleave(2)
    with pytest.raises(UnsupportedError, match="filled with 2 rows and now meets 4"):
        cached_logits(model, ids[:, :1].repeat_interleave(2, 0), [1], cache)


def test_an_encoder_looks_both_ways_and_takes_no_cache() -> None:
    model, ids = patched("native+recurrent", "bert"), tokens(1, 14)
    plain = logits(model, ids)
    other = ids.clone()
    other[0, 9] = (ids[0, 9] + 1) % 90 + 3
    block = model.base_model.embeddings
    seen: list[torch.Tensor] = []
    handle = model.base_model.encoder.layer[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    assert distance(logits(model, other), plain) > 1e-4
    logits(model, ids)
    handle.remove()
    changed = (seen[0] - seen[1]).abs().amax(-1)[0].nonzero().flatten().tolist()
    assert changed == [6, 7, 8, 9, 10, 11, 12], "three tokens to either side"
    assert not hasattr(block.position_embeddings, "position_encoding"), "the table stays as it was"


@pytest.mark.parametrize("spec", ["conv", "native+recurrent"])
def test_compiled_equals_eager_mode_and_decodes_with_a_static_cache(spec: str) -> None:
    model, ids = patched(spec).float(), tokens(2, 24)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    found = logits(compiled, ids, attention_mask=mask, use_cache=False)
    wanted = logits(model, ids, use_cache=False)
    assert distance(found[:1, :-3], wanted[:1, :-3]) < 1e-5
    cache = StaticCache(config=model.config, max_cache_len=32)
    found = [logits(model, ids[:, :18], past_key_values=cache)]
    found += [logits(compiled, ids[:, i : i + 1], past_key_values=cache) for i in range(18, 24)]
    assert distance(torch.cat(found, 1), wanted) < 1e-5


@every
def test_streams_remember_neighbours_too(spec: str) -> None:
    """A memory of everything equals one pass; segments end where the gradient ends."""
    model, ids = patched(spec), tokens(2, 40)
    wanted = logits(model, ids, use_cache=False)
    found = cached_logits(model, ids, [7, 1, 2, 14, 16], SegmentCache(model, 64))
    assert distance(found, wanted) < 1e-5
    short = SegmentCache(model, 6)
    first = cached_logits(model, ids[:, :9], [9], short)
    assert distance(first, wanted[:, :9]) < 1e-5
    assert torch.isfinite(cached_logits(model, ids[:, 9:], [1, 14, 16], short)).all()
    cache = SegmentCache(model, 12)
    for start in (0, 10, 20):
        model(ids[:, start : start + 10], past_key_values=cache).logits.square().mean().backward()


@pytest.mark.parametrize("spec", ["conv", "native+recurrent"])
def test_gradients_flow_through_what_a_cache_remembers(spec: str) -> None:
    """Reading in two chunks gives the gradients of reading at once."""
    model, ids, found = patched(spec), tokens(1, 12), []
    for chunks in ([12], [7, 5]):
        model.zero_grad()
        cache, total, start = DynamicCache(config=model.config), torch.zeros((), dtype=torch.float64), 0
        for size in chunks:
            total = total + model(ids[:, start : start + size], past_key_values=cache).logits.square().sum()
            start += size
        total.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in found[0].items():
        assert torch.allclose(found[1][name], grad, rtol=1e-6, atol=1e-9 * grad.abs().max().item()), name
