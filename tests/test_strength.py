"""A patch partly in force, or not at all: over the whole matrix, and in between against numbers worked out here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from brute_strength import alibi_bias, bert, llama, t5_bias
from matrix import ENCODINGS, HOSTS, Cell, cached_logits, cells, distance, encoder_state, logits, tokens
from tiny import bert as tiny_bert
from tiny import ids
from tiny import llama as tiny_llama

from pe_retrofit import ConfigError, UnsupportedError, original, patch_model, set_strength, strength_of, unpatch_model
from pe_retrofit.sites import InputEncoding


@pytest.mark.parametrize("cell", cells())
def test_original_is_the_unpatched_model(cell: Cell) -> None:
    """Bit by bit, with padding too; and at strength 1 the patched one."""
    stock, model = cell.host.fresh(), cell.patched()
    some = tokens(2, 20)
    mask = torch.ones_like(some)
    mask[0, :7] = 0
    before = logits(model, some, attention_mask=mask)
    with original(model):
        assert torch.equal(logits(model, some, attention_mask=mask), logits(stock, some, attention_mask=mask))
    assert torch.equal(logits(model, some, attention_mask=mask), before)


def reason(cell: Cell) -> str | None:
    """Why an encoding has nothing in between, in words the error must say; None where it has."""
    name = cell.encoding.name
    if cell.extends_table:
        return "has so many rows"
    if cell.encoding.pieces:
        return "moves pairs of tokens"
    if "window" in name or name in ("rnope", "swan"):
        return "masks a pair"
    return None


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "gemma3", "bert")))
def test_between(cell: Cell) -> None:
    """Every encoding either is something between, or says that it has nothing; the way back is exact."""
    stock, model = cell.host.fresh(), cell.patched()
    some = tokens(1, 20)
    before = logits(model, some)
    if (words := reason(cell)) is not None:
        with pytest.raises(UnsupportedError, match=words):
            set_strength(model, 0.5)
        assert strength_of(model) == 1.0
    else:
        set_strength(model, 1e-6)
        near_stock = distance(logits(model, some), logits(stock, some))
        set_strength(model, 1 - 1e-6)
        near_patched = distance(logits(model, some), before)
        assert near_stock < 2e-4
        assert near_patched < 2e-4
        set_strength(model, 0.5)
        half = logits(model, some)
        if not torch.equal(before, logits(stock, some)):
            with original(model):
                assert torch.equal(logits(model, some), logits(stock, some))
            assert torch.equal(logits(model, some), half)
    set_strength(model, 0)
    assert torch.equal(logits(model, some), logits(stock, some))
    set_strength(model, 1)
    assert torch.equal(logits(model, some), before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "stablelm", "bert", "bert_decoder", "bert_cross"])
def test_attention_of_before(name: str, implementation: str) -> None:
    """The model's own attention, with its weights where it gives them, with and without a cache."""
    stock = HOSTS[name].fresh()
    if name in ("gemma2", "gpt_oss") and implementation == "sdpa":
        pytest.skip("the model refuses sdpa")
    stock.set_attn_implementation(implementation)
    model = ENCODINGS["t5"].patch(copy.deepcopy(stock))
    some = tokens(2, 18)
    with original(model):
        for inputs in ({}, {"attention_mask": (some > 20).long()}):
            assert torch.equal(logits(model, some, **inputs), logits(stock, some, **inputs))
        if HOSTS[name].causal:
            assert torch.equal(cached_logits(model, some, [9, 1, 8]), cached_logits(stock, some, [9, 1, 8]))
        state = encoder_state(model, some, {})
        found, wanted = (m(input_ids=some, output_attentions=True, **state).attentions for m in (model, stock))
        for one, other in zip(found or (), wanted or (), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("strength", [0.25, 0.8])
def test_llama_against_brute_force(strength: float) -> None:
    """ALiBi, T5, NoPE (with temperatures) and yarn on a model written out here, in float64."""
    some = ids(2, 24)
    for spec, options in (
        ("alibi", {}),
        ("t5", {}),
        ("nope", {}),
        ("nope", {"temperature": 0.5, "factor": 3.0, "attn_scale": 0.2, "floor_scale": 5}),
        ("yarn", {"factor": 4.0}),
        (["native", "alibi"], {}),
    ):
        stock = tiny_llama().double()
        own = stock.model.rotary_emb.inv_freq.clone()
        model = patch_model(copy.deepcopy(stock), copy.deepcopy(spec), **options)
        new, own_factor, factor, bias, heat = torch.zeros_like(own), 1.0, 1.0, None, 1.0
        if spec == "yarn":
            new, factor = model.model.rotary_emb.inv_freq, model.model.rotary_emb.attention_scaling
            assert factor > 1
        if isinstance(spec, list):
            new = own
        if "alibi" in spec:
            bias = alibi_bias(4, 24)
        if spec == "t5":
            tables = [layer.self_attn.position_encoding["t5"].weight for layer in model.model.layers]
            with torch.no_grad():
                for table in tables:
                    table.normal_(generator=torch.Generator().manual_seed(4))
            bias = [t5_bias(table, 24) for table in tables]
        if options.get("temperature"):
            at = torch.arange(24, dtype=torch.float64)
            growing = 1 + 0.2 * torch.log1p(((at + 1) / 5).floor())
            heat = (1 + strength * 0.5 * torch.log(torch.tensor(3.0)).item()) * (1 + strength * (growing - 1))[:, None]
        set_strength(model, strength)
        wanted = llama(
            stock,
            some,
            inv_freq=(1 - strength) * own.double() + strength * new.double(),
            factor=(1 - strength) * own_factor + strength * factor,
            bias=None if bias is None else [strength * b for b in (bias if isinstance(bias, list) else [bias] * 2)],
            heat=heat,
        )
        assert distance(logits(model, some), wanted) < 1e-6, spec


def test_bert_against_brute_force() -> None:
    """BERT to ALiBi: a fading table and a growing bias; with a sinusoid in place of the table."""
    some, strength = ids(2, 20), 0.3
    stock = tiny_bert().double()
    table = stock.bert.embeddings.position_embeddings.weight
    model = set_strength(patch_model(copy.deepcopy(stock), "alibi"), strength)
    wanted = bert(stock, some, table[:20] * (1 - strength), strength * alibi_bias(4, 20))
    assert distance(logits(model, some), wanted) < 1e-7
    model = set_strength(patch_model(copy.deepcopy(stock), "sinusoidal"), strength)
    encoding = next(m for m in model.modules() if isinstance(m, InputEncoding))
    rows = (1 - strength) * table[:20] + strength * encoding(torch.arange(20))
    assert distance(logits(model, some), bert(stock, some, rows, None)) < 1e-7


@pytest.mark.parametrize(
    "name", ["yarn", "nope", "t5", "native+shaw", "shaw", "dynamic", "xpos", "fope", "native+conv"]
)
def test_cached_is_uncached(name: str) -> None:
    model = set_strength(ENCODINGS[name].patch(HOSTS["llama"].fresh().double()), 0.5)
    some = tokens(2, 40)
    assert distance(cached_logits(model, some, [20, 1, 1, 18]), logits(model, some)) < 1e-6


def test_caches_keep_their_strength() -> None:
    for spec in ("alibi", "nope", "yarn"):
        model = ENCODINGS[spec].patch(HOSTS["llama"].fresh())
        some = tokens(1, 12)
        with original(model), torch.no_grad():
            cache = model(input_ids=some, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match="filled while the original encoding was in force, and now the new"):
            model(input_ids=some[:, :1], past_key_values=cache)
        cache = model(input_ids=some, use_cache=True).past_key_values
        with original(model), pytest.raises(UnsupportedError, match="new encoding was in force, and now the original"):
            model(input_ids=some[:, :1], past_key_values=cache)
        cache.reset()


def gradients(model: Any, some: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=some, labels=some).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {n: g for n, g in found.items() if ".position_encoding." not in n}


@pytest.mark.parametrize("name", ["alibi", "nope", "yarn", "native+shaw", "self_extend", "dynamic", "swan"])
def test_gradients_and_recomputation(name: str) -> None:
    """Gradients of the original are those of the unpatched model, though the backward pass comes after the block."""
    stock, model = HOSTS["llama"].fresh(), ENCODINGS[name].patch(HOSTS["llama"].fresh())
    some = tokens(2, 20)
    wanted = gradients(stock.train(), some)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with original(model):
        loss = model(input_ids=some, labels=some).loss
    loss.backward()  # the patch is in force again, and the layers are computed again
    found = {n: p.grad for n, p in model.named_parameters() if n in wanted}
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert torch.equal(found[key], gradient), key
    patched = gradients(model, some)
    model.gradient_checkpointing_disable()
    plain = gradients(model, some)
    assert all(torch.allclose(patched[key], plain[key], atol=1e-5) for key in plain)
    assert any(not torch.allclose(plain[key], wanted[key], atol=1e-4) for key in plain) or name == "dynamic"


def test_gradient_to_a_learned_bias() -> None:
    """Half a bias has half its gradient, at the same logits."""
    half, whole = (ENCODINGS["native+t5"].patch(HOSTS["llama"].fresh().double()) for _ in range(2))
    set_strength(half, 0.5)
    with torch.no_grad():
        for layer in whole.model.layers:
            layer.self_attn.position_encoding["t5"].weight.mul_(0.5)
    some = tokens(2, 20)
    assert distance(logits(half, some), logits(whole, some)) < 1e-9
    for model in (half, whole):
        model(input_ids=some, labels=some).loss.backward()
    for one, other in zip(half.model.layers, whole.model.layers, strict=True):
        found, wanted = (layer.self_attn.position_encoding["t5"].weight.grad for layer in (one, other))
        torch.testing.assert_close(found, 0.5 * wanted)


def test_models_are_independent() -> None:
    model = ENCODINGS["alibi"].patch(HOSTS["llama"].fresh())
    set_strength(model, 0.5)
    other = copy.deepcopy(model)
    some = tokens(1, 12)
    half = logits(model, some)
    set_strength(other, 0.0)
    assert torch.equal(logits(other, some), logits(HOSTS["llama"].fresh(), some))
    assert torch.equal(logits(model, some), half)
    with original(model):
        set_strength(other, 1.0)
        assert strength_of(model) == 0.0
    assert (strength_of(model), strength_of(other)) == (0.5, 1.0)


def test_an_error_leaves_the_strength() -> None:
    model = ENCODINGS["nope"].patch(HOSTS["llama"].fresh())
    set_strength(model, 0.7)
    with pytest.raises(ZeroDivisionError), original(model):
        raise ZeroDivisionError
    assert strength_of(model) == 0.7


def test_under_peft() -> None:
    """Adapter off and patch off is the stock model, also where the position parameters are wrapped."""
    from peft import LoraConfig, get_peft_model

    stock = HOSTS["llama"].fresh()
    model = ENCODINGS["t5"].patch(copy.deepcopy(stock))
    lora = LoraConfig(
        target_modules=["q_proj", "k_proj"], modules_to_save=["position_encoding"], init_lora_weights=False
    )
    model = get_peft_model(model, lora).eval()
    some = tokens(2, 20)
    before = logits(model, some)
    with model.disable_adapter(), original(model):
        assert torch.equal(logits(model, some), logits(stock, some))
    assert torch.equal(logits(model, some), before)
    with original(model):
        assert not torch.equal(logits(model, some), logits(stock, some)), "the adapter stays on"
    set_strength(model, 0.5)
    assert not torch.equal(logits(model, some), before)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("spec", ["sinusoidal", "learned"])
def test_a_table_that_peft_trains(spec: str, early: bool) -> None:
    """peft copies the table, before or after the strength was first asked for."""
    from peft import LoraConfig, get_peft_model

    stock = HOSTS["bert"].fresh()
    model = ENCODINGS[spec].patch(copy.deepcopy(stock))
    some = tokens(2, 20)
    if early:
        with original(model):
            logits(model, some)
    model = get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["position_embeddings"])).eval()
    before = logits(model, some)
    with original(model):
        assert torch.equal(logits(model, some), logits(stock, some))
        with model.disable_adapter():
            assert torch.equal(logits(model, some), logits(stock, some))
    assert torch.equal(logits(model, some), before)


