"""Shifted sparse attention as an option of a fine-tune and of a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
from finetuning import LORA, OPTIONS, Data, Rows, patched, run

from pe_retrofit.attention import interface
from pe_retrofit.attention.grouped import GROUP
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.patchers.family import find_host
from pe_retrofit.pipeline import make_recipe
from pe_retrofit.training import DistillOptions, FineTuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


def short(**changes: Any) -> FineTuneOptions:
    return dataclasses.replace(OPTIONS, **{"max_steps": 2, "save_every": 100, "log_every": 1, **changes})


def losses(done: Any) -> list[float]:
    return [row["loss"] for row in done.history if "loss" in row]


@pytest.mark.parametrize("build", [tiny.llama, tiny.neox])
def test_it_trains_in_groups_and_evaluates_over_everything(build: Any, tmp_path: Path) -> None:
    lora = dataclasses.replace(LORA, dropout=0.0)
    found = {}
    for group in (None, 8):
        data = Data(Rows(), Rows(4, seed=9))
        options = short(shifted_group=group, learning_rate=0.0, pe_learning_rate=0.0)
        done = run(tmp_path / str(group), options, lora, patched(build=build), data=data)
        found[group] = (losses(done), done.history[-1]["eval_loss"])
        host = find_host(done.model)
        assert not any(GROUP in attention.__dict__ for attention in host.attentions)
    assert min(abs(a - b) for a, b in zip(found[None][0], found[8][0], strict=True)) > 1e-3
    assert found[None][1] == pytest.approx(found[8][1], rel=1e-5)


def test_the_teacher_sees_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only forward passes with gradients are in groups: those of the student."""
    seen = []
    grouped = interface.grouped

    def watched(call: Any, *more: Any) -> Any:
        seen.append(call.query.requires_grad)
        return grouped(call, *more)

    monkeypatch.setattr(interface, "grouped", watched)
    run(tmp_path, short(shifted_group=8), model=tiny.llama(), distill=DistillOptions())
    assert len(seen) == 2 * 2 * 2, "steps, accumulated batches, layers"
    assert all(seen)


def test_what_cannot_be_is_refused_before_a_step(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="for decoders"):
        run(tmp_path / "bert", short(shifted_group=8), model=patched(build=tiny.bert))
    assert not (tmp_path / "bert").exists()
    with pytest.raises(UnsupportedError, match="16 tokens is no multiple"):
        run(tmp_path / "odd", short(shifted_group=12))
    with pytest.raises(ConfigError, match="shifted_group=7 must be even"):
        FineTuneOptions(shifted_group=7)


def test_a_recipe_is_checked_against_its_rows() -> None:
    raw: dict[str, Any] = {
        "model": "smollm2",
        "data": {"text": "python", "length": 512, "curriculum": [[256, 0.5], [512, 0.5]]},
        "finetune": {"shifted_group": 512},
    }
    with pytest.raises(ConfigError, match="does not divide rows of 256 tokens"):
        make_recipe(raw)
    raw["finetune"]["shifted_group"] = 128
    assert make_recipe(raw)["finetune"].shifted_group == 128
    raw["data"] = {"text": "python", "length": 512, "packing": "padded"}
    with pytest.raises(ConfigError, match=r"data\.packing='windows', not 'padded'"):
        make_recipe(raw)
