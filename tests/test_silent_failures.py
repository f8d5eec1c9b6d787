"""What the libraries around us do without a word: each has a guard here, and a test that fails without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
)

from pe_retrofit import UnsupportedError, patch_model
from pe_retrofit.attention import NAME

# --- an attention argument or implementation that drops the encoding -------------------------------------------------


@pytest.mark.parametrize("layers", [None, [0]], ids=["all layers", "one layer"])
@pytest.mark.parametrize("name", tiny.OURS)
def test_a_foreign_position_bias_is_refused(name: str, layers: Any) -> None:
    """transformers hands ``position_bias=`` down; implementations that do not know it drop it."""
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, layers=layers, **options)
    tokens = tiny.ids(1, 6)
    with pytest.raises(UnsupportedError, match="got 'position_bias', which it would have to ignore"):
        model(tokens, position_bias=torch.zeros(1, 4, 6, 6))
    model(tokens, position_bias=None)


@pytest.mark.parametrize("build", [tiny.neox, tiny.bert])
def test_a_foreign_position_bias_is_refused_by_every_family(build: Any) -> None:
    model = tiny.patched("alibi", build)
    with pytest.raises(UnsupportedError, match="got 'position_bias'"):
        model(tiny.ids(1, 6), position_bias=torch.zeros(1, 4, 6, 6))


@pytest.mark.parametrize("other", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("name", tiny.OURS)
def test_another_attention_implementation_is_refused(name: str, other: str) -> None:
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, **options)
    tokens = tiny.ids(1, 6)
    right = model(tokens).logits
    model.set_attn_implementation(other)
    with pytest.raises(UnsupportedError, match=f"now set to '{other}', which would drop the encoding.*'{NAME}'"):
        model(tokens)
    with pytest.raises(UnsupportedError, match="would drop the encoding"):
        model.generate(tokens, max_new_tokens=2)
    model.set_attn_implementation(NAME)
    assert torch.equal(model(tokens).logits, right)


@pytest.mark.parametrize("build", [tiny.neox, tiny.bert])
def test_another_attention_implementation_is_refused_by_every_family(build: Any) -> None:
    model = tiny.patched("t5", build)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedError, match="which would drop the encoding"):
        model(tiny.ids(1, 6))


def test_a_serving_engine_that_swaps_the_attention_is_refused() -> None:
    """vLLM registers a function of its own, sets its name in the config and ignores what it does not know."""

    def ignorant(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        groups = query.shape[1] != key.shape[1]
        output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups)
        return output.transpose(1, 2), None

    AttentionInterface.register("engine", ignorant)
    model = tiny.patched("alibi")
    model.config._attn_implementation = "engine"
    with pytest.raises(UnsupportedError, match="now set to 'engine', which would drop the encoding"):
        model(tiny.ids(1, 6))
    free = tiny.patched("nope")
    expected = free(tiny.ids(1, 6)).logits
    free.config._attn_implementation = "engine"
    torch.testing.assert_close(free(tiny.ids(1, 6)).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", tiny.FREE)
@pytest.mark.parametrize("other", ["eager", "sdpa"])
def test_rotations_work_on_any_attention(name: str, other: str) -> None:
    spec, options = tiny.FREE[name]
    model = tiny.patched(spec, **options)
    tokens = tiny.ids(2, 3 * tiny.LENGTH)
    expected = model(tokens).logits
    model.set_attn_implementation(other)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


# --- padding ---------------------------------------------------------------------------------------------------------


def test_the_mask_function_is_registered() -> None:
    """Without an entry under the same name transformers makes no mask at all, and padding is attended to."""
    assert NAME in AttentionInterface().valid_keys()
    assert NAME in AttentionMaskInterface().valid_keys()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("build", [tiny.llama, tiny.mistral, tiny.neox, tiny.bert])
@pytest.mark.parametrize("name", ["alibi", "t5", "dynamic"])
def test_padded_batches(name: str, build: Any, side: str) -> None:
    if name == "dynamic" and build is tiny.bert:
        name = "alibi"
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, build, **options)
    lengths = [11, 20, 4]
    tokens, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.long)
    for row, n in enumerate(lengths):
        part = slice(20 - n, 20) if side == "left" else slice(0, n)
        tokens[row, part], mask[row, part] = tiny.ids(1, n, seed=row)[0], 1
    together = model(tokens, attention_mask=mask).logits
    for row in range(3):
        alone = model(tokens[row : row + 1, mask[row].bool()]).logits[0]
        torch.testing.assert_close(together[row, mask[row].bool()], alone, rtol=1e-4, atol=1e-4)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alibi", "t5", "dynamic"])
def test_a_layer_on_its_own_is_refused(name: str) -> None:
    """Code that calls layers itself (pipelines, pruning, quantisation) would lose the positions."""
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, **options)
    hidden = torch.randn(1, 5, 32)
    angles = model.model.rotary_emb(hidden, torch.arange(5)[None])
    for module in (model.model.layers[0], model.model.layers[0].self_attn):
        with pytest.raises(UnsupportedError, match="called without the positions its encoding needs"):
            module(hidden, position_embeddings=angles, attention_mask=None)


def test_dynamic_agrees_with_its_cache() -> None:
    """transformers' own rule does not, which this test shows so that it cannot pass by accident."""
    tokens = tiny.ids(1, 3 * tiny.LENGTH)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ours, theirs = tiny.llama(), tiny.llama(rope_parameters=rope)
    patch_model(ours, "dynamic", factor=2.0)
    with torch.no_grad():
        for model, agrees in ((ours, True), (theirs, False)):
            whole = model(tokens, use_cache=False).logits
            cache = hf.DynamicCache(config=model.config)
            steps = [model(tokens[:, i : i + 1], past_key_values=cache).logits for i in range(tokens.shape[1])]
            assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-3) == agrees


