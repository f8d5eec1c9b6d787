"""Every decoder with every encoding: whatever the cache, the logits are those of one pass without it."""

from __future__ import annotations

import copy

import pytest
import torch
from matrix import HOSTS, PAD, WINDOW, Cell, cached_logits, cells, distance, logits, tokens
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, QuantizedLayer

from pe_retrofit import UnsupportedError, patch_model, positions, unpatch_model

DECODERS = cells(lambda c: c.host.causal and c.encoding.caches)
ROTATING = cells(lambda c: c.host.causal and c.host.rotates and c.encoding.caches)
WINDOWED = cells(lambda c: c.host.windows and c.encoding.caches)
FEW = cells(lambda c: c.host.name in ("llama", "gemma3", "stablelm", "gpt_neox") and c.encoding.caches)
EXACT = 1e-5
"""Relative; the models run in float64, their norms in float32."""


def chunks(length: int) -> list[int]:
    """A prompt, single tokens, a chunk larger than the window, tokens over the trained length, a chunk, a token."""
    sizes = [6, 1, 1, 1, 5, 1, 13, 1]
    rest = length - sum(sizes)
    return [*sizes, *[1] * min(rest, 6), *([rest - 7, 1] if rest > 7 else [1] * (rest - min(rest, 6)))]


@pytest.mark.parametrize("cell", DECODERS)
def test_cached_equals_uncached(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, cell.length)
    wanted = logits(model, ids, use_cache=False)
    assert distance(cached_logits(model, ids, chunks(cell.length)), wanted) < EXACT


@pytest.mark.parametrize("cell", ROTATING)
def test_static_cache_equals_uncached(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, cell.length)
    wanted = logits(model, ids, use_cache=False)
    cache = StaticCache(config=model.config, max_cache_len=cell.length + 3)
    assert distance(cached_logits(model, ids, chunks(cell.length), cache), wanted) < EXACT
    cache.reset()
    found = cached_logits(model, ids[:, :20], [9, 1, 10], cache)
    assert distance(found, wanted[:, :20]) < EXACT, "after reset()"


