"""An adapter folded into its base: the same logits, one model; and what cannot be merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from typer.testing import CliRunner

from pe_retrofit import patch_model, status
from pe_retrofit.cli import merge
from pe_retrofit.errors import UnsupportedError
from pe_retrofit.hub import load_adapter, merge_adapter, save_adapter
from pe_retrofit.training import LoraOptions, add_lora

pytest.importorskip("peft")

IDS = tiny.ids(2, 24)


def adapter(folder: Path, spec: Any, build: Any = tiny.llama, **options: Any) -> Path:
    """An adapter of a tiny model, beside its base."""
    build().save_pretrained(folder / "base")
    auto = hf.AutoModelForMaskedLM if build is tiny.bert else hf.AutoModelForCausalLM
    model = patch_model(auto.from_pretrained(folder / "base").eval(), spec)
    wrapped = add_lora(model, LoraOptions(r=2, **options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return save_adapter(wrapped.eval(), folder / "lora")


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("spec", "build", "options"),
    [
        (["native", "t5"], tiny.llama, {"embeddings": True, "norms": True}),
        ("alibi", tiny.llama, {"variant": "dora"}),
        ({"1": "nope", "rest": "native"}, tiny.neox, {}),
        ("learned", tiny.bert, {}),
    ],
    ids=["t5", "alibi", "layers", "table"],
)
def test_merged_logits_are_the_adapters(spec: Any, build: Any, options: dict[str, Any], tmp_path: Path) -> None:
    spec = {"name": "learned", "max_positions": 48} if spec == "learned" else spec
    folder = adapter(tmp_path, spec, build, **options)
    expected = logits(load_adapter(folder))
    done = merge_adapter(folder, tmp_path / "merged")
    auto = hf.AutoModelForMaskedLM if build is tiny.bert else hf.AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path / "merged")
    difference = (logits(again.eval()) - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-5
    assert done["merge_difference"] <= 1e-5
    assert done["saved"]["form"] == "merged"
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert status(again).patched or spec["name"] == "learned"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merging_in_half_precision_stays_within_its_rounding(dtype: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path, ["native", "t5"])
    expected = logits(load_adapter(folder))
    done = merge_adapter(folder, tmp_path / "merged", dtype=dtype)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == getattr(torch, dtype)
    assert done["merge_difference"] < done["tolerance"]
    assert (logits(again.eval()).float() - expected).abs().max() < 0.15 * expected.abs().max()


def test_another_base_and_a_quantised_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path, "alibi")
    other = tiny.llama()
    with torch.no_grad():
        other.model.embed_tokens.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedError, match="weights are not the adapter's base"):
        merge_adapter(folder, tmp_path / "merged", base=str(tmp_path / "other"))
    from pe_retrofit.hub import merging

    def quantised(*args: Any, **kwargs: Any) -> Any:
        model = tiny.llama()
        model.is_quantized = True
        return model, hf.AutoModelForCausalLM

    monkeypatch.setattr(merging, "load_model", quantised)
    with pytest.raises(UnsupportedError, match=r"is quantised.*--base ORG/MODEL --dtype bfloat16"):
        merge_adapter(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_does_not_survive_merging_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    folder = adapter(tmp_path, "alibi")
    from peft import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **more: self.unload())
    with pytest.raises(UnsupportedError, match="merged model gives other logits than the adapter"):
        merge_adapter(folder, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "lora"]


def test_the_command_line_merges(tmp_path: Path) -> None:
    from pe_retrofit.cli.app import build

    app = build()
    if not any(command.name == "merge" for command in app.registered_commands):
        merge.register(app)
    folder = adapter(tmp_path, "alibi")
    out = tmp_path / "merged"
    done = CliRunner().invoke(app, ["merge", str(folder), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["patches"][0]["encodings"][0]["name"] == "alibi"
    assert (out / "config.json").is_file()
    again = CliRunner().invoke(app, ["merge", str(folder), "--out", str(out)])
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    words = CliRunner().invoke(app, ["merge", str(folder), "--out", str(out), "--overwrite"])
    assert "Merged" in words.output
