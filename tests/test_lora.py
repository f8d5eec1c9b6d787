"""Adapters: what gets one, what is trained whole, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from finetuning import patched

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.training import LoraOptions, add_lora, trained_parameters
from pe_retrofit.training.lora import position_parameters
from pe_retrofit.training.trainer import load_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
OUTSIDE = ("position_encoding", "lm_head", "embed_out", "pooler", "cls.", "embeddings", "embed_tokens")


def adapted(model: Any) -> set[str]:
    return {n.partition(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}


@pytest.mark.parametrize("build", [tiny.llama, tiny.neox, tiny.bert])
@pytest.mark.parametrize("spec", ["t5", ["native", "t5"], "alibi", "fire"])
def test_every_linear_layer_of_the_blocks_and_nothing_else(build: Any, spec: Any) -> None:
    model = add_lora(patched(spec, build), LoraOptions(r=2))
    names = adapted(model)
    per_block = {tiny.llama: 7, tiny.neox: 4, tiny.bert: 6}[build]
    assert len(names) == 2 * per_block
    assert not [n for n in names if any(word in n for word in OUTSIDE)]


@pytest.mark.parametrize(
    ("build", "target", "leaves"),
    [
        (tiny.llama, "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (tiny.llama, "qk", {"q_proj", "k_proj"}),
        (tiny.bert, "qk", {"query", "key"}),
        (tiny.neox, "attention", {"query_key_value", "dense"}),
        (tiny.llama, ["up_proj", "v_proj"], {"up_proj", "v_proj"}),
        (tiny.bert, ["output.dense"], {"dense"}),
    ],
)
def test_targets(build: Any, target: Any, leaves: set[str]) -> None:
    names = adapted(add_lora(patched(build=build), LoraOptions(r=2, target=target)))
    assert {n.rpartition(".")[2] for n in names} == leaves
    assert not [n for n in names if "pooler" in n or "cls." in n]


@pytest.mark.parametrize(
    ("spec", "learned"), [("t5", True), ("alibi", False), ("nope", False), (["native", "t5"], True)]
)
def test_position_parameters_are_always_trained(spec: Any, learned: bool) -> None:
    model = add_lora(patched(spec), LoraOptions(r=2))
    found = position_parameters(model)
    assert bool(found) == learned
    counts = trained_parameters(model)
    assert counts["position"] == sum(p.numel() for p in found.values()) == (256 if learned else 0)
    assert counts["other"] == 0
    assert counts["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.train()
    ids = tiny.ids(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_lengthened_position_table_is_trained() -> None:
    model = tiny.bert()
    patch_model(model, "learned", max_positions=64)
    wrapped = add_lora(model, LoraOptions(r=2))
    assert trained_parameters(wrapped)["position"] == 64 * 32
    ids = tiny.ids(2, 60)
    wrapped(input_ids=ids, labels=ids).loss.backward()
    (table,) = position_parameters(wrapped).values()
    assert table.grad is not None
    assert table.grad[50].any()


@pytest.mark.parametrize("build", [tiny.llama, tiny.neox, tiny.bert])
def test_embeddings_and_norms_where_asked(build: Any) -> None:
    plain = trained_parameters(add_lora(patched(build=build), LoraOptions(r=2)))
    norms = add_lora(patched(build=build), LoraOptions(r=2, norms=True))
    whole = {n for n, p in norms.named_parameters() if p.requires_grad and "modules_to_save" in n}
    of_norms = {n for n in whole if "position_encoding" not in n}
    assert {"llama": 5, "neox": 10, "bert": 10}[build.__name__] == len(of_norms)
    assert all("norm" in n.lower() for n in of_norms)
    assert trained_parameters(norms)["position"] == plain["position"]
    embeddings = trained_parameters(add_lora(patched(build=build), LoraOptions(r=2, embeddings=True)))
    assert embeddings["other"] == (tiny.VOCAB * 32) * (1 if build is tiny.bert else 2)


@pytest.mark.parametrize("variant", ["lora", "dora", "rslora"])
def test_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    options = LoraOptions(r=2, variant=variant, norms=True, embeddings=True)
    model = add_lora(patched(), options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = add_lora(patched(), options)
    load_adapter(again, tmp_path / "adapter_model.safetensors")
    ids = tiny.ids(2, 12)
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    for wrong in (add_lora(patched("alibi"), options), add_lora(patched(), LoraOptions(r=4, norms=True))):
        before = {n: p.clone() for n, p in wrong.named_parameters()}
        with pytest.raises(ConfigError, match="does not fit"):
            load_adapter(wrong, tmp_path / "adapter_model.safetensors")
        assert all(torch.equal(p, before[n]) for n, p in wrong.named_parameters())


def test_variants_are_peft_s() -> None:
    dora = add_lora(patched(), LoraOptions(r=4, variant="dora"))
    assert any("lora_magnitude_vector" in n for n, _ in dora.named_parameters())
    ranked = add_lora(patched(), LoraOptions(r=4, alpha=8, variant="rslora"))
    layer = ranked.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r=0"),
        ({"target": "everything"}, "target='everything' must be one of"),
        ({"target": []}, "target"),
        ({"variant": "vera", "dropout": 1.5}, r"variant='vera'[\s\S]*|dropout=1.5"),
        ({"quantize": "2bit"}, "quantize"),
        ({"rank": 4}, "'rank' is not an option"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraOptions.from_options(options)


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names 'q_prj'.*q_proj"):
        add_lora(patched(), LoraOptions(target=["q_prj"]))
    with pytest.raises(ConfigError, match=r"lora\.target='attention'"):
        add_lora(patched(build=tiny.neox), LoraOptions(target="qk"))
    wrapped = add_lora(patched(), LoraOptions(r=2))
    with pytest.raises(UnsupportedError, match="an adapter already"):
        add_lora(wrapped, LoraOptions(r=2))


def test_quantised_weights_need_bitsandbytes_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install bitsandbytes"):
        add_lora(model, LoraOptions(quantize="4bit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="needs a GPU"):
        add_lora(model, LoraOptions(quantize="8bit"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UnsupportedError, match="loaded so"):
        add_lora(model, LoraOptions(quantize="4bit"))