@pytest.mark.parametrize("cell", WINDOWED)
def test_window_cache_drops_the_past_and_still_agrees(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, cell.length)
    wanted = logits(model, ids, use_cache=False)
    cache = DynamicCache(config=model.config)
    found = cached_logits(model, ids, chunks(cell.length), cache)
    held = [layer.keys.shape[2] for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    assert held
    assert max(held) == WINDOW - 1, "the test must go beyond the window"
    assert distance(found, wanted) < EXACT
    whole = cached_logits(model, ids, chunks(cell.length), DynamicCache())  # keeps everything, masks the rest
    assert distance(whole, wanted) < EXACT


class LosslessQuantizedLayer(QuantizedLayer):
    """Transformers' quantised cache layer with a backend that needs no package and loses nothing."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.clone()

    def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
        return q_tensor.clone()


@pytest.mark.parametrize("cell", FEW)
def test_quantised_cache_equals_uncached(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, cell.length)
    layers = [LosslessQuantizedLayer(residual_length=8) for _ in range(model.config.num_hidden_layers)]
    found = cached_logits(model, ids, chunks(cell.length), Cache(layers=layers))
    assert distance(found, logits(model, ids, use_cache=False)) < EXACT


@pytest.mark.parametrize("cell", FEW)
def test_crop_repeat_select_and_reorder(cell: Cell) -> None:
    """What assisted, contrastive and beam search do to a cache between passes."""
    model, ids = cell.patched(double=True), tokens(2, 24)
    wanted = logits(model, ids, use_cache=False)
    cache = DynamicCache()
    cached_logits(model, ids[:, :16], [10, 6], cache)
    cache.crop(-4)
    found = cached_logits(model, ids[:, 12:], [1, 11], cache)
    assert distance(found, wanted[:, 12:]) < EXACT, "after crop"

    cache.crop(-8)
    cache.batch_repeat_interleave(3)
    candidates = tokens(6, 1, seed=5)
    found = cached_logits(model, candidates, [1], cache)
    rows = torch.cat((ids[:, :16].repeat_interleave(3, 0), candidates), 1)
    assert distance(found, logits(model, rows, use_cache=False)[:, -1:]) < EXACT, "after repeating rows"

    kept = torch.tensor([1, 5])
    cache.batch_select_indices(kept)
    more = tokens(2, 3, seed=6)
    found = cached_logits(model, more, [2, 1], cache)
    rows = torch.cat((rows[kept], more), 1)
    assert distance(found, logits(model, rows, use_cache=False)[:, -3:]) < EXACT, "after selecting rows"

    cache.reorder_cache(torch.tensor([1, 0]))
    found = cached_logits(model, more, [3], cache)
    rows = torch.cat((rows.flip(0), more), 1)
    assert distance(found, logits(model, rows, use_cache=False)[:, -3:]) < EXACT, "after reordering rows"


@pytest.mark.parametrize("cell", FEW)
def test_a_copied_prompt_cache_serves_several_continuations(cell: Cell) -> None:
    model, prompt = cell.patched(double=True), tokens(1, 17)
    cache = DynamicCache(config=model.config)
    cached_logits(model, prompt, [17], cache)
    for seed in (1, 2):
        ids = tokens(1, 9, seed=seed)
        found = cached_logits(model, ids, [4, 1, 4], copy.deepcopy(cache))
        wanted = logits(model, torch.cat((prompt, ids), 1), use_cache=False)[:, 17:]
        assert distance(found, wanted) < EXACT


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "gpt_neox") and c.needs_positions))
def test_cache_filled_by_another_model_is_refused_or_declared(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, 20)
    cache = DynamicCache()
    cached_logits(model, ids[:, :12], [12], cache)
    foreign = DynamicCache()
    for layer, held in enumerate(cache.layers):
        foreign.update(held.keys, held.values, layer)
    with pytest.raises(UnsupportedError, match=r"holds 12 tokens, of which this model has seen 0.*declare"):
        cached_logits(model, ids[:, 12:], [8], foreign)
    positions.declare(foreign, torch.arange(12)[None])
    assert distance(cached_logits(model, ids[:, 12:], [8], foreign), logits(model, ids)[:, 12:]) < EXACT


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name.startswith("bert_") and c.encoding.caches))
def test_encoder_decoder_cache(cell: Cell) -> None:
    """BERT as the decoder of an encoder-decoder pair holds two caches in one."""
    model, ids = cell.patched(double=True), tokens(2, cell.length)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    found = cached_logits(model, ids, chunks(cell.length), cache)
    assert distance(found, logits(model, ids, use_cache=False)) < EXACT


@pytest.mark.parametrize("name", ["llama", "mistral", "stablelm", "gpt_neox"])
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_two_patches_share_one_cache(name: str, cache: type[Cache]) -> None:
    """Both look up the positions; neither may disturb the other's record."""
    model, ids = HOSTS[name].fresh().double(), tokens(2, 24)
    patch_model(model, "dynamic", factor=2.0, layers=[0])
    patch_model(model, ["native", "alibi"], layers=[2])
    wanted = logits(model, ids, use_cache=False)
    made = cache(config=model.config, **({"max_cache_len": 30} if cache is StaticCache else {}))
    assert distance(cached_logits(model, ids, [6, 1, 5, *[1] * 12], made), wanted) < EXACT
    ids[0, :4] = PAD
    mask = (ids != PAD).long()
    wanted = logits(model, ids, attention_mask=mask, use_cache=False)
    with torch.no_grad():
        prefill = model(ids[:, :15], attention_mask=mask[:, :15], use_cache=True)
        rest = model(ids[:, 15:], attention_mask=mask, past_key_values=prefill.past_key_values).logits
    assert distance(rest, wanted[:, 15:]) < EXACT


@pytest.mark.parametrize("name", [n for n, h in HOSTS.items() if h.causal])
def test_hosts_themselves_pass(name: str) -> None:
    """The yardstick: what is asked of patched models, the originals do."""
    model, ids = HOSTS[name].fresh().double(), tokens(2, 30)
    wanted = logits(model, ids, use_cache=False)
    assert distance(cached_logits(model, ids, chunks(30)), wanted) < EXACT
    unpatch_model(model)  # nothing to undo, nothing happens
    assert torch.equal(logits(model, ids, use_cache=False), wanted)
