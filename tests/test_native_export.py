"""Models that plain transformers loads: what is written, what is refused, and for which tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from tokenizers_made import decoder_tokenizer
from typer.testing import CliRunner

from pe_retrofit import patch_model
from pe_retrofit.cli import export
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.hub import export_native
from pe_retrofit.hub.targets import TARGETS, refusals

IDS = tiny.ids(1, 28)
L, S = tiny.LENGTH, 2.0
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": S},
    "ntk": {"factor": S},
    "dynamic": {"factor": S},
    "yarn": {"factor": S},
    "longrope": {"factor": S},
    "llama3": {"factor": S},
    "partial_rope": {"p": 0.5},
}
ROPE_TYPES = {**{name: name for name in SCALINGS}, "ntk": "default", "partial_rope": "proportional"}
ORIGINAL = ("yarn", "longrope", "llama3")
"""Types that say the trained length."""

BUILDS = {"llama": tiny.llama, "neox": tiny.neox, "mistral": tiny.mistral}
ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
    torch.save(logits, f"{folder}/logits.pt")
assert not [name for name in sys.modules if name.split(".")[0] == "pe_retrofit"]
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, dict[str, Any]]]:
    """Every scaling, also with the keys of transformers 4: the folder, the patched model's logits, the report."""
    made = {}
    for family, build in BUILDS.items():
        for name, options in SCALINGS.items() if family == "llama" else [("yarn", SCALINGS["yarn"])]:
            for legacy in (False, True):
                if legacy and name == "partial_rope":
                    continue
                model = patch_model(build(), name, **options)
                key = f"{family} {name}{' legacy' if legacy else ''}"
                folder = tmp_path_factory.mktemp("exports") / key.replace(" ", "-")
                report = export_native(model, folder, legacy=legacy)
                with torch.no_grad():
                    made[key] = folder, model(input_ids=IDS).logits, report
    return made


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_a_process_without_the_plugin_gets_the_same_logits(exported: Any) -> None:
    folders = [str(folder) for folder, _, _ in exported.values()]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(IDS.tolist()), *folders],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for key, (folder, expected, report) in exported.items():
        found = torch.load(folder / "logits.pt", weights_only=True)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), key
        assert report["difference"] <= 1e-5


@pytest.mark.parametrize("name", SCALINGS)
def test_the_config_says_the_scaling_and_nothing_of_ours(name: str, exported: Any) -> None:
    folder, _, report = exported[f"llama {name}"]
    config = config_of(folder)
    rope = config["rope_parameters"]
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert not {"position_encoding", "auto_map", "rope_scaling", "rope_theta"} & set(config)
    assert not list(folder.glob("*.py"))
    assert rope["rope_type"] == ROPE_TYPES[name]
    assert rope.get("original_max_position_embeddings") == (L if name in ORIGINAL else None)
    assert rope["rope_theta"] == (10000.0 * S ** (8 / 6) if name == "ntk" else 10000.0)
    longer = name not in ("dynamic", "partial_rope")  # transformers takes the trained length of dynamic from here
    assert config["max_position_embeddings"] == report["max_position_embeddings"] == (L * S if longer else L)
    assert rope.get("factor") == (S if name not in ("ntk", "partial_rope") else None)


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "partial_rope"])
def test_legacy_keys_say_the_same(name: str, exported: Any) -> None:
    config = config_of(exported[f"llama {name} legacy"][0])
    rope, old = config["rope_parameters"], config["rope_scaling"]
    assert config["rope_theta"] == rope["rope_theta"]
    if name == "ntk":
        assert old is None
        return
    assert old["type"] == old["rope_type"] == rope["rope_type"]
    assert {k: v for k, v in old.items() if k != "type"} == {k: v for k, v in rope.items() if k != "rope_theta"}


def test_legacy_keys_of_a_model_that_rotates_a_part(exported: Any) -> None:
    config = config_of(exported["neox yarn legacy"][0])
    assert (config["rotary_pct"], config["rotary_emb_base"], config["rope_scaling"]["factor"]) == (0.5, 10000.0, S)