def test_compiled() -> None:
    """Code compiled before the first change of strength, and after, follows each change."""
    stock = HOSTS["llama"].fresh()
    model = ENCODINGS["alibi"].patch(copy.deepcopy(stock))
    compiled, some = torch.compile(model, backend="eager"), tokens(1, 12)
    before = logits(compiled, some)
    with original(model):
        assert torch.equal(logits(compiled, some), logits(stock, some))
    assert torch.equal(logits(compiled, some), before)
    for strength in (0.5, 0.7):
        set_strength(model, strength)
        assert distance(logits(compiled, some), logits(model, some)) < 1e-5


def test_a_table_that_grew() -> None:
    stock = HOSTS["bert"].fresh()
    model = patch_model(copy.deepcopy(stock), "learned", max_positions=160)
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.add_(1.0)  # trained since
    some = tokens(2, 20)
    with original(model):
        assert torch.equal(logits(model, some), logits(stock, some))
        with pytest.raises((IndexError, RuntimeError)):
            logits(model, tokens(1, 60))


def test_unpatching_and_patching_again() -> None:
    stock = HOSTS["llama"].fresh()
    model = ENCODINGS["alibi"].patch(copy.deepcopy(stock))
    set_strength(model, 0.5)
    with pytest.raises(UnsupportedError, match=r"patched at strength 0\.5"):
        patch_model(model, "nope")
    unpatch_model(model)
    some = tokens(1, 12)
    assert torch.equal(logits(model, some), logits(stock, some))
    assert all(not any("position_encoding" in key for key in vars(module)) for module in model.modules())
    with original(model):
        assert torch.equal(logits(model, some), logits(stock, some))
    patch_model(model, "nope")
    assert strength_of(model) == 1.0


