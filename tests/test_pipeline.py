"""A recipe from patch to saved model: every step once, whatever interrupts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.evaluation.opening import open_model
from pe_retrofit.hub.adapters import patches_of
from pe_retrofit.pipeline import make_recipe, snapshot
from pe_retrofit.pipeline.run import loading_lines, run
from pe_retrofit.pipeline.stages import Steps
from pe_retrofit.pipeline.store import restart
from pe_retrofit.pipeline.summary import markdown
from pe_retrofit.status import status

STEPS = ["evaluate_stock", "patch", "evaluate_patch", "finetune", "evaluate_finetune", "save"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_runs.make_folder(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The folder of an unbroken run."""
    run(make_recipe(recipe_runs.raw(folder, "whole"), "tiny"))
    return folder / "whole"


def saved(out: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(out / "model").state_dict()


def journal(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def test_whole_run(whole: Path) -> None:
    steps = journal(whole)["steps"]
    assert list(steps) == STEPS
    assert all((whole / "steps" / f"{name}.json").is_file() for name in STEPS)
    assert steps["finetune"]["result"]["steps"] == 2
    assert steps["finetune"]["result"]["tokens"] == 2 * 2 * 32
    assert steps["finetune"]["result"]["devices"].startswith("1 process")
    summary = json.loads((whole / "summary.json").read_text())
    assert [row["stage"] for row in summary["rows"]] == ["stock", "patch", "finetune"]
    assert [(c["task"], c["length"]) for c in summary["columns"]] == [("perplexity", 32), ("perplexity", 64)]
    values = [tuple(row["values"]) for row in summary["rows"]]
    assert len(set(values)) == 3, "each state of the model was asked, and none is another's"
    assert "| + finetune |" in (whole / "summary.md").read_text()
    assert markdown(summary).count("\n") == 5


def test_saved_model_is_the_trained_one(whole: Path, folder: Path) -> None:
    """Against an adapter merged by hand from the last checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    assert status(model).patched
    stock = AutoModelForCausalLM.from_pretrained(folder / "tiny").state_dict()
    adapter = load_file(whole / "finetune" / "checkpoint-2" / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    a = adapter["base_model.model." + name.replace(".weight", ".lora_A.weight")]
    b = adapter["base_model.model." + name.replace(".weight", ".lora_B.weight")]
    assert b.abs().max() > 0
    torch.testing.assert_close(model.state_dict()[name], stock[name] + 2 * b @ a)  # alpha is twice r
    learned = next(k for k in adapter if "position_encoding" in k)
    mine = next(v for k, v in model.state_dict().items() if k in learned.replace("base_model.model.", ""))
    torch.testing.assert_close(mine, adapter[learned])
    assert mine.abs().max() > 0


def test_evaluation_text_was_not_trained_on(whole: Path) -> None:
    held = (whole / "evaluate" / "held_out.txt").read_text()
    assert len(held) > 500
    assert held[-200:] in recipe_runs.TEXT[-200 - 32 :], "all but a last row that is not full"
    trained = len(recipe_runs.TEXT) - 1000
    assert recipe_runs.TEXT.index(held[:200]) >= trained - 32


def test_finished_run_does_nothing_again(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "model").iterdir()}
    monkeypatch.setattr(Steps, "run", lambda *_: pytest.fail("a finished step was done again"))
    lines: list[str] = []
    found = run(make_recipe(recipe_runs.raw(folder, "whole"), "tiny"), tell=lines.append)
    assert len(lines) == len(STEPS)
    assert all("done before" in line for line in lines)
    assert found["rows"][2]["tokens"] == 128
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "model").iterdir()}


@pytest.mark.parametrize("at", STEPS[1:])
def test_interrupted_run_ends_like_an_unbroken_one(
    at: str, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(recipe_runs.raw(folder, f"broken_{at}"), "tiny")
    original, done = Steps.run, []

    def stopping(self: Steps, name: str) -> dict[str, Any]:
        result = original(self, name)
        if name == at and done.count(at) == 0:  # the work is done, but not written down
            done.append(at)
            raise KeyboardInterrupt
        done.append(name)
        return result

    monkeypatch.setattr(Steps, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert list(journal(recipe.folder)["steps"]) == STEPS[: STEPS.index(at)]
    run(recipe)
    assert all(done.count(name) == (2 if name == at else 1) for name in STEPS)
    mine, theirs = saved(recipe.folder), saved(whole)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    rows = [json.loads((out / "summary.json").read_text())["rows"] for out in (recipe.folder, whole)]
    assert [row["values"] for row in rows[0]] == [row["values"] for row in rows[1]]


def test_another_recipe_is_refused_with_what_differs(whole: Path, folder: Path) -> None:
    changed = recipe_runs.raw(folder, "whole", lora={"r": 3}, patch="alibi")
    with pytest.raises(ConfigError, match="another recipe") as caught:
        run(make_recipe(changed, "tiny"))
    assert "lora.r: 2 became 3" in str(caught.value)
    assert 'patch: "t5" became "alibi"' in str(caught.value)
    assert str(caught.value).count("\n  - ") == 2, "nothing but what differs"


def test_foreign_folders_are_left_alone(folder: Path) -> None:
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    recipe = make_recipe(recipe_runs.raw(folder, "foreign"), "tiny")
    for again in (False, True):
        with pytest.raises(ConfigError, match="no run"):
            run(recipe, again=again)
    assert (foreign / "thesis.txt").read_text() == "mine"
    (foreign / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        run(recipe)
    (foreign / "run.json").write_text('{"kind": "something else"}')
    with pytest.raises(ConfigError, match="no file of a run"):
        run(recipe)


def test_restart_deletes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    for name in ("run.json", "recipe.yaml", "summary.md", "steps/a.json", "model/config.json", "thesis.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    restart(tmp_path, "../outside")
    assert outside.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "thesis.txt"]
    (tmp_path / "run.json").write_text("x")
    restart(tmp_path, "model")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_snapshot_is_refused(whole: Path, folder: Path) -> None:
    import shutil

    shutil.copytree(whole, folder / "damaged")
    state = journal(folder / "damaged")
    del state["steps"]["save"]
    (folder / "damaged" / "run.json").write_text(json.dumps(state))
    path = folder / "damaged" / "steps" / "finetune.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"cannot be read.*--restart"):
        run(make_recipe(recipe_runs.raw(folder, "damaged"), "tiny"))


def test_adapter_alone(folder: Path) -> None:
    recipe = make_recipe(
        recipe_runs.raw(folder, "adapter", save={"form": "adapter"}, evaluate=False, patch="alibi"), "tiny"
    )
    run(recipe)
    out = folder / "adapter" / "model"
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    merged = make_recipe(recipe_runs.raw(folder, "merged", evaluate=False, patch="alibi"), "tiny")
    run(merged)
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        mine = open_model(f"alibi@{out}").model(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder / "merged" / "model")(input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "patch",
    [
        "alibi",
        {"1:": {"name": "t5", "num_buckets": 8, "max_distance": 32}, "rest": "native"},
        {"name": "nope", "layers": [1]},
    ],
    ids=["whole", "mapping", "layers"],
)
def test_an_adapter_brings_its_patch(patch: Any, folder: Path, tmp_path: Path) -> None:
    """The folder alone is enough, as the line at the end of a run says; another patch under it is refused."""
    more = {"save": {"form": "adapter"}, "evaluate": False, "patch": patch}
    recipe = make_recipe(
        recipe_runs.raw(folder, "x", **more) | {"run": {"folder": str(tmp_path), "device": "cpu"}}, "t"
    )
    found = run(recipe)
    words = loading_lines(recipe, found)[0].split("pe-retrofit eval ")[1]
    assert words == str(tmp_path / "model")
    merged = make_recipe(recipe.to_plain() | {"save": {}, "run": {"folder": str(tmp_path / "two")}}, "t")
    run(merged)
    ids = tiny.ids(1, 20)
    opened = open_model(words)
    with torch.no_grad():
        mine = opened.model(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")(input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert patches_of(opened.model)
    assert torch.equal(open_model(str(tmp_path / "finetune" / "checkpoint-2")).model(input_ids=ids).logits, mine)
    with pytest.raises(UnsupportedError, match=r"was trained with .* and the model is patched with .*sandwich"):
        open_model(f"sandwich@{words}")
    (tmp_path / "model" / "position_encoding.json").write_text('{"patches": 3}')
    with pytest.raises(ConfigError, match="Save the adapter anew"):
        open_model(words)


def test_control_arm_without_a_patch(folder: Path) -> None:
    evaluate = recipe_runs.raw(folder, "x")["evaluate"] | {"after": []}
    recipe = make_recipe(recipe_runs.raw(folder, "control", patch=False, evaluate=evaluate, save=False), "tiny")
    found = run(recipe)
    assert [row["stage"] for row in found["rows"]] == ["stock", "finetune"]
    assert found["saved"] is None
    assert not (folder / "control" / "model").exists()


def test_calibrated_run_resumes_with_what_was_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that calibration found go into training, also when they come from the folder."""
    more = {"calibrate": {"windows": 2, "length": 32, "rows": 8}, "save": {}}
    evaluate = recipe_runs.raw(folder, "x")["evaluate"] | {"after": ["patch", "calibrate"]}
    found = run(make_recipe(recipe_runs.raw(folder, "calibrated", **more, evaluate=evaluate), "tiny"))
    assert [row["stage"] for row in found["rows"]] == ["stock", "patch", "calibrate", "finetune"]
    values = [row["values"][0] for row in found["rows"]]
    assert len(set(values)) == 4
    recipe = make_recipe(recipe_runs.raw(folder, "calibrated2", **more, evaluate=evaluate), "tiny")
    original = Steps.finetune
    monkeypatch.setattr(Steps, "finetune", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    monkeypatch.setattr(Steps, "finetune", original)
    monkeypatch.setattr(Steps, "calibrate", lambda self: pytest.fail("calibrated twice"))
    again = run(recipe)
    assert [row["values"] for row in again["rows"]] == [row["values"] for row in found["rows"]]
    mine, theirs = saved(folder / "calibrated"), saved(folder / "calibrated2")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_transfer_taught_goes_into_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run is interrupted in between, and the adapter comes from the folder."""
    more = {"transfer": {"windows": 4, "length": 32, "steps": 3, "batch_size": 2}, "save": {}, "evaluate": False}
    recipe = make_recipe(recipe_runs.raw(folder, "taught", **more), "tiny")
    original = Steps.finetune
    monkeypatch.setattr(Steps, "finetune", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    monkeypatch.setattr(Steps, "finetune", original)
    layers = journal(recipe.folder)["steps"]["transfer"]["result"]["layers"]
    assert all(row["after"] <= row["before"] for row in layers)
    taught = load_file(recipe.folder / "steps" / "transfer.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in taught.items())
    monkeypatch.setattr(Steps, "transfer", lambda self: pytest.fail("taught twice"))
    run(recipe)
    monkeypatch.undo()
    run(whole := make_recipe(recipe_runs.raw(folder, "taught2", **more), "tiny"))
    mine, theirs = saved(recipe.folder), saved(whole.folder)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    still = make_recipe(recipe_runs.raw(folder, "taught3", **more) | {"finetune": False}, "tiny")
    run(still)
    assert any(not torch.equal(saved(still.folder)[name], mine[name]) for name in mine)


def test_nothing_held_out_is_refused(folder: Path) -> None:
    raw = recipe_runs.raw(folder, "bare")
    raw["data"]["held_out"] = 0
    with pytest.raises((ConfigError, UnsupportedError), match="held_out"):
        run(make_recipe(raw, "tiny"))


# Snapshots


@given(st.lists(st.integers(0, 20), max_size=4, unique=True), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=20, deadline=None)
def test_snapshot_holds_what_changed_and_brings_it_back(which: list[int], dtype: torch.dtype) -> None:
    model = tiny.llama().to(dtype)
    before = snapshot.fingerprints(model)
    parameters = list(model.named_parameters())
    chosen = {parameters[i % len(parameters)][0] for i in which}
    with torch.no_grad():
        for name, parameter in parameters:
            if name in chosen:
                parameter.view(-1)[-1] += 1
    kept = snapshot.changed(model.state_dict(), before)
    assert set(kept) == chosen


def test_snapshot_restores_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = patch_model(tiny.llama(tie_word_embeddings=True), "t5")
    before = snapshot.fingerprints(tiny.llama(tie_word_embeddings=True))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
        model.model.layers[0].self_attn.position_encoding.t5.weight.normal_()
    kept = snapshot.changed(model.state_dict(), before)
    assert len(kept) == 1 + 2, "tied weights once, and a table in each layer"
    snapshot.save(path, kept, {"lora": False})
    assert snapshot.about(path) == {"lora": False}
    fresh = patch_model(tiny.llama(tie_word_embeddings=True), "t5")
    snapshot.restore(fresh, path)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert fresh.lm_head.weight is fresh.get_input_embeddings().weight
    with pytest.raises(ConfigError, match="another model"):
        snapshot.restore(tiny.llama(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"], "nothing half-written is left"
