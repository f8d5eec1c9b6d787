"""Adapter-only checkpoints: what they hold, what they load onto, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.hub.adapter_loading import load_adapter
from pe_retrofit.hub.adapters import read_marker, save_adapter
from pe_retrofit.hub.base_identity import identify
from pe_retrofit.training import LoraOptions, add_lora

peft = pytest.importorskip("peft")

WEIGHTS, CONFIG, MARKER = "adapter_model.safetensors", "adapter_config.json", "position_encoding.json"
SPECS: dict[str, Any] = {
    "alibi": "alibi",  # nothing learned
    "t5": ["native", "t5"],  # learned
    "nope": "nope",  # no module of its own
    "layers": {"1": "alibi", "rest": "native"},
}
IDS = tiny.ids(2, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model in a folder."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    tiny.llama().save_pretrained(folder)
    return folder


def load(base: Path, **more: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base, **more).eval()


def adapted(base: Path, spec: Any, **options: Any) -> Any:
    """Patched and wrapped, with an adapter and position parameters that do something."""
    model = load(base)
    if spec is not None:
        patch_model(model, spec, **options)
    wrapped = add_lora(model, LoraOptions(r=2, target="qk"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Each adapter's folder, and the logits it gave."""
    made = {}
    for name, spec in SPECS.items():
        wrapped = adapted(base, spec)
        made[name] = save_adapter(wrapped, tmp_path_factory.mktemp("adapters") / name), logits(wrapped)
    return made


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(input_ids=IDS).logits


def copied(saved: Any, name: str, to: Path) -> Path:
    shutil.copytree(saved[name][0], to / name)
    return to / name


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = CONFIG) -> Path:
    """The folder, after a change of one of its JSON files."""
    found = json.loads((folder / file).read_text())
    change(found)
    (folder / file).write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize("name", SPECS)
def test_an_adapter_loads_onto_the_base_it_names(name: str, saved: Any) -> None:
    folder, expected = saved[name]
    assert torch.equal(logits(load_adapter(folder)), expected)


@pytest.mark.parametrize("name", SPECS)
def test_an_unpatched_base_is_refused_and_patched_when_asked(name: str, saved: Any, base: Path) -> None:
    folder, expected = saved[name]
    model = load(base)
    with pytest.raises(UnsupportedError, match=r"model is not patched.*patch=True"):
        load_adapter(folder, model)
    assert torch.equal(logits(load_adapter(folder, model, patch=True)), expected)


@pytest.mark.parametrize("name", SPECS)
def test_plain_peft_refuses_an_unpatched_base(name: str, saved: Any, base: Path) -> None:
    with pytest.raises(ValueError, match=r"Target modules \{'patched_by_pe_retrofit_.*'\} not found in the base model"):
        peft.PeftModel.from_pretrained(load(base), saved[name][0])
    with pytest.raises(ValueError, match="patched_by_pe_retrofit"):
        peft.AutoPeftModelForCausalLM.from_pretrained(saved[name][0])


@pytest.mark.parametrize("name", SPECS)
def test_plain_peft_loads_onto_a_base_that_is_patched_the_same_way(
    name: str, saved: Any, base: Path, tmp_path: Path
) -> None:
    folder, expected = saved[name]
    again = peft.PeftModel.from_pretrained(patch_model(load(base), SPECS[name]), folder)
    assert torch.equal(logits(again), expected)
    assert torch.equal(logits(load_adapter(save_adapter(again, tmp_path / "again"))), expected)
    torch.testing.assert_close(logits(again.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("load_it", [load_adapter, lambda folder, base: peft.PeftModel.from_pretrained(base, folder)])
def test_another_patch_is_refused(load_it: Any, saved: Any, base: Path) -> None:
    with pytest.raises(ValueError, match=r"was trained with .*alibi.* patched with .*kerple|patched_by_pe_retrofit"):
        load_it(saved["alibi"][0], patch_model(load(base), "kerple"))


def test_auto_peft_loads_a_base_that_was_saved_patched(base: Path, tmp_path: Path) -> None:
    patch_model(load(base), "t5").save_pretrained(tmp_path / "patched")
    wrapped = adapted(tmp_path / "patched", None)
    folder = save_adapter(wrapped, tmp_path / "lora")
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(folder)), logits(wrapped))
    assert torch.equal(logits(load_adapter(folder)), logits(wrapped))


