"""Several processes through accelerate's launcher: what was asked for runs, or nothing does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
import yaml

from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.pipeline.launching import Plan, check_expectation, plan_launch
from pe_retrofit.pipeline.shipped import launchers


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = recipe_runs.make_folder(tmp_path_factory.mktemp("launch"))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_runs.raw(folder, "two")))
    return path


def command(*words: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
    words = (sys.executable, "-m", "pe_retrofit.cli", *map(str, words))
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=550)


def test_two_processes_run_a_recipe(recipe: Path) -> None:
    done = command("train", recipe, "--launch", "--config", "cpu2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("devices: 2 processes, ddp (accelerate: MULTI_CPU, gloo)") == 2, (
        "at the start, and as it trains"
    )
    assert done.stdout.count("| + finetune |") == 1, "the first process prints"
    out = recipe.parent / "two"
    steps = json.loads((out / "run.json").read_text())["steps"]
    assert steps["finetune"]["result"]["devices"].startswith("2 processes, ddp")
    assert steps["finetune"]["result"]["tokens"] == 2 * 2 * 2 * 32, "steps, processes, rows, tokens"
    results = json.loads((out / "evaluate" / "finetune" / "results.json").read_text())
    assert results["device"]["processes"] == 2
    assert (out / "model" / "model.safetensors").is_file()
    again = command("train", recipe, "--launch", "--processes", "2", "--json")
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout)["rows"][2]["tokens"] == 256


def test_an_error_in_a_process_is_told_once_and_stops_all(recipe: Path) -> None:
    done = command("train", recipe, "finetune.batch_size=9", "--launch", "--processes", "2")
    assert done.returncode == 2
    assert "another recipe" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_sharding_on_cpus_is_refused(recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"would run DDP|DeepSpeed"):
        plan_launch(2, name)


def test_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert plan_launch(2, "cpu2") == Plan(2, "ddp", True, launchers()["cpu2"])
    assert plan_launch(3, None) == Plan(3, "ddp", True, None)
    for processes, config, words in [
        (None, None, "say --processes"),
        (0, None, "from 1 to"),
        (2, "nonsense", "none that comes with the package"),
    ]:
        with pytest.raises(ConfigError, match=words):
            plan_launch(processes, config)
    odd = tmp_path / "odd.yaml"
    odd.write_text("distributed_type: MEGATRON_LM\nnum_processes: 2\n")
    with pytest.raises(ConfigError, match="MEGATRON_LM"):
        plan_launch(None, str(odd))
    odd.write_text("distributed_type: 'NO'\nnum_processes: 2\n")
    with pytest.raises(ConfigError, match="is one process"):
        plan_launch(None, str(odd))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert plan_launch(4, "fsdp2") == Plan(4, "fsdp2", False, launchers()["fsdp2"])
    assert plan_launch(None, None).processes == 4
    with pytest.raises(ConfigError, match="has 4 accelerators"):
        plan_launch(None, "ddp")
    odd.write_text("distributed_type: FSDP\nnum_processes: 2\n")
    with pytest.raises(UnsupportedError, match="fsdp_version: 2"):
        plan_launch(None, str(odd))


def test_one_process_where_two_were_asked_for_stops() -> None:
    """What accelerate's --cpu does in silence."""
    with pytest.raises(UnsupportedError, match="processes=2 was asked for, but 1 run"):
        check_expectation("2:ddp")