# --- parallelism -----------------------------------------------------------------------------------------------------


@contextmanager
def context_parallel_of_one() -> Iterator[None]:
    """PyTorch's real context parallelism over a single process."""
    from torch import distributed
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.experimental import context_parallel

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        with context_parallel(DeviceMesh("cpu", [0]), buffers=[torch.zeros(1, 8)], buffer_seq_dims=[1]):
            yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", tiny.OURS)
def test_context_parallelism_is_refused(name: str) -> None:
    """It swaps PyTorch's attention for one that sees a part of the keys, and accelerate drops the mask as well."""
    big_modeling = pytest.importorskip("accelerate.big_modeling")
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, **options)
    tokens = tiny.ids(1, 8)
    expected, original = model(tokens).logits, functional.scaled_dot_product_attention
    big_modeling._attach_context_parallel_hooks(model)
    with context_parallel_of_one():
        assert functional.scaled_dot_product_attention is not original
        with pytest.raises(UnsupportedError, match=r"has been replaced, as context parallelism does.*cp_size=1"):
            model(tokens)
    torch.testing.assert_close(model(tokens).logits, expected)


@pytest.mark.parametrize("name", tiny.FREE)
def test_rotations_do_not_mind_context_parallelism(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, options = tiny.FREE[name]
    model = tiny.patched(spec, **options)
    original, calls = functional.scaled_dot_product_attention, []

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", other)
    model(tiny.ids(1, 8))
    assert len(calls) == 2


def test_a_part_of_the_heads_is_refused() -> None:
    """Tensor parallelism gives each process some heads: their slopes would be those of the first ones."""
    model = tiny.patched("alibi", lambda: tiny.llama(num_key_value_heads=4))
    for layer in model.model.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            projection = getattr(attention, name)
            projection.weight = torch.nn.Parameter(projection.weight[:16].detach().clone())
        attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, :16].detach().clone())
    with pytest.raises(UnsupportedError, match="got 2 query heads of the 4 its encoding was made for"):
        model(tiny.ids(1, 6))


@pytest.mark.parametrize(
    ("spec", "options"),
    [("t5", {}), ("alibi", {"learnable": True}), ("learned", {"max_positions": 64}), ("sinusoidal", {})],
    ids=str,
)
def test_learned_tensors_are_read_when_called(spec: Any, options: dict[str, Any]) -> None:
    """FSDP2 puts other parameter objects into the modules after patching; a tensor kept from before would be dead."""
    model = tiny.patched(spec, **options)
    tokens = tiny.ids(1, 20)
    before = model(tokens).logits
    replaced = []
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and any(parameter is p for n, p in encodings_of(model)):
                fresh = torch.nn.Parameter(parameter.detach() * 0.5 + 0.1)
                setattr(module, name, fresh)
                replaced.append(fresh)
    assert replaced
    after = model(tokens).logits
    assert not torch.allclose(before, after, atol=1e-3)
    after.square().mean().backward()
    for parameter in replaced:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def encodings_of(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if ".position_encoding." in f".{n}"]
