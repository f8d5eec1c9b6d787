"""What lies on disk, and what comes back: in this process, in a fresh one, with the plugin and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from matrix import Cell, cells, logits, randomise, tokens
from safetensors.torch import load_file, save_file

from pe_retrofit import ConfigError, UnsupportedError, patch_model, status, unpatch_model
from pe_retrofit.marking import MODEL_TYPE, NEEDED

AUTO = {
    "LlamaModel": "AutoModel",
    "LlamaForCausalLM": "AutoModelForCausalLM",
    "LlamaForSequenceClassification": "AutoModelForSequenceClassification",
    "LlamaForTokenClassification": "AutoModelForTokenClassification",
    "LlamaForQuestionAnswering": "AutoModelForQuestionAnswering",
    "GPTNeoXModel": "AutoModel",
    "GPTNeoXForCausalLM": "AutoModelForCausalLM",
    "GPTNeoXForSequenceClassification": "AutoModelForSequenceClassification",
    "BertModel": "AutoModel",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
}
SCALINGS = {
    "linear": {"factor": 2.0},
    "ntk": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0},
    "longrope": {"factor": 2.0},
    "llama3": {"factor": 2.0},
    "partial_rope": {"p": 0.5},
}


def fresh(class_name: str) -> Any:
    """A tiny model with any head."""
    base = {"Llama": tiny.llama, "GPTNeo": tiny.neox, "BertFo": tiny.bert, "BertMo": tiny.bert}[
        class_name[:6].rstrip("MF")
    ]
    config = base().config
    torch.manual_seed(1)
    return getattr(hf, class_name)(config).eval()


def saved_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a fresh process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)


def first(output: Any) -> torch.Tensor:
    return output[0]


HOSTS = ("llama", "gemma3", "smollm3", "stablelm", "gpt_neox", "bert", "roberta", "distilbert", "bert_decoder")


@pytest.mark.parametrize("cell", cells(lambda cell: cell.host.name in HOSTS))
def test_every_encoding_comes_back_with_equal_logits(cell: Cell, tmp_path: Path) -> None:
    model = cell.patched()
    ids = tokens(1, cell.length if not cell.encoding.late or status(model).patches[0].native is False else 20)
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path)
    auto = hf.AutoModelForCausalLM if cell.host.causal else hf.AutoModelForMaskedLM
    assert torch.equal(logits(auto.from_pretrained(tmp_path).eval(), ids), wanted)


@pytest.mark.parametrize("class_name", AUTO)
@pytest.mark.parametrize("encoding", ["alibi", "native+t5"])
def test_every_head_comes_back(class_name: str, encoding: str, tmp_path: Path) -> None:
    model = fresh(class_name)
    patch_model(model, encoding.split("+"))
    randomise(model)
    ids = tiny.ids(1, 12)
    inputs = {"input_ids": ids[:, None].repeat(1, 2, 1) if class_name.endswith("MultipleChoice") else ids}
    with torch.no_grad():
        wanted = first(model(**inputs))
        model.save_pretrained(tmp_path)
        again = getattr(hf, AUTO[class_name]).from_pretrained(tmp_path).eval()
        assert (first(again(**inputs)) - wanted).abs().max() < 1e-6  # matrix products depend on memory alignment
    assert type(again).__name__ == class_name
    assert saved_config(tmp_path)["architectures"] == [class_name]
    assert status(again).patched


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_plain_models(name: str, tmp_path: Path) -> None:
    model = tiny.llama()
    before = dict(model.config.rope_parameters)
    patch_model(model, name, **SCALINGS[name])
    model.save_pretrained(tmp_path)
    written = saved_config(tmp_path)
    assert written["model_type"] == "llama"
    assert "position_encoding" not in written
    assert written["rope_parameters"] != before
    assert set(load_file(tmp_path / "model.safetensors")) == set(tiny.llama().state_dict())
    ids = tiny.ids(1, tiny.LENGTH)
    torch.save(ids, tmp_path / "ids.pt")
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
with torch.no_grad():
    torch.save(model(torch.load({str(tmp_path / "ids.pt")!r})).logits, {str(tmp_path / "out.pt")!r})
assert "pe_retrofit" not in sys.modules
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert (torch.load(tmp_path / "out.pt") - model(ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize(("build", "loader"), [(tiny.llama, "LlamaForCausalLM"), (tiny.bert, "BertForMaskedLM")])
def test_without_the_plugin_loading_fails_loudly(build: Any, loader: str, tmp_path: Path) -> None:
    model = build()
    patch_model(model, "alibi")
    model.save_pretrained(tmp_path)
    auto = AUTO[loader]
    for name, word in ((auto, MODEL_TYPE), (loader, NEEDED)):
        done = run(f"from transformers import {name}; {name}.from_pretrained({str(tmp_path)!r})")
        assert done.returncode != 0
        assert word in done.stderr


def test_with_the_plugin_a_fresh_process_gives_equal_logits(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, ["native", "t5"])
    randomise(model)
    model.save_pretrained(tmp_path)
    ids = tiny.ids(2, 20)
    torch.save(ids, tmp_path / "ids.pt")
    code = f"""
import pe_retrofit, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
with torch.no_grad():
    torch.save(model(torch.load({str(tmp_path / "ids.pt")!r})).logits, {str(tmp_path / "out.pt")!r})
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), model(ids).logits)


