"""A checkpoint is data from anywhere: what is wrong with it is said, nothing of it runs, nothing large is allocated."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pe_retrofit import ConfigError, UnsupportedError, patch_model
from pe_retrofit.hub import save_model
from pe_retrofit.hub.bounds import CODE, SIZES, check_bounds
from pe_retrofit.hub.weights import shard_names

Refused = (ConfigError, UnsupportedError)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a learned table."""
    model = tiny.llama()
    patch_model(model, "t5")
    folder = tmp_path_factory.mktemp("good") / "model"
    save_model(model, folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    made = tmp_path / "model"
    made.mkdir()
    for path in good.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def load(folder: Path, **more: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, **more)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 10**9}, "hidden_size=1000000000 must be a whole number"),
        ({"hidden_size": -32}, "hidden_size=-32"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
        ({"num_attention_heads": "4"}, "num_attention_heads='4'"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"max_position_embeddings": 2**62}, "max_position_embeddings"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"id2label": [1]}, "id2label must be a mapping"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps=nan must be a finite number"),
        ({"initializer_range": math.inf}, "initializer_range=inf"),
        ({"some": {"where": [1, {"deep": -math.inf}]}}, r"some\.where\[1\]\.deep"),
        ({"eos_token_id": 10**400}, "eos_token_id"),
        ({"attn_implementation": "somebody/kernel"}, "attn_implementation='somebody/kernel' must not be set"),
        ({"_attn_implementation": "somebody/kernel"}, "_attn_implementation"),
        ({"transformers_weights": "../other.safetensors"}, "transformers_weights"),
        ({"dtype": "compile"}, "dtype='compile' must be one of"),
        ({"to_dict": 5}, "to_dict"),
        ({"__class__": "str"}, "__class__"),
    ],
)
def test_values_out_of_bounds_are_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=words):
        load(folder)


def test_all_that_is_wrong_with_a_config_is_said_at_once(folder: Path) -> None:
    change_config(folder, hidden_size=-1, vocab_size=None, dtype="os", rope_theta=math.nan)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in ("hidden_size", "vocab_size", "dtype", "rope_theta"))


@pytest.mark.parametrize("name", [*CODE, *SIZES])
def test_no_field_that_matters_is_waved_through(name: str) -> None:
    values = json.loads(tiny.llama().config.to_json_string())
    check_bounds(values, hf.LlamaConfig)
    with pytest.raises(ConfigError, match=name):
        check_bounds({**values, name: "code" if name in CODE else -1}, hf.LlamaConfig)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*SIZES, "dtype", "extra", "rope_parameters", "id2label"]), plain, max_size=4))
def test_any_json_is_taken_or_refused_in_words(changes: dict[str, Any]) -> None:
    values = {**json.loads(tiny_config()), **copy.deepcopy(changes)}
    try:
        check_bounds(values, hf.LlamaConfig)
    except ConfigError:
        return
    assert all(values[n] is None or 0 < values[n] <= SIZES[n] for n in SIZES if n in values)


def tiny_config() -> str:
    return hf.LlamaConfig(num_hidden_layers=2, hidden_size=32).to_json_string()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 4000}, "num_hidden_layers=4000, and the files .* hold 23 tensors"),
        ({"intermediate_size": 4_000_000}, r"other shapes than config\.json"),
        ({"vocab_size": 10_000_000}, r"other shapes than config\.json"),
    ],
)
def test_a_large_config_beside_small_files_allocates_nothing(
    changes: dict[str, Any], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = allocations(monkeypatch)
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=words):
        load(folder)
    assert max(made, default=0) < 1_000_000


def test_tensors_that_the_files_lack_are_not_made_up_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_config(folder, intermediate_size=4_000_000)
    change_tensors(folder, lambda t: [t.pop(key) for key in list(t) if ".mlp." in key])
    made = allocations(monkeypatch)
    with pytest.raises(ConfigError, match=r"describes [\d,]+ parameters, and the files .* hold"):
        load(folder)
    assert max(made, default=0) < 1_000_000


def allocations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of elements of the tensors that ``torch.empty`` and its like make in memory from now on."""
    sizes: list[int] = []
    for name in ("empty", "empty_like", "zeros", "ones", "rand", "randn"):
        original = getattr(torch, name)

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            tensor = _original(*args, **kwargs)
            if tensor.device.type != "meta":
                sizes.append(tensor.numel())
            return tensor

        monkeypatch.setattr(torch, name, counted)
    return sizes


def test_missing_tensors_of_the_model_are_an_error_and_a_new_head_is_not(folder: Path) -> None:
    change_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"lacks tensors of the model.*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_a_new_head_on_a_patched_model_is_welcome(folder: Path) -> None:
    made = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert made.score.weight.shape[0] == 3
    assert hf.AutoModel.from_pretrained(folder).layers


def test_extra_tensors_are_an_error(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.layers.7.self_attn.q_proj.weight": torch.zeros(2, 2)}))
    with pytest.raises(ConfigError, match=r"no place for.*layers\.7"):
        load(folder)


def test_extra_learned_positions_are_an_error(folder: Path) -> None:
    change_tensors(
        folder, lambda t: t.update({"model.layers.0.self_attn.position_encoding.fire.weight": torch.ones(2)})
    )
    with pytest.raises(ConfigError, match=r"no place for.*fire"):
        load(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_learned_positions_must_be_numbers(folder: Path, value: float) -> None:
    change_tensors(folder, lambda t: t["model.layers.1.self_attn.position_encoding.t5.weight"].fill_(value))
    with pytest.raises(ConfigError, match="not finite"):
        load(folder)


def test_wrong_shapes_are_named_with_both(folder: Path) -> None:
    key = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda t: t.update({key: torch.zeros(5, 7)}))
    with pytest.raises(ConfigError, match=r"up_proj\.weight is \[5, 7\], and config\.json makes it \[48, 32\]"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -7])
def test_files_that_are_cut_off(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged or cut off"):
        load(folder)


def test_a_header_that_promises_more_than_there_is(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(ConfigError, match="damaged or cut off"):
        load(folder)


def test_pickles_are_not_read(folder: Path) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return (print, ("it ran",))

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "boom": Boom()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no model\.safetensors.*pickled"):
        load(folder)
    with pytest.raises(UnsupportedError, match="use_safetensors=False"):
        load(folder, use_safetensors=False)


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/m.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", "", 5, None],
)
def test_an_index_names_files_beside_it_only(folder: Path, name: Any) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(ConfigError, match=r"index\.json (must name files beside it|cannot be read)"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\x00"])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"index\.json"):
        load(folder)


def test_an_index_that_names_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="lacks model-00001-of-00002"):
        load(folder)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": f"{name}.safetensors"}}))
        try:
            names = shard_names(index)
        except ConfigError:
            return
        assert (Path(work) / names[0]).parent == Path(work)


def test_the_block_names_no_code(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    written["position_encoding"]["patches"][0]["encodings"] = [{"name": "os.system", "command": "true"}]
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"os\.system"):
        load(folder)


def test_a_good_checkpoint_loads(folder: Path) -> None:
    assert load(folder).config.position_encoding["patches"]