def test_native_scalings_accept_a_plain_model_with_the_same_config(base: Path, tmp_path: Path) -> None:
    wrapped = adapted(base, "yarn", factor=2.0)
    folder, expected = save_adapter(wrapped, tmp_path / "lora"), logits(wrapped)
    assert torch.equal(logits(load_adapter(folder)), expected)
    patch_model(load(base), "yarn", factor=2.0).save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(load_adapter(folder, load(tmp_path / "plain"))), expected)
    patch_model(load(base), "yarn", factor=4.0).save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedError, match=r"trained_length is 128, and the adapter's was 32|not patched"):
        load_adapter(folder, load(tmp_path / "other"))


def test_another_model_is_refused_with_what_differs(saved: Any, base: Path) -> None:
    folder = saved["alibi"][0]
    with pytest.raises(UnsupportedError) as refusal:
        load_adapter(folder, tiny.llama(num_key_value_heads=4, vocab_size=70), patch=True)
    assert "kv_heads is 4, and the adapter's was 2" in str(refusal.value)
    assert "vocabulary is 70, and the adapter's was 61" in str(refusal.value)
    other = load(base)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    with pytest.raises(UnsupportedError, match=r"weights are not the adapter's base \(1 of 16 .*up_proj.*fingerprint"):
        load_adapter(folder, other, patch=True)
    with pytest.raises(UnsupportedError, match="model_type is 'mistral', and the adapter's was 'llama'"):
        load_adapter(folder, tiny.mistral(), patch=True)


