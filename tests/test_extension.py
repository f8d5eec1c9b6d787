"""The extension suite: on a tiny decoder against direct computations, and its encoder part on MiniLM."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_demo import SETTINGS, ByteTokenizer, direct_nll, model, text  # noqa: F401  (fixtures)
from typer.testing import CliRunner

from pe_retrofit import models, patch_model, texts
from pe_retrofit.cli.app import build
from pe_retrofit.demo import Settings, Variant, print_extension, run_extension, save
from pe_retrofit.demo.encoder import VARIANTS, embed, measure_encoder


def settings() -> Settings:
    variants = (
        Variant("unpatched"),
        Variant("rerope", "rerope", {"window": 16}),
        Variant("refused", "pope"),
    )
    return Settings(**{**vars(SETTINGS), "length_variants": variants})


def test_lengths_are_measured_and_a_refused_variant_does_not_lose_the_others(
    model: Any,  # noqa: F811
    text: texts.Text,  # noqa: F811
    tmp_path: Path,
) -> None:
    results = run_extension(model, ByteTokenizer(), None, text, settings(), model_name="tiny")
    stock, rerope, refused = results["length"]["variants"]
    ids = torch.tensor([256, *text.content.encode()[7 : 7 + 95]])
    for row, patched in ((stock, False), (rerope, True)):
        if patched:
            patch_model(model, "rerope", window=16)
        nll = direct_nll(model, ids)
        for cell in row["cells"]:
            n = cell["length"]
            assert cell["perplexity"] == pytest.approx(math.exp(nll[n - 17 : n - 1].mean()), rel=1e-4)
    assert "cannot be retrofitted" in refused["error"]
    paths = save(results, tmp_path)
    assert [p.name for p in paths] == ["extension.json", "extension.png"]
    assert json.loads(paths[0].read_text())["kind"] == "extension"
    console = Console(file=io.StringIO(), width=200)
    print_extension(results, console)
    assert "cannot be retrofitted" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.skipif(not models.minilm_available(), reason="MiniLM's package is not installed")
def test_an_encoder_reads_four_times_its_table(text: texts.Text) -> None:  # noqa: F811
    bert, tokenizer = models.minilm()
    chosen = [v for v in VARIANTS if v.label in ("learned, tile", "learned, interpolate", "rope")]
    results = measure_encoder(bert, tokenizer, text, chosen, texts=3)
    rows = {row["label"]: row for row in results["variants"]}
    assert all(row["finite"] for row in rows.values())
    assert rows["learned, tile"]["short_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert rows["learned, tile"]["accuracy"] == 1.0
    assert 0.5 < rows["learned, interpolate"]["short_cosine"] < 0.999
    assert 0.2 < rows["rope"]["short_cosine"] < 0.999
    tokens = torch.arange(1000, 1020)
    with torch.no_grad():
        ids = torch.cat((torch.tensor([101]), tokens, torch.tensor([102])))[None]
        wanted = bert(ids).last_hidden_state[0].mean(0)
    assert torch.allclose(embed(bert, tokens, (101, 102)), wanted, atol=1e-6)


def test_wrong_suite_and_text() -> None:
    run = CliRunner().invoke(build(), ["demo", "--suite", "long"])
    assert run.exit_code == 2
    run = CliRunner().invoke(build(), ["demo", "--suite", "extension", "--quick"])
    assert run.exit_code == 2
    run = CliRunner().invoke(build(), ["demo", "--text", "/no/such/file.txt"])
    assert run.exit_code != 0
    assert "cannot be read" in str(run.exception) + run.output
