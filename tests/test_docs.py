"""The code of docs/add_an_encoding.md runs from top to bottom, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bytetokens import ByteTokenizer
from matrix import HOSTS, cached_logits, distance, logits, tokens

from pe_retrofit import get_encoding, patch_model, status
from pe_retrofit.capabilities import capability

PAGE = (Path(__file__).parent.parent / "docs" / "add_an_encoding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Everything the page defines, after all of its blocks ran in one module; what it printed is ``printed``."""
    names: dict[str, Any] = {"__name__": "encodings_of_the_page"}
    for block in BLOCKS:
        exec(compile(block, "docs/add_an_encoding.md", "exec", dont_inherit=True), names)
    names["printed"] = capsys.readouterr().out
    return names


def test_page_runs_and_says_what_is_true(page: dict[str, Any]) -> None:
    assert len(BLOCKS) == 4
    printed = page["printed"]
    assert "an exact identity within the trained length" in printed
    for name in ("consistent", "relative", "bounded", "cached = uncached"):
        assert f"{name} True" in printed
    assert not torch.equal(page["trained"], page["before"])
    assert page["model"].model.layers[0].self_attn.position_encoding["near"].table.any()
    saturating, near = capability("saturating"), capability("near")
    assert (saturating.kernels["cpu"][0], near.kernels["cpu"][0]) == ("toeplitz", "skewed")
    assert near.families == {"llama": True, "gpt_neox": True, "bert": False}


def test_page_formulas(page: dict[str, Any]) -> None:
    """Against plain loops, and decoding against one pass."""
    model = patch_model(HOSTS["llama"].fresh(), ["native", "saturating", "near"])
    modules = model.model.layers[0].self_attn.position_encoding
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.self_attn.position_encoding.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    bias = modules["saturating"].bias(torch.arange(12), causal=True)
    for head, strength in enumerate(modules["saturating"].strength.tolist()):
        for d in range(12):
            assert bias[head, d].item() == pytest.approx(-strength * d / (d + 64.0), abs=1e-6)

    from pe_retrofit import Block

    query, key = torch.randn(2, 1, 4, 10, 8, dtype=torch.float64)
    positions = torch.arange(10)[None]
    near = get_encoding("near")(page["NearConfig"](reach=3), modules["near"].host).double()
    torch.nn.init.normal_(near.table, generator=torch.Generator().manual_seed(2))
    block = Block(query, key, positions, positions, True, 8**-0.5, lambda: None, 0)
    found = near.scores(block)
    for h in range(4):
        for i in range(10):
            for j in range(i + 1):
                wanted = (query[0, h, i] @ near.table[h, i - j]).item() * 8**-0.5 if i - j < 3 else 0.0
                assert found[0, h, i, j].item() == pytest.approx(wanted, abs=1e-12)
    ids = tokens(1, 40)
    assert distance(cached_logits(model, ids, (20, 1, 19)), logits(model, ids, use_cache=False)) < 1e-4
    assert "skewed" in status(patch_model(HOSTS["llama"].fresh(), "near")).patches[0].kernel


def test_the_task_of_the_evaluation_page_runs() -> None:
    """Its own task can be named, is built as it says, and scores."""
    from test_evaluation import SMALL, tiny

    from pe_retrofit.evaluation import evaluate_model
    from pe_retrofit.evaluation.task import _TASKS

    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "register_task" in b]
    try:
        exec(compile(block, "docs/evaluation.md", "exec", dont_inherit=True), {"__name__": "task_of_the_page"})
        found = evaluate_model(tiny(), ByteTokenizer(), **{**SMALL, "tasks": ("capital",), "options": {}})
    finally:
        _TASKS.pop("capital", None)
    assert found["tasks"]["capital"]["n"] == 4
    assert found["tasks"]["capital"]["status"] == "ok"