def test_another_revision_is_refused_with_both(saved: Any, base: Path, tmp_path: Path) -> None:
    folder = rewritten(copied(saved, "alibi", tmp_path), lambda m: m["base"].update(revision="a" * 40), MARKER)
    model = load(base)
    assert load_adapter(folder, patch_model(model, "alibi")) is not None  # unknown here, and the weights agree
    model = load(base)
    model.config._commit_hash = "b" * 40
    with pytest.raises(UnsupportedError, match=f"@{'b' * 40}, and the adapter's was .*@{'a' * 40}"):
        load_adapter(folder, model, patch=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_may_be_loaded_in_another_dtype(dtype: Any, saved: Any, base: Path) -> None:
    folder, expected = saved["t5"]
    found = logits(load_adapter(folder, load(base, dtype=dtype), patch=True)).float()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_the_identity_is_the_same_however_the_base_is_wrapped(base: Path) -> None:
    plain = identify(load(base))
    assert identify(adapted(base, ["native", "t5"])) == plain
    assert identify(adapted(base, "yarn", factor=2.0)) == plain
    assert plain.name == "tiny-llama"
    assert plain.shape["trained_length"] == tiny.LENGTH
    one, other = tiny.bert(), tiny.bert()
    patch_model(one, "alibi")
    patch_model(other, "learned", max_positions=64)
    assert identify(one) == identify(other) == identify(tiny.bert())


def test_what_is_not_float_is_not_sampled() -> None:
    """As bitsandbytes leaves a model: packed integers in the linear layers."""
    model = tiny.llama()
    recorded = identify(model)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
    from pe_retrofit.hub.base_identity import differences

    assert differences(recorded, model) == []
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(0.1)
    assert "weights are not" in differences(recorded, model)[0]


def test_learned_positions_that_would_be_lost_are_not_saved(base: Path, tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(patch_model(load(base), "t5"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match="modules_to_save=\\['position_encoding'\\]"):
        save_adapter(wrapped, tmp_path / "lora")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedError, match="has no adapter"):
        save_adapter(load(base), tmp_path / "lora")


def test_markers_of_version_1_are_read_and_newer_ones_refused(saved: Any, tmp_path: Path) -> None:
    folder = copied(saved, "alibi", tmp_path)
    patches = read_marker(folder).patches
    (folder / MARKER).write_text(json.dumps({"schema_version": 1, "patches": patches}))
    assert torch.equal(logits(load_adapter(folder)), saved["alibi"][1])
    rewritten(folder, lambda m: m.update(schema_version=3), MARKER)
    with pytest.raises(UnsupportedError, match=r"schema_version 3, and this pe_retrofit reads up to 2\. Upgrade"):
        load_adapter(folder)
    for broken in ("[]", "{", '{"schema_version": true, "patches": []}', '{"schema_version": 2, "patches": []}'):
        (folder / MARKER).write_text(broken)
        with pytest.raises(ConfigError, match="Save the adapter anew"):
            load_adapter(folder)


def _nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).fill_(float("nan"))


def _extra(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(61, 32)


def _missing(tensors: dict[str, Any]) -> None:
    del tensors[next(key for key in tensors if "lora_B" in key)]


def _positions_missing(tensors: dict[str, Any]) -> None:
    del tensors[next(key for key in tensors if ".position_encoding." in key)]


def _shape(tensors: dict[str, Any]) -> None:
    key = next(key for key in tensors if ".position_encoding." in key)
    tensors[key] = torch.zeros(3, 3)


def _rank(tensors: dict[str, Any]) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(7, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, "holds values that are no numbers"),
        (_extra, "lm_head.weight has no place in it"),
        (_missing, "did not arrive whole: the file lacks .*lora_B"),
        (_positions_missing, "cannot be put on the model: .*position_encoding"),
        (_shape, r"has shape \[3, 3\], and the model's"),
        (_rank, r"has shape \[7, 32\]; \[2, 32\] is expected"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_leave_the_base_as_it_was(
    change: Any, message: str, saved: Any, base: Path, tmp_path: Path
) -> None:
    folder = copied(saved, "t5", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    model = patch_model(load(base), SPECS["t5"])
    before, names = logits(model), [n for n, _ in model.named_modules()]
    with pytest.raises(ConfigError, match=message):
        load_adapter(folder, model)
    assert torch.equal(logits(model), before)
    assert [n for n, _ in model.named_modules()] == names


def test_files_that_are_damaged_or_could_run_code_are_refused(saved: Any, tmp_path: Path) -> None:
    folder = copied(saved, "alibi", tmp_path)
    rewritten(folder, lambda c: c.update(megatron_config={"a": 1}, megatron_core="antigravity"))
    with pytest.raises(ConfigError, match="megatron_config"):
        load_adapter(folder)
    rewritten(folder, lambda c: c.update(megatron_config=None, r=1 << 40))
    with pytest.raises(ConfigError, match="is expected"):
        load_adapter(folder)
    rewritten(folder, lambda c: c.update(r=2, peft_type="XLORA"))
    with pytest.raises(UnsupportedError, match="peft_type 'XLORA'"):
        load_adapter(folder)
    rewritten(folder, lambda c: c.update(peft_type="LORA"))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(ConfigError, match="is damaged"):
        load_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"holds no adapter_model.safetensors. Pickled"):
        load_adapter(folder)
    with pytest.raises(ConfigError, match="no adapter"):
        load_adapter(tmp_path / "nowhere")


def test_an_adapter_can_be_trained_on(saved: Any) -> None:
    model = load_adapter(saved["t5"][0], is_trainable=True)
    assert model.training
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for n, p in model.named_parameters() if n in trained)
    assert any("position_encoding" in n for n in trained)
    assert any("lora_" in n for n in trained)
