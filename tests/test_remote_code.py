"""A checkpoint that brings its code gives the same logits where pe_retrofit is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from matrix import Cell, cells, logits, randomise, tokens
from test_saving import AUTO, fresh

from pe_retrofit import BiasEncoding, EncodingConfig, UnsupportedError, list_encodings, patch_model, register_encoding
from pe_retrofit.hub import save_model
from pe_retrofit.hub.remote_code import FILE, code_for
from pe_retrofit.marking import MODEL_TYPE

HEADS = (
    "LlamaModel",
    "LlamaForSequenceClassification",
    "LlamaForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "BertModel",
    "BertForTokenClassification",
    "BertForMultipleChoice",
)
WORKER = Path(__file__).with_name("worker_remote.py")
FAMILIES = {"llama": "AutoModelForCausalLM", "gpt_neox": "AutoModelForCausalLM", "bert": "AutoModelForMaskedLM"}


def run_without(
    arguments: list[str], tmp_path: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Python without the path files of its environment, so without this package, which is installed by one."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment = {**(environment or offline), "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )


def jobs_done(jobs: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = run_without([str(WORKER), str(tmp_path / "jobs.json")], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def saved(model: Any, folder: Path, ids: torch.Tensor) -> dict[str, Any]:
    """What a model says to some tokens, beside the model."""
    wanted = logits(model, ids)
    save_model(model, folder)
    torch.save(ids, folder / "ids.pt")
    torch.save(wanted, folder / "wanted.pt")
    return {"folder": str(folder)}


def one_cell_per_encoding(host: str) -> list[Cell]:
    """Alone where the host can, else on top of what it has."""
    found: dict[str, Cell] = {}
    for parameter in cells(lambda cell: cell.host.name == host):
        cell = parameter.values[0]
        name = cell.encoding.name.removeprefix("native+")
        if name in list_encodings() and (name not in found or not cell.encoding.keeps):
            found[name] = cell
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("host", FAMILIES)
def test_every_encoding_gives_equal_logits_without_the_package(host: str, tmp_path: Path) -> None:
    jobs, plain = [], []
    for cell in one_cell_per_encoding(host):
        model = cell.patched()
        ids = tokens(1, min(cell.length, 30 if cell.encoding.late else cell.length))
        job = saved(model, tmp_path / cell.id.replace("+", "_").replace("/", "_"), ids)
        if (Path(job["folder"]) / FILE).exists():
            jobs.append({**job, "auto": FAMILIES[host]})
        else:
            plain.append(cell.encoding.name)
    assert len(jobs) >= (14 if host == "bert" else 25)
    assert not {"alibi", "t5", "fire", "shaw"} & set(plain)
    found = jobs_done(jobs, tmp_path)
    assert len(found) == len(jobs)
    assert {f["folder"]: f["difference"] for f in found if not f["difference"] <= 1e-6} == {}
    assert all("transformers_modules" in f["module"] for f in found)
    kernels = {f["attention"] for f in found if f["attention"] not in ("sdpa", "eager")}
    assert kernels
    assert all(name.startswith("pe_retrofit_") for name in kernels)  # of their own: the copies never mix


@pytest.mark.slow
def test_every_head_gives_equal_outputs_without_the_package(tmp_path: Path) -> None:
    jobs = []
    for class_name in HEADS:
        model = fresh(class_name)
        patch_model(model, "alibi")
        ids = tiny.ids(1, 12)
        ids = ids[:, None].repeat(1, 2, 1) if class_name.endswith("MultipleChoice") else ids
        save_model(model, tmp_path / class_name)
        torch.save(ids, tmp_path / class_name / "ids.pt")
        with torch.no_grad():
            torch.save(model(input_ids=ids)[0], tmp_path / class_name / "wanted.pt")
        jobs.append({"folder": str(tmp_path / class_name), "auto": AUTO[class_name]})
    found = jobs_done(jobs, tmp_path)
    assert [f["class"] for f in found] == list(HEADS)
    assert max(f["difference"] for f in found) <= 1e-6


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Models that generated, trained and were saved again, by name."""
    tmp_path = tmp_path_factory.mktemp("travelled")
    jobs = []
    hybrid = {"0": "nope", "rest": ["native", "t5"]}
    for name, spec in {"t5": "t5", "alibi": "alibi", "shaw": ["native", "shaw"], "hybrid": hybrid}.items():
        model = tiny.llama(eos_token_id=None)
        patch_model(model, spec)
        randomise(model)
        job = saved(model, tmp_path / name, tiny.ids(2, 20))
        jobs.append({**job, "auto": "AutoModelForCausalLM", "more": True})
    return {found["folder"]: found for found in jobs_done(jobs, tmp_path)}


