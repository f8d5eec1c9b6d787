"""A saved model under other ways of loading: dtypes, devices, disks, fewer bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from matrix import logits, randomise

from pe_retrofit import patch_model, status
from pe_retrofit.hub import save_model

SPECS = {"t5": "t5", "alibi": "alibi", "fire": "fire", "shaw": ["native", "shaw"], "conv": ["native", "conv"]}


@pytest.fixture(scope="module", params=SPECS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, and its folder in shards."""
    model = tiny.llama(hidden_size=64, intermediate_size=64)
    patch_model(model, SPECS[request.param])
    randomise(model)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save_model(model, folder)
    return model, folder


def load(folder: Path, **more: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, **more).eval()


@pytest.mark.parametrize("more", [{"device_map": "auto"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}], ids=str)
def test_device_maps(more: dict[str, Any], saved: tuple[Any, Path]) -> None:
    model, folder = saved
    ids = tiny.ids(2, 20)
    again = load(folder, **more)
    assert status(again).patched
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_layers_on_the_disk(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = saved
    placed = {"model.layers.1": "disk"}
    rest = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    extra = {name: "cpu" for name, _ in model.model.named_children() if name.startswith(("position", "patched"))}
    placed = {**rest, **placed, **{f"model.{name}": where for name, where in extra.items()}}
    again = load(folder, device_map=placed, offload_folder=str(tmp_path / "offloaded"))
    assert next(again.model.layers[1].mlp.parameters()).device.type == "meta"
    ids = tiny.ids(2, 20)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"], ids=str)
def test_dtypes(dtype: Any, saved: tuple[Any, Path]) -> None:
    model, folder = saved
    again = load(folder, dtype=dtype)
    wanted = torch.float32 if dtype == "auto" else dtype
    assert {p.dtype for p in again.parameters()} == {wanted}
    ids = tiny.ids(2, 20)
    assert error(again, model, ids) < (1e-6 if dtype == "auto" else 0.1)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_fewer_bits_with_bitsandbytes(bits: int, saved: tuple[Any, Path]) -> None:
    model, folder = saved
    options = hf.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    again = load(folder, quantization_config=options)
    kinds = {type(m).__name__ for m in again.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    learned = {n: p for n, p in model.named_parameters() if "position_encoding" in n}
    loaded = dict(again.named_parameters())
    for name, parameter in learned.items():  # positions keep all their bits
        torch.testing.assert_close(loaded[name].float(), parameter, rtol=0.01, atol=0.01)
    plain = tiny.llama(hidden_size=64, intermediate_size=64)
    plain.save_pretrained(folder.parent / "plain")
    ids = tiny.ids(2, 20)
    off = error(load(folder.parent / "plain", quantization_config=options), plain, ids)
    assert 0 < error(again, model, ids) < 1.5 * off + 0.05  # no more than the model without positions of ours loses


def error(found: Any, wanted: Any, ids: torch.Tensor) -> float:
    """Of the logits, relative."""
    right = logits(wanted, ids).float()
    return ((logits(found, ids).float() - right).norm() / right.norm()).item()


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_fewer_bits_with_torchao(saved: tuple[Any, Path]) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    model, folder = saved
    again = load(folder, quantization_config=hf.TorchAoConfig(Int8WeightOnlyConfig()))
    ids = tiny.ids(2, 20)
    assert 0 < error(again, model, ids) < 0.1
