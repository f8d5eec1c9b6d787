"""Positions through a whole model whose rotation depends on them: cached against uncached, whatever happens between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import DynamicCache

from pe_retrofit import AlibiConfig, DynamicConfig, T5Config, UnsupportedError, patch_model
from pe_retrofit.positions import declare

SPECS = {
    "dynamic": ("dynamic", {"factor": 2.0}),
    "t5": ("t5", {"num_buckets": 16, "max_distance": 60}),
    "alibi": ("alibi", {"kernel": "separable"}),
    "both": ([DynamicConfig(2.0), T5Config(16, 60), AlibiConfig()], {}),
}


@pytest.fixture(params=SPECS)
def model(request: pytest.FixtureRequest) -> Any:
    """A Llama of trained length 16, so that the inputs here go beyond it."""
    spec, options = SPECS[request.param]
    made = tiny.llama(max_position_embeddings=16)
    patch_model(made, copy.deepcopy(spec), **options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("t5.weight"):
                parameter.normal_()
    return made


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def left_padded(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens ``[b, n]`` and their mask."""
    longest = max(lengths)
    tokens = tiny.ids(len(lengths), longest)
    mask = torch.stack([torch.arange(longest) >= longest - n for n in lengths]).long()
    return tokens * mask, mask


def grown(mask: Tensor, count: int) -> Tensor:
    return torch.cat((mask, mask.new_ones(len(mask), count)), 1)


def test_chunks(model: Any) -> None:
    tokens = tiny.ids(2, 40)
    whole = model(tokens).logits
    for sizes in ([40], [1] * 40, [13, 1, 1, 20, 5]):
        cache, parts, start = DynamicCache(config=model.config), [], 0
        for size in sizes:
            parts.append(model(tokens[:, start : start + size], past_key_values=cache).logits)
            start += size
        close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("explicit", [False, True], ids=["mask only", "as generate does"])
def test_rows_reordered_and_thinned(model: Any, explicit: bool) -> None:
    """Padded rows change places in the cache; the mask goes with them."""
    tokens, mask = left_padded([20, 14, 17])
    more, longer = tiny.ids(3, 6, seed=9), grown(mask, 6)
    whole = model(torch.cat((tokens, more), 1), attention_mask=longer).logits[:, -6:]
    positions = (longer.cumsum(1) - 1).masked_fill(longer == 0, 1)  # padding tokens get 1, as generate() has it
    for order in ([2, 0, 1], [1], [2, 2, 0, 1, 1]):
        cache = DynamicCache(config=model.config)
        first = {"position_ids": positions[:, :-6]} if explicit else {}
        then = {"position_ids": positions[order, -6:]} if explicit else {}
        model(tokens, attention_mask=mask, past_key_values=cache, **first)
        cache.batch_select_indices(torch.tensor(order))
        picked = model(more[order], attention_mask=longer[order], past_key_values=cache, **then).logits
        close(picked, whole[order])


def test_cropped(model: Any) -> None:
    """Assisted decoding: wrong guesses leave the cache again."""
    tokens, mask = left_padded([20, 14])
    cache = DynamicCache(config=model.config)
    model(tokens, attention_mask=mask, past_key_values=cache)
    model(tiny.ids(2, 5, seed=3), attention_mask=grown(mask, 5), past_key_values=cache)
    cache.crop(-5)
    more = tiny.ids(2, 4, seed=4)
    found = model(more, attention_mask=grown(mask, 4), past_key_values=cache).logits
    expected = model(torch.cat((tokens, more), 1), attention_mask=grown(mask, 4)).logits[:, -4:]
    close(found, expected)


def test_skipped_positions_survive_the_cache(model: Any) -> None:
    tokens = tiny.ids(1, 24)
    positions = torch.tensor([[*range(8), *range(30, 38), *range(100, 108)]])
    mask = torch.ones_like(tokens)
    whole = model(tokens, position_ids=positions, attention_mask=mask).logits
    assert not torch.allclose(whole, model(tokens).logits, atol=1e-3)
    cache, parts = DynamicCache(config=model.config), []
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        out = model(
            tokens[:, part],
            position_ids=positions[:, part],
            attention_mask=mask[:, : start + 8],
            past_key_values=cache,
        )
        parts.append(out.logits)
    close(torch.cat(parts, 1), whole)


def test_packed_sequences_are_separate(model: Any) -> None:
    first, second = tiny.ids(1, 21, seed=1), tiny.ids(1, 12, seed=2)
    positions = torch.cat((torch.arange(21), torch.arange(12)))[None]
    packed = model(torch.cat((first, second), 1), position_ids=positions, use_cache=False).logits
    close(packed, torch.cat((model(first).logits, model(second).logits), 1))


@pytest.mark.parametrize("spec", ["alibi", "t5"])
def test_compiled_in_one_graph(spec: str) -> None:
    """Without a graph break, padded rows included (what padding tokens themselves get is anyone's business)."""
    torch._dynamo.reset()
    model = tiny.llama()
    tokens, mask = left_padded([12, 9])
    try:
        torch.compile(model, fullgraph=True, backend="eager")(tokens, attention_mask=mask, use_cache=False)
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this torch cannot compile transformers' own Llama in one graph either")
    torch._dynamo.reset()
    patch_model(model, spec)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = compiled(tokens, attention_mask=mask, use_cache=False).logits
    close(found[mask.bool()], model(tokens, attention_mask=mask).logits[mask.bool()])


def test_embeddings_instead_of_tokens(model: Any) -> None:
    tokens, mask = left_padded([20, 14])
    embeddings = model.get_input_embeddings()(tokens)
    close(
        model(inputs_embeds=embeddings, attention_mask=mask).logits[:, -1],
        model(tokens, attention_mask=mask).logits[:, -1],
    )


def test_a_cache_of_the_unpatched_model_is_refused() -> None:
    plain, model = tiny.llama(max_position_embeddings=16), tiny.llama(max_position_embeddings=16)
    patch_model(model, ["native", "t5"])
    tokens, more = tiny.ids(1, 10), tiny.ids(1, 3, seed=8)
    cache = plain(tokens, use_cache=True).past_key_values
    with pytest.raises(UnsupportedError, match="this model has seen 0"):
        model(more, past_key_values=cache)
    declare(cache, torch.arange(10)[None])  # a zero table on top of the native encoding: its keys are right
    close(model(more, past_key_values=cache).logits, plain(torch.cat((tokens, more), 1)).logits[:, -3:])


def test_three_dimensional_positions_are_refused(model: Any) -> None:
    with pytest.raises(UnsupportedError, match="3D"):
        model(tiny.ids(1, 4), position_ids=torch.zeros(3, 1, 4, dtype=torch.long))
