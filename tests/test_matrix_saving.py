"""The hosts that ``test_saving`` leaves out, with every encoding: what lies on disk, what comes back, a second turn."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from matrix import ENCODINGS, HOSTS, Cell, cells, distance, learned_parameters, logits, tokens
from safetensors import safe_open

from pe_retrofit import patch_model, status, unpatch_model

ELSEWHERE = ("llama", "gemma3", "smollm3", "stablelm", "gpt_neox", "bert", "roberta", "distilbert", "bert_decoder")
"""Hosts whose round trip is in ``test_saving``."""


def auto_class(cell: Cell) -> Any:
    return hf.AutoModelForCausalLM if cell.host.causal else hf.AutoModelForMaskedLM


def saved_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def saved_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name not in ELSEWHERE))
def test_round_trip_and_what_lies_on_disk(cell: Cell, tmp_path: Path) -> None:
    plain = cell.host.fresh()
    plain.save_pretrained(tmp_path / "plain")
    model = cell.patched()
    native = status(model).patches[0].native
    ids = tokens(2, 20 if native and cell.encoding.late else cell.length)
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path / "first")

    original, written = saved_config(tmp_path / "plain"), saved_config(tmp_path / "first")
    names = saved_names(tmp_path / "first")
    if native:
        assert written["model_type"] == original["model_type"]
        assert "position_encoding" not in written
        assert names == saved_names(tmp_path / "plain")
    else:
        assert written["model_type"] == "pe_retrofit"
        block = written["position_encoding"]
        assert block["host_model_type"] == original["model_type"]
        assert "original" not in block
        held = {**written, **block["host"], "model_type": original["model_type"]}
        assert {k: held[k] for k in original if k != "position_encoding"} == original, "the host's fields are its own"
        added = names - saved_names(tmp_path / "plain")
        assert all(".position_encoding." in name for name in added)
        assert len(added) == len(learned_parameters(model))
        assert saved_names(tmp_path / "plain") <= names

    again, info = auto_class(cell).from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert distance(logits(again.eval(), ids), wanted) < 1e-6
    assert status(again).patched != native
    again.save_pretrained(tmp_path / "second")
    assert saved_config(tmp_path / "second") == written
    assert saved_names(tmp_path / "second") == names
    if not native:
        unpatch_model(again)
        assert distance(logits(again, ids[:, :20]), logits(plain, ids[:, :20])) < 1e-6
        again.save_pretrained(tmp_path / "third")
        assert saved_config(tmp_path / "third") == original


SCRIPT = """
import sys, torch
{plugin}
import transformers as hf
for folder in sys.argv[1:]:
    case = torch.load(folder + "/case.pt")
    model = getattr(hf, case["auto"]).from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(case["ids"]).logits
    assert torch.allclose(found, case["logits"], atol=1e-5), (folder, (found - case["logits"]).abs().max())
assert ("pe_retrofit" in sys.modules) == {imported}
print("all equal")
"""


def in_a_fresh_process(chosen: list[Cell], folder: Path, *, plugin: bool) -> None:
    """Save, and compare the logits in one new process that imports the plugin, or only transformers."""
    folders = []
    for cell in chosen:
        model, ids = cell.patched(), tokens(2, 20 if not plugin and cell.encoding.late else cell.length)
        case = {"auto": auto_class(cell).__name__, "ids": ids, "logits": logits(model, ids)}
        folders.append(str(folder / cell.id.replace("/", "_")))
        model.save_pretrained(folders[-1])
        torch.save(case, folders[-1] + "/case.pt")
    code = SCRIPT.format(plugin="import pe_retrofit" if plugin else "", imported=plugin)
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all equal" in done.stdout


def test_equal_logits_in_a_fresh_process(tmp_path: Path) -> None:
    pairs = [
        ("llama", "alibi_learnable"),
        ("llama", "dynamic/2"),
        ("llama", "longrope+t5"),
        ("gemma3", "yarn+alibi"),
        ("gemma2", "t5/2"),
        ("phi3", "yarn/2"),
        ("phi3", "dynamic"),
        ("mixtral", "nope+t5"),
        ("smollm3", "nope/2"),
        ("stablelm", "alibi+t5"),
        ("gpt_neox", "partial_rope"),
        ("gpt_neox", "native+learned"),
        ("bert", "t5"),
        ("roberta", "sinusoidal"),
        ("electra", "native+sinusoidal"),
        ("bert_decoder", "alibi"),
        ("llama", "conv"),
        ("gemma3", "native+recurrent"),
        ("bert", "recurrent"),
        ("llama", "random"),
        ("roberta", "normalized"),
    ]
    chosen = [Cell(HOSTS[h], ENCODINGS[e]) for h, e in pairs]
    in_a_fresh_process([c for c in chosen if c.refusal is None], tmp_path, plugin=True)


def test_plain_transformers_reads_native_scalings(tmp_path: Path) -> None:
    pairs = [
        ("llama", "yarn"),
        ("llama", "dynamic"),
        ("qwen3", "longrope_exact"),
        ("phi3", "longrope"),
        ("mixtral", "yarn"),
    ]
    pairs += [("gemma3", "llama3"), ("gpt_neox", "linear"), ("cohere", "partial_rope"), ("olmo2", "ntk")]
    pairs += [("bert", "learned"), ("roberta", "learned"), ("distilbert", "learned"), ("electra", "learned")]
    in_a_fresh_process([Cell(HOSTS[h], ENCODINGS[e]) for h, e in pairs], tmp_path, plugin=False)


def test_two_patches_come_back_as_two(tmp_path: Path) -> None:
    model, ids = HOSTS["gemma3"].fresh(), tokens(2, 40)
    patch_model(model, "yarn", layers=[1], factor=4.0)
    patch_model(model, "alibi", layers=[0, 2], learnable=True)
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert distance(logits(again, ids), wanted) < 1e-6
    assert [p.layers for p in status(again).patches] == [[1], [0, 2]]


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "gemma3", "bert")))
def test_config_copies_and_pickles(cell: Cell) -> None:
    config = cell.patched().config
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.copy(config)):
        assert type(twin) is type(config)
        assert twin.to_dict() == config.to_dict()
        assert twin.to_json_string(use_diff=True) == config.to_json_string(use_diff=True)


OWN = cells(
    lambda c: (
        c.host.name in ("llama", "gpt_neox", "bert")
        and (c.encoding.layers is not None or not c.encoding.scales or c.encoding.bias)
        and not c.extends_table
    )
)
"""Cells that transformers' config cannot express."""


@pytest.mark.parametrize("cell", OWN)
def test_a_model_made_from_the_config_of_a_patched_one(cell: Cell) -> None:
    """Not the weights, but the encoding: as in ``Auto.from_config(model.config)``."""
    model, ids = cell.patched(fill=False), tokens(2, 20)
    twin = auto_class(cell).from_config(model.config).eval()
    assert [p.options for p in status(twin).patches] == [p.options for p in status(model).patches]
    twin.load_state_dict(model.state_dict())
    assert distance(logits(twin, ids), logits(model, ids)) < 1e-6


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "gpt_neox", "electra")))
def test_state_dict_moves_to_another_patched_model(cell: Cell) -> None:
    model, other, ids = cell.patched(), cell.patched(fill=False), tokens(2, 20)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, ids), logits(model, ids))
