"""``pe-retrofit calibrate``: models written, starts compared on text that was not calibrated on, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers_made
import torch
import transformers as hf
from typer.testing import CliRunner, Result

from pe_retrofit.cli.app import build
from pe_retrofit.retrofit import CalibrateOptions
from pe_retrofit.retrofit.calibration import starts

SMALL = ("--windows", 2, "--held-out", 3, "--length", 24, "--rows", 8)


def run(*words: Any) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(build(), [str(word) for word in words])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.llama(vocab_size=260).save_pretrained(folder)
    tokenizers_made.decoder_tokenizer().save_pretrained(folder)
    (folder / "book.txt").write_text("The quick brown fox jumps over the lazy dog. " * 30, encoding="utf-8")
    return folder


def test_written_model_is_the_calibrated_one(llama: Path, tmp_path: Path) -> None:
    result = run("calibrate", llama, "t5", "--text", llama / "book.txt", "--out", tmp_path / "out", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == found
    assert found["after"] < found["before"]
    got = found["perplexity"]
    assert min(got["stock"], got["default"], got["calibrated"]) > 1
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "position_encoding" in n)


def test_comparison_writes_no_model(llama: Path, tmp_path: Path) -> None:
    words = ("calibrate", llama, "t5,nope", "--text", llama / "book.txt", *SMALL)
    result = run(*words, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["starts"]
    assert [row["name"] for row in rows] == ["t5", "nope"]
    assert len({row["stock"] for row in rows}) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["starts.json"]
    shown = run(*words).output
    assert "default start" in shown
    assert "nope" in shown


def test_refusals(llama: Path, tmp_path: Path) -> None:
    for words, message in [
        (("t5",), "--out"),
        (("t5,alibi", "num_buckets=8"), "several encodings"),
        (("yarn", "factor=2", "--out", tmp_path / "a"), "patch_model instead"),
        (("t5", "--out", tmp_path / "a", "--windows", 500), "windows of 24 tokens"),
    ]:
        result = run("calibrate", llama, *words, "--text", llama / "book.txt", *SMALL[2:], "--windows", 2, *words[-2:])
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "a").exists()


def test_numbers_are_those_of_separate_runs() -> None:
    """Perplexity by transformers' own loss; the windows measured are not those calibrated on; the model is restored."""
    model, ids = tiny.llama(), tiny.ids(5, 24)
    wanted = [model(input_ids=w[None], labels=w[None]).loss.item() for w in ids[2:]]
    before = model(input_ids=ids).logits
    options = CalibrateOptions(windows=2, length=24, rows=8)
    seen: list[torch.Tensor] = []
    real = starts.calibrate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            starts, "calibrate", lambda m, s, windows, **more: seen.append(windows) or real(m, s, windows, **more)
        )
        rows = starts.compare_starts(model, [("t5", "t5")], ids, options)
    assert rows[0].stock == pytest.approx(torch.tensor(wanted).mean().exp().item(), rel=1e-4)
    assert torch.equal(seen[0], ids[:2])
    assert rows[0].after < rows[0].before
    assert torch.equal(model(input_ids=ids).logits, before)
    bert = starts.compare_starts(tiny.bert(), [("t5", "t5")], ids, options)
    assert bert[0].stock is bert[0].default is bert[0].calibrated is None
