"""NoPE's temperature by query position against Llama 4's attention and against the formula in plain loops."""

from __future__ import annotations

import copy
import math

import brute
import pytest
import tiny
import torch
import transformers as hf
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

from pe_retrofit import NopeConfig, patch_model, status, unpatch_model
from pe_retrofit.attention.interface import attention_forward
from pe_retrofit.attention.scale import LogitScale
from pe_retrofit.positions import KEYWORD

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 1,
    "vocab_size": tiny.VOCAB,
}


def llama4_attention(llama: hf.LlamaForCausalLM, scale: float, floor: int) -> Llama4TextAttention:
    """Llama 4's attention of a NoPE layer with the weights of a Llama's first layer."""
    config = hf.Llama4TextConfig(
        **SIZES,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_local_experts=1,
        no_rope_layers=[0],
        attn_temperature_tuning=True,
        attn_scale=scale,
        floor_scale=floor,
        attn_implementation="eager",
        pad_token_id=0,
    )
    attention = Llama4TextAttention(config, layer_idx=0).eval()
    missing, unexpected = attention.load_state_dict(llama.model.layers[0].self_attn.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return attention


@pytest.mark.parametrize(("scale", "floor"), [(0.1, 8), (0.7, 5), (2.0, 1)])
@torch.no_grad()
def test_llama4(scale: float, floor: int) -> None:
    """The attention of a patched Llama equals that of Llama 4's NoPE layers, weights and input the same."""
    model = tiny.llama(num_hidden_layers=1)
    theirs = llama4_attention(model, scale, floor)
    patch_model(model, "nope", attn_scale=scale, floor_scale=floor)
    seen: list[tuple] = []
    ours = model.model.layers[0].self_attn
    ours.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True)
    ours.register_forward_hook(lambda m, a, output: seen.append(output[0]))
    model(input_ids=tiny.ids(2, 40))
    hidden, found = seen
    mask = torch.full((40, 40), float("-inf")).triu(1)[None, None]
    wanted, _ = theirs(hidden, position_embeddings=None, attention_mask=mask)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    plain, _ = llama4_attention(model_without(model), 0.0, floor)(hidden, position_embeddings=None, attention_mask=mask)
    assert (found - plain).abs().max() > 1e-3 * wanted.abs().max(), "the temperature is not seen"


def model_without(model: hf.LlamaForCausalLM) -> hf.LlamaForCausalLM:
    """A copy of a patched model, unpatched."""
    return unpatch_model(copy.deepcopy(model))


@pytest.mark.parametrize("floor", [1, 3, 7, 8192])
def test_factor_by_hand(floor: int) -> None:
    positions = [0, 1, 2, 5, 6, 7, 8190, 8191, 8192, 81919, 131_071, 2**24 + 1]
    found = LogitScale(1.0, 0.1, floor).at(torch.tensor(positions), torch.float64).tolist()
    assert found == pytest.approx([1 + 0.1 * math.log(1 + (p + 1) // floor) for p in positions], rel=1e-14)


def test_attention_by_hand() -> None:
    """Queries at scattered positions, in float64 loops; also with a common temperature and beside a bias."""
    scale = LogitScale(1.5, 0.4, 6)
    places = torch.tensor([[0, 4, 5, 6, 11, 12, 40]])
    alibi = tiny.alibi()
    call = tiny.make_call(biases=[alibi], queries=7, query_positions=places, key_positions=places)
    slopes = brute.alibi_slopes(4)
    p = places[0].tolist()
    own = [1 + 0.4 * math.log(1 + (i + 1) // 6) for i in p]
    scaled = call.query * torch.tensor(own, dtype=torch.float64)[None, None, :, None]
    wanted = brute.attention(
        scaled, call.key, call.value, 8**-0.5 * 1.5, lambda h, i, j: -slopes[h] * (p[i] - p[j]), lambda n, i, j: j <= i
    )
    module = torch.nn.Module()
    module.position_encoding = torch.nn.ModuleDict({"nope": scale, "alibi": alibi})
    more = {KEYWORD: call.positions}
    found, _ = attention_forward(module, call.query, call.key, call.value, tiny.causal_mask(7), scaling=8**-0.5, **more)
    assert (found.transpose(1, 2) - wanted).abs().max() < 1e-12


def test_floor_is_the_trained_length_by_default() -> None:
    ids = tiny.ids(1, 3 * tiny.LENGTH)
    with torch.no_grad():
        given = patch_model(tiny.llama(), "nope", attn_scale=0.3, floor_scale=tiny.LENGTH)(input_ids=ids).logits
        default = patch_model(tiny.llama(), "nope", attn_scale=0.3)(input_ids=ids).logits
        plain = patch_model(tiny.llama(), "nope")(input_ids=ids).logits
    assert torch.equal(given, default)
    assert torch.allclose(default[:, : tiny.LENGTH - 1], plain[:, : tiny.LENGTH - 1], atol=1e-5)
    assert (default - plain)[:, tiny.LENGTH :].abs().max() > 1e-3


def test_status_says_that_positions_matter() -> None:
    assert status(patch_model(tiny.llama(), "nope")).supports["shift of all positions"] == "changes nothing"
    growing = patch_model(tiny.llama(), NopeConfig(attn_scale=0.1))
    assert status(growing).supports["shift of all positions"] == "changes the output"