@pytest.mark.parametrize("name", ["t5", "alibi", "shaw", "hybrid"])
def test_it_generates_trains_and_is_saved_again(name: str, travelled: dict[str, dict[str, Any]]) -> None:
    found = travelled[name]
    assert found["difference"] <= 1e-6
    assert found["cache"]
    assert found["losses"][-1] < found["losses"][0]
    assert (found["trained_positions"] > 0) == (name != "alibi")
    assert {FILE, "config.json", "model.safetensors"} <= set(found["saved_again"])
    assert found["difference_again"] <= 1e-6
    assert found["changed"] > 1e-3


def test_what_was_saved_again_without_the_package_loads_with_it(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "t5")
    randomise(model)
    job = saved(model, tmp_path / "t5", tiny.ids(1, 20))
    script = (
        "from transformers import AutoModelForCausalLM as A; "
        f"A.from_pretrained({job['folder']!r}, trust_remote_code=True).save_pretrained({str(tmp_path / 'again')!r})"
    )
    done = run_without(["-c", script], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    ids = tiny.ids(1, 20)
    assert torch.equal(logits(again, ids), logits(model, ids))
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["model_type"] == MODEL_TYPE
    assert not any("--" in name for name in written["auto_map"].values())


def test_the_package_is_preferred_to_the_code_of_the_checkpoint(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    save_model(model, tmp_path / "m")
    (tmp_path / "m" / FILE).write_text("raise SystemError('this code must not run')\n")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    ids = tiny.ids(1, 20)
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_without_trust_nothing_runs_and_the_error_says_what_is_missing(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    save_model(model, tmp_path / "m")
    script = "from transformers import {0} as A; A.from_pretrained('m'{1})"
    for auto, more, word in (
        ("AutoModelForCausalLM", "", "trust_remote_code=True"),
        ("AutoModelForCausalLM", ", trust_remote_code=False", "trust_remote_code=True"),
        ("AutoConfig", "", "trust_remote_code=True"),
        ("LlamaForCausalLM", "", "import pe_retrofit"),
    ):
        done = run_without(["-c", script.format(auto, more)], tmp_path)
        assert done.returncode != 0
        assert word in done.stderr, done.stderr[-500:]


def test_a_plain_model_gets_no_code(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "yarn", factor=2.0)
    assert save_model(model, tmp_path / "m")["code"] == []
    assert not list((tmp_path / "m").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "m" / "config.json").read_text())


def test_the_file_names_no_path_and_is_the_same_each_time(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, ["native", "t5"])
    text, auto_map = code_for(model.config)
    assert code_for(model.config) == (text, auto_map)
    assert str(Path(__file__).parents[1]) not in text
    assert "from ." not in text
    assert "import pe_retrofit\n" not in text
    assert set(auto_map.values()) >= {f"modeling_pe_retrofit.{n}" for n in ("PeRetrofitConfig", "LlamaForCausalLM")}
    compile(text, FILE, "exec")


def test_saving_with_the_package_leaves_no_entry_for_code_that_is_not_there(tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    save_model(model, tmp_path / "m")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    again.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_an_encoding_of_somebody_else_is_not_sent_along(tmp_path: Path) -> None:
    from dataclasses import dataclass

    from pe_retrofit import EncodingInfo

    @dataclass(frozen=True)
    class NearConfig(EncodingConfig):
        name = "near"

    @register_encoding
    class Near(BiasEncoding[NearConfig]):
        """Nearness."""

        Config = NearConfig
        info = EncodingInfo(title="near", formula="b = -|i - j|", paper="none")

        def bias(self, distance: torch.Tensor, *, causal: bool) -> torch.Tensor:
            return -distance.abs().float().expand(self.host.num_heads, *distance.shape)

    model = tiny.llama()
    patch_model(model, "near")
    with pytest.raises(UnsupportedError, match=r"'near' is defined in .*code=False"):
        save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    save_model(model, tmp_path / "m", code=False)
    assert (tmp_path / "m" / "config.json").exists()