def test_saving(tmp_path: Any) -> None:
    """A model half-way is not what its config says."""
    model = set_strength(ENCODINGS["alibi"].patch(HOSTS["llama"].fresh()), 0.5)
    with pytest.raises(UnsupportedError, match=r"saved at strength 0\.5"):
        model.save_pretrained(tmp_path / "half")
    assert not list((tmp_path / "half").glob("*.safetensors"))
    model.state_dict()
    set_strength(model, 1.0).save_pretrained(tmp_path / "whole")


def test_wrong_input() -> None:
    model = ENCODINGS["alibi"].patch(HOSTS["llama"].fresh())
    for value in (-0.1, 1.5, float("nan"), True, "half", None):
        with pytest.raises(ConfigError, match="from 0 \\(original\\) to 1"):
            set_strength(model, value)  # type: ignore[arg-type]
    for function in (lambda m: set_strength(m, 0.5), strength_of):
        with pytest.raises(UnsupportedError, match="not patched"):
            function(HOSTS["llama"].fresh())


def test_an_attention_that_cannot_be_had_again() -> None:
    stock = HOSTS["llama"].fresh()
    stock.config._attn_implementation = "flex_attention"
    model = patch_model(stock, "alibi", verify=False)
    with pytest.raises(UnsupportedError, match="ran on 'flex_attention' before"), original(model):
        pass


def test_brute_force_is_the_model() -> None:
    """What the tests above compare with is right where nothing is changed."""
    some = ids(2, 24)
    stock = tiny_llama().double()
    plain = llama(stock, some, inv_freq=stock.model.rotary_emb.inv_freq.double(), factor=1.0, bias=None, heat=1.0)
    assert distance(logits(stock, some), plain) < 1e-6
    encoder = tiny_bert().double()
    rows = encoder.bert.embeddings.position_embeddings.weight[:20]
    assert distance(logits(encoder, some[:, :20]), bert(encoder, some[:, :20], rows, None)) < 1e-9
