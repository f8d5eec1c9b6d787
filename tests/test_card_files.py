"""A card and its pictures as files: runs, what is there already, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from cards_made import ALIBI, PICTURE, evaluated, folders, metadata, section, text_of
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from pe_retrofit import ConfigError
from pe_retrofit.hub import card as cards
from pe_retrofit.hub.card import make_card, plan_card, write_card


@pytest.fixture(scope="module")
def saved() -> dict[str, Path]:
    return folders()


def run_of(folder: Path, model: Path, stages: tuple[str, ...] = ("patch", "finetune"), last: str = "finetune") -> Path:
    """The folder of a training run with a saved model within it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    (folder / "recipe.yaml").write_text("model: {name: smollm2}\npatch: {name: alibi}\nfinetune: {max_steps: 7}\n")
    data = {"text": "a text", "sha256": "cd" * 32}
    result = {"steps": 7, "tokens": 700, "loss": {"first": 3.0, "last": 2.5}, "held_out_loss": 2.75, "data": data}
    calibration = {"before": 0.5, "after": 0.25, "tokens": 4096}
    steps = {s: {"result": result if s == "finetune" else calibration if s == "calibrate" else {}} for s in stages}
    versions = {"torch": "9.9"}
    run = {"kind": "pe_retrofit run", "schema_version": 1, "name": "my-recipe", "steps": steps, "versions": versions}
    (folder / "run.json").write_text(json.dumps(run))
    evaluated(folder / "evaluate" / "patch", ALIBI)
    evaluated(folder / "evaluate" / last, ALIBI, text="ef" * 32, pictures=("perplexity-by_position.png",))
    return folder


def test_a_model_in_a_run_finds_its_recipe_its_last_evaluation_and_what_was_trained(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of(tmp_path / "out", saved["alibi"], ("patch", "calibrate", "finetune"))
    plan = plan_card(run / "model")
    card = str(plan.card)
    assert "# my-recipe" in card
    assert metadata(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "max_steps: 7" in section(card, "Recipe")
    assert "ef" * 32 in card
    assert "Steps of the run: patch, calibrate, finetune." in section(card, "Training")
    assert "7 steps, 700 tokens, of a text" in section(card, "Training")
    assert "0.5 before, 0.25 after" in section(card, "Calibration")
    assert "torch 9.9" in section(card, "Versions")
    assert {"evaluation-perplexity-by_position.png"} == set(plan.pictures)
    assert any("the evaluation after 'finetune'" in line for line in plan.said)
    assert str(tmp_path) not in card
    assert str(make_card(run / "model", results=run)) == card


def test_an_evaluation_of_an_earlier_stage_is_said_to_be_one(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"], last="calibrate")
    assert "measured after the step calibrate; the model was saved after finetune" in text_of(run / "model")


def test_writing_copies_the_pictures_and_links_them(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    written = write_card(run / "model", license="mit")
    assert [path.name for path in written] == ["README.md", "evaluation-perplexity-by_position.png"]
    card = (run / "model" / "README.md").read_text()
    assert "](evaluation-perplexity-by_position.png)" in card
    assert (run / "model" / "evaluation-perplexity-by_position.png").read_bytes() == PICTURE
    assert ModelCard.load(run / "model" / "README.md").data.license == "mit"
    assert sorted(p.name for p in (run / "model").iterdir()) == sorted(["config.json", *(p.name for p in written)])


def test_a_picture_that_is_none_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    results = evaluated(tmp_path / "eval", ALIBI, pictures=("a.png",))
    (results / "pictures" / "a.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(ConfigError, match="no PNG"):
        make_card(saved["alibi"], results=results)


def test_a_readme_of_somebody_else_is_kept(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved["alibi"] / "config.json").read_bytes())
    readme = tmp_path / "README.md"
    readme.write_text("my own words")
    with pytest.raises(ConfigError, match="was not written by pe-retrofit"):
        write_card(tmp_path)
    assert readme.read_text() == "my own words"
    write_card(tmp_path, overwrite=True)
    write_card(tmp_path, license="mit")  # ours: no need to ask
    readme.write_text(readme.read_text().replace("# ", "# My ", 1))
    with pytest.raises(ConfigError, match="edited since"):
        write_card(tmp_path)


def test_the_empty_form_that_peft_writes_is_replaced(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    get_peft_model(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    form = (folder / "README.md").read_text()
    assert cards.check_target(folder, False) is None
    (folder / "README.md").write_text(form.replace("[More Information Needed]", "Jane", 1))
    with pytest.raises(ConfigError, match="not written by"):
        cards.check_target(folder, False)


def test_a_failed_write_leaves_the_old_card(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes((saved["alibi"] / "config.json").read_bytes())
    write_card(tmp_path)
    before = (tmp_path / "README.md").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_card(tmp_path, license="mit")
    assert (tmp_path / "README.md").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json"]


def invoke(*arguments: Any) -> Any:
    import typer

    from pe_retrofit.cli import card as verb
    from pe_retrofit.cli.app import Verbs

    app = typer.Typer(cls=Verbs)
    app.callback()(lambda: None)
    verb.register(app)
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


def test_a_dry_run_shows_the_card_and_every_file_and_writes_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = invoke(run / "model", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("---\n")
    assert "# my-recipe" in done.stdout
    shown = " ".join(done.stderr.split())
    assert "README.md" in shown
    assert "evaluation-perplexity-by_position.png" in shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_writes_says_so_and_speaks_json(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    done = invoke(run / "model", "--license", "mit", "--dataset", "o/d", "--base-model", "o/b")
    assert done.exit_code == 0, done.output
    assert "Written" in done.stdout
    assert "(as given)" in done.stdout
    found = json.loads(invoke(run / "model", "--license", "mit", "--json").stdout)
    assert found["written"] is True
    assert found["metadata"]["license"] == "mit"
    assert Path(found["files"][0]).name == "README.md"
    (run / "model" / "README.md").write_text("mine")
    done = invoke(run / "model")
    assert done.exit_code == 2
    assert "--overwrite" in done.stderr