@pytest.mark.parametrize(
    ("spec", "layers", "told"),
    [
        ("alibi", None, "alibi on all layers"),
        (["native", "t5"], None, "native \\+ t5 on all layers"),
        ({"name": "yarn", "factor": 2.0}, [1], r"yarn on layers \[1\]"),
        (["yarn", "alibi"], None, "yarn"),
        ("nope", [0], r"nope on layers \[0\]"),
    ],
)
def test_what_the_config_cannot_say_is_refused_with_its_layers(
    spec: Any, layers: Any, told: str, tmp_path: Path
) -> None:
    spec = [{"name": "yarn", "factor": 2.0}, "alibi"] if spec == ["yarn", "alibi"] else spec
    model = patch_model(tiny.llama(), spec, layers=layers)
    with pytest.raises(UnsupportedError, match=rf"no place in a plain config:\n  - .*{told}"):
        export_native(model, tmp_path / "out")
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(UnsupportedError, match=r"no place in a plain config(.|\n)*trust_remote_code"):
        export_native(tmp_path / "saved", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = patch_model(tiny.llama(), "yarn", factor=2.0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match="Merge it first"):
        export_native(wrapped, tmp_path / "out")


REFUSED = {
    "transformers": set(),
    "vllm": {"dynamic"},
    "sglang": {"dynamic", "partial_rope"},
    "llamacpp": {"dynamic", "longrope", "partial_rope"},
}


@pytest.mark.parametrize("tool", TARGETS)
def test_what_a_tool_would_silently_ignore_is_refused_for_it(tool: str, exported: Any, tmp_path: Path) -> None:
    for name in SCALINGS:
        folder, _, report = exported[f"llama {name}"]
        assert bool(report["tools"][tool]["ignores"]) == (name in REFUSED[tool]), name
        if name in ("yarn", "dynamic"):
            if name not in REFUSED[tool]:
                export_native(folder, tmp_path / name, targets=[tool])
                continue
            with pytest.raises(UnsupportedError, match=rf"{TARGETS[tool].title}: rope_type 'dynamic'"):
                export_native(folder, tmp_path / name, targets=[tool])
            assert not (tmp_path / name).exists()


def test_llamacpp_keeps_no_scaling_of_gpt_neox_and_no_llama3_of_qwen(exported: Any) -> None:
    assert "neither a scaling nor rope_theta" in refusals("llamacpp", config_of(exported["neox yarn"][0]))[0]
    llama3 = config_of(exported["llama llama3"][0])
    assert refusals("llamacpp", llama3) == []
    assert "keeps default, linear, yarn" in refusals("llamacpp", {**llama3, "architectures": ["Qwen2ForCausalLM"]})[0]
    assert "was not looked at" in refusals("llamacpp", {**llama3, "architectures": ["NewForCausalLM"]})[0]


def test_an_attention_factor_of_ones_own_is_refused_where_it_is_not_read(tmp_path: Path) -> None:
    model = patch_model(tiny.llama(), "yarn", factor=4.0, attention_factor=1.5)
    for tool in ("vllm", "sglang", "llamacpp"):
        with pytest.raises(UnsupportedError, match=r"attention_factor 1\.5 is not read; it would use 1\.13863"):
            export_native(model, tmp_path / "out", targets=[tool])
    export_native(model, tmp_path / "out", targets=["transformers"])
    with pytest.raises(ConfigError, match="for='ollama' is unknown"):
        export_native(model, tmp_path / "out", targets=["ollama"])


def test_other_logits_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pe_retrofit.hub import native

    monkeypatch.setattr(native, "legacy_keys", lambda config: {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    with pytest.raises(UnsupportedError, match="exported model gives other logits"):
        export_native(patch_model(tiny.llama(), "yarn", factor=2.0), tmp_path / "out", legacy=True)
    assert not list(tmp_path.iterdir())


def test_the_command_line_exports(tmp_path: Path) -> None:
    from pe_retrofit.cli.app import build

    app = build()
    if not any(command.name == "export" for command in app.registered_commands):
        export.register(app)
    patch_model(tiny.llama(vocab_size=258), "yarn", factor=2.0).save_pretrained(tmp_path / "model")
    tokenizer = decoder_tokenizer()
    tokenizer.model_max_length = L
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "plain")]
    done = CliRunner().invoke(app, [*words, "--native", "--for", "llamacpp", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["rope_parameters"]["rope_type"] == "yarn"
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "plain").model_max_length == 2 * L
    assert CliRunner().invoke(app, words).exit_code == 2
    told = CliRunner().invoke(app, [*words, "--native", "--overwrite"])
    assert told.exit_code == 0, told.output
    assert "llama.cpp" in told.output