def test_the_file_holds_the_host_as_it_was_and_memory_the_host_type(tmp_path: Path) -> None:
    model = tiny.llama()
    original = model.config.to_dict()
    patch_model(model, [{"name": "yarn", "factor": 2.0}, {"name": "alibi"}])
    assert model.config.model_type == "llama"
    assert model.config.to_dict()["model_type"] == "llama"
    assert model.config.max_position_embeddings == 2 * original["max_position_embeddings"]
    model.save_pretrained(tmp_path)
    written = saved_config(tmp_path)
    assert written["model_type"] == MODEL_TYPE
    assert written["max_position_embeddings"] == original["max_position_embeddings"]
    block = written["position_encoding"]
    assert block["host_model_type"] == "llama"
    assert block["host"]["rope_parameters"] == original["rope_parameters"]
    assert [e["name"] for e in block["patches"][0]["encodings"]] == ["yarn", "alibi"]
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == model.config.rope_parameters
    assert again.config.max_position_embeddings == model.config.max_position_embeddings


def test_learned_tensors_lie_beside_the_untouched_ones(tmp_path: Path) -> None:
    model = tiny.llama()
    before = set(model.state_dict())
    patch_model(model, "t5")
    model.save_pretrained(tmp_path)
    added = set(load_file(tmp_path / "model.safetensors")) - before
    layers = model.config.num_hidden_layers
    assert added == {f"model.layers.{i}.self_attn.position_encoding.t5.weight" for i in range(layers)}


def test_a_loaded_model_unpatches_to_the_original(tmp_path: Path) -> None:
    model = tiny.llama()
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        wanted = model(ids).logits
        patch_model(model, "t5")
        model.save_pretrained(tmp_path)
        again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert not torch.equal(again(ids).logits, wanted)
        unpatch_model(again)
        assert torch.equal(again(ids).logits, wanted)
        again.save_pretrained(tmp_path / "plain")
    assert saved_config(tmp_path / "plain")["model_type"] == "llama"


def test_sharded_checkpoints(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "t5")
    randomise(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.llama().to(dtype)
    patch_model(model, "t5")
    randomise(model)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        assert again.dtype == dtype
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved T5 model."""
    model = tiny.llama()
    patch_model(model, "t5")
    model.save_pretrained(tmp_path)
    return tmp_path


def test_missing_learned_tensors_are_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if ".1." not in k or "position_encoding" not in k}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"layers\.1\.self_attn\.position_encoding"):
        hf.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schema_version": 99}, "Upgrade"),
        ({"schema_version": "1"}, "schema_version"),
        ({"schema_version": None}, "schema_version"),
        ({"host_model_type": "pe_retrofit"}, "host_model_type"),
        ({"host_model_type": "no_such_model"}, "host_model_type"),
        ({"host_model_type": ["llama"]}, "host_model_type"),
        ({"patches": []}, "patches"),
        ({"patches": "t5"}, "patches"),
        ({"patches": [{"encodings": "t5"}]}, "encodings"),
        ({"patches": [{"encodings": [{"name": "t5", "num_buckets": 10**12}]}]}, "num_buckets"),
        ({"patches": [{"encodings": [{"name": "t5", "num_buckets": -4}]}]}, "num_buckets"),
        ({"patches": [{"encodings": [{"name": "t5", "code": "os.system"}]}]}, "code"),
        ({"patches": [{"encodings": [{"name": "tee5"}]}]}, "tee5"),
        ({"patches": [{"encodings": [{"name": "t5"}], "layers": [10**9]}]}, "out of range"),
        ({"patches": [{"encodings": [{"name": "t5"}]}] * 5000}, "patches"),
        ({"host": {"hidden_size": 10**9}}, "host"),
    ],
)
def test_hostile_blocks_are_refused_by_name(folder: Path, change: dict[str, Any], word: str) -> None:
    written = saved_config(folder)
    written["position_encoding"].update(change)
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises((ConfigError, UnsupportedError, ValueError), match=word):
        hf.AutoModelForCausalLM.from_pretrained(folder)


def test_a_config_without_its_block_is_refused(folder: Path) -> None:
    written = saved_config(folder)
    del written["position_encoding"]
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="position_encoding"):
        hf.AutoModelForCausalLM.from_pretrained(folder)


def test_an_attention_that_cannot_carry_the_encoding_is_refused_on_load(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="flex_attention"):
        hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="flex_attention")


@pytest.mark.parametrize(
    ("spec", "count"),
    [(["native", "t5"], 2), (["native", "sinusoidal"], 2), ([{"name": "alibi", "learnable": True}], 2), ("fope", 4)],
)
def test_lora_on_a_patched_model_trains_and_saves_what_is_learned(spec: Any, count: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.llama()
    patch_model(model, spec)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["position_encoding"])
    wrapped = peft.get_peft_model(model, lora)
    ids = tiny.ids(2, 16)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    wrapped.save_pretrained(tmp_path)
    tables = [v for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if "position_encoding" in k]
    assert len(tables) == count
    assert all(table.any() for table in tables)
    base = tiny.llama()
    patch_model(base, spec)
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        wanted = wrapped(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, wanted)
        with again.disable_adapter():
            assert not torch.equal(again(input_ids=ids).logits, wanted)


def test_a_model_that_looks_like_gguf_saves_after_patching(tmp_path: Path) -> None:
    model = tiny.llama()
    model.is_quantized, model.quantization_method = True, "gguf"
    model.hf_quantizer = object()
    model.config.quantization_config = {"quant_method": "gguf"}
    patch_model(model, "yarn", factor=2.0)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in saved_config(tmp_path)
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path).config.rope_parameters["rope_type"] == "yarn"
