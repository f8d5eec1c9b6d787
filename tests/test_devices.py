"""LoRA runs on two processes against one: DDP, FSDP2, tensor and context parallel; what is saved; what is refused."""

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
from device_runs import ENCODINGS, MAIN, compare, patched, result, train, trained_by_trainer, with_lora
from peft import PeftModel
from safetensors.torch import load_file

from pe_retrofit import ConfigError, UnsupportedError, patch_model
from pe_retrofit.training.devices import check_context_parallel, check_world, save_whole, whole_state, world

HERE = Path(__file__).parent
EXACT = 1e-10
"""float64, losses and weights after three steps of AdamW."""
ROUNDED = 2e-6
"""Losses of transformers' Trainer, which computes them in float32 whatever the model's dtype."""

names = pytest.mark.parametrize("name", MAIN)


def references(folder: Path) -> None:
    """What one process gets and saves."""

    def keep(run: str, name: str, model: Any, losses: list[float]) -> None:
        torch.save(result(model, losses), folder / f"{run}-{name}.pt")
        model.save_pretrained(folder / f"{run}-{name}")

    for name in ENCODINGS:
        patched(name).save_pretrained(folder / f"patched-{name}")
        model = with_lora(patched(name), name)
        keep("one", name, model, train(model))
        if name not in MAIN:
            continue
        model = with_lora(patched(name), name)
        model.save_pretrained(folder / f"start-{name}")
        keep("micro", name, model, train(model, micro=2))
        model = patched(name)
        keep("full", name, model, train(model))
        model = with_lora(patched(name), name)
        keep("trainer", name, model, trained_by_trainer(model, folder / "trainer", 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with everything that one and two processes found; one launch for all."""
    folder = tmp_path_factory.mktemp("devices")
    references(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE),
        "TOKENIZERS_PARALLELISM": "false",
        "ACCELERATE_USE_CPU": "true",
    }
    script = [*command, str(HERE / "worker_devices.py"), str(folder), "all"]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == "devices: 2 processes, ddp (accelerate: MULTI_CPU, gloo), cpu:0"
    return folder


def both(folder: Path, run: str, name: str) -> dict[str, Any]:
    """What the first process found, after a look at the second."""
    rows = [torch.load(folder / f"{run}-{name}-{rank}.pt") for rank in (0, 1)]
    for rank, row in enumerate(rows):
        assert "error" not in row, row["error"]
        assert (row["world"]["processes"], row["world"]["rank"]) == (2, rank)
        assert row["world"]["accelerate"] == "MULTI_CPU"
    assert rows[0].get("refused") == rows[1].get("refused")
    return rows[0]


def close(folder: Path, run: str, name: str, against: str, kind: str, losses: float = EXACT) -> None:
    row = both(folder, run, name)
    assert row["world"]["kind"] == kind
    wanted = torch.load(folder / f"{against}-{name}.pt")
    found = compare(row["found"], wanted)
    assert found["losses"] <= losses, found
    assert found["weights"] <= EXACT, found


def same_files(found: Path, wanted: Path, *, exact: bool) -> None:
    """The same files, configs, keys and dtypes; tensors equal bit by bit, or up to rounding."""
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in wanted.iterdir())
    for path in wanted.glob("*.json"):
        one, other = (json.loads((folder / path.name).read_text()) for folder in (wanted, found))
        for config in (one, other):
            for key in ("target_modules", "modules_to_save"):  # sets, in any order
                config[key] = sorted(config.get(key) or [])
            config.pop("base_model_name_or_path", None)  # the folder that a model was loaded from
        assert one == other
    for path in wanted.glob("*.safetensors"):
        one, other = load_file(path), load_file(found / path.name)
        assert list(one) == list(other)
        for key, tensor in one.items():
            assert tensor.dtype == other[key].dtype
            assert torch.equal(tensor, other[key]) or not exact, key
            torch.testing.assert_close(other[key], tensor, atol=EXACT, rtol=0.0)
    assert not list(found.parent.glob(".*"))


@names
def test_the_runs_train(name: str, runs: Path) -> None:
    """What is compared has moved, the table included, and ALiBi and YaRN differ."""
    one = torch.load(runs / f"one-{name}.pt")
    start = with_lora(patched(name), name).state_dict()
    moved = {key: float((start[key] - t).abs().max()) for key, t in one["state"].items()}
    assert min(moved.values()) > 1e-3
    assert any("position_encoding" in key for key in moved) == (name == "t5")
    assert len({tuple(torch.load(runs / f"one-{other}.pt")["losses"]) for other in ENCODINGS}) == len(ENCODINGS)


@names
def test_ddp(name: str, runs: Path) -> None:
    close(runs, "ddp", name, "one", "ddp")
    same_files(runs / f"ddp-{name}", runs / f"one-{name}", exact=False)
    assert "kind='fsdp2' was asked for, but 'ddp' runs" in both(runs, "ddp", name)["refused"]


@names
def test_fsdp2(name: str, runs: Path) -> None:
    close(runs, "fsdp2", name, "one", "fsdp2")
    same_files(runs / f"fsdp2-{name}", runs / f"one-{name}", exact=False)
    close(runs, "fsdp2_full", name, "full", "fsdp2")
    same_files(runs / f"fsdp2-full-{name}", runs / f"full-{name}", exact=False)


@names
@pytest.mark.parametrize("way", ["fsdp2", "loaded", "tp"])
def test_what_is_saved_whole_is_what_one_process_saves(name: str, way: str, runs: Path) -> None:
    same_files(runs / f"{way}-untouched-{name}", runs / f"patched-{name}", exact=True)


def test_an_adapter_from_shards_goes_onto_a_plain_model(runs: Path) -> None:
    ids = tiny.ids(2, 20, seed=9)
    one, other = (PeftModel.from_pretrained(patched("t5"), runs / f"{way}-t5") for way in ("one", "fsdp2"))
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, one(ids).logits, atol=1e-8, rtol=0.0)
        assert float((one(ids).logits - patched("t5")(ids).logits).abs().max()) > 1e-3


@names
def test_a_failed_save_is_an_error_on_every_process(name: str, runs: Path) -> None:
    first, second = (torch.load(runs / f"fsdp2_full-{name}-{rank}.pt")["failed"] for rank in (0, 1))
    assert first.startswith(("NotADirectoryError", "FileExistsError"))
    assert second.startswith("OSError: The first process could not save the model in")
    assert first in second


@names
def test_trainer(name: str, runs: Path) -> None:
    close(runs, "trainer_ddp", name, "trainer", "ddp", ROUNDED)
    if name == "t5":
        said = both(runs, "trainer_fsdp2", name)["refused"]
        assert "modules_to_save=['position_encoding'] makes peft copy these modules" in said
    else:
        close(runs, "trainer_fsdp2", name, "trainer", "fsdp2", ROUNDED)


@names
def test_tensor_parallel(name: str, runs: Path) -> None:
    """Half of the heads each; an adapter goes on, a new one is made on the shards, or all weights train."""
    close(runs, "tp", name, "micro", "tp")
    same_files(runs / f"tp-{name}", runs / f"micro-{name}", exact=False)
    assert both(runs, "tp", name)["mended"] == 8
    close(runs, "tp_full", name, "full", "tp")


@names
def test_an_adapter_made_on_shards_trains_as_on_one_process(name: str, runs: Path) -> None:
    row = both(runs, "tp_fresh", name)
    model = PeftModel.from_pretrained(patched(name), runs / f"fresh-{name}", is_trainable=True).train()
    first = model.base_model.model.model.layers[0].self_attn.o_proj.lora_A["default"].weight.detach()
    assert not torch.equal(first[:, :16], first[:, 16:]), "each shard has numbers of its own"
    found = compare(row["found"], result(model, train(model)))
    assert max(found["losses"], found["weights"]) <= EXACT, found


@pytest.mark.parametrize("name", ENCODINGS)
def test_context_parallel(name: str, runs: Path) -> None:
    """Rotations see the positions of their own part; what adds to scores is refused."""
    row = both(runs, "cp", name)
    if name in ("alibi", "t5"):
        assert f"cp_size=2 splits each text over processes, and {name} needs all of it" in row["refused"]
        return
    close(runs, "cp", name, "one", "ddp")
    assert row["positions"] == [*range(6), *range(18, 24)], "the first and the last quarter of the text"


@pytest.mark.parametrize(
    ("spec", "options", "allowed"),
    [
        ("yarn", {"factor": 4.0}, True),
        ("yarn", {"factor": 4.0, "layers": [1]}, True),
        ("linear", {"factor": 2.0}, True),
        ("partial_rope", {"p": 0.5}, True),
        ("nope", {}, True),
        ("nope", {"attn_scale": 0.1}, False),
        ("alibi", {}, False),
        ("shaw", {}, False),
        ("self_extend", {"group": 2, "window": 4}, False),
        ("conv", {}, False),
        ("dynamic", {"factor": 2.0}, False),
    ],
    ids=str,
)
def test_context_parallel_is_for_rotations(spec: str, options: dict[str, Any], allowed: bool) -> None:
    model = patch_model(tiny.llama(), spec, **options)
    check_context_parallel(model, 1)
    if allowed:
        check_context_parallel(model, 2)
        model.set_attn_implementation("eager")
        with pytest.raises(UnsupportedError, match=r"'eager'.*set_attn_implementation\('sdpa'\)"):
            check_context_parallel(model, 2)
        return
    with pytest.raises(UnsupportedError, match="cp_size=2 splits each text"):
        check_context_parallel(model, 2)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_wrong_sizes(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"cp_size=.* must be a whole number"):
        check_context_parallel(tiny.llama(), size)
    with pytest.raises(
        ConfigError, match=r"processes=.* must be a whole number.*kind='tensor' must be one of one, ddp"
    ):
        check_world(size, "tensor")


def test_what_was_asked_for_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = check_world(1, "one")
    assert found == world()
    assert capsys.readouterr().out.startswith("devices: 1 process, one (accelerate: ")
    launch = "processes=2 was asked for, but 1 run.*ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2"
    with pytest.raises(UnsupportedError, match=launch):
        check_world(2)
    with pytest.raises(UnsupportedError, match=r"kind='fsdp2' was asked for, but 'one' runs; .*fsdp_size=1"):
        check_world(1, "fsdp2", model=tiny.llama())


def test_a_launcher_that_falls_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes were launched; accelerate, not told that they run on CPUs, takes each for the only one."""
    check_world(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match=r"WORLD_SIZE\) says 2, torch.distributed says 1, accelerate says 1"):
        check_world(2)


def test_one_process_saves_too(tmp_path: Path) -> None:
    model = patched("t5")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "old").touch()
    save_whole(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "wanted")
    same_files(tmp_path / "saved", tmp_path / "wanted", exact=True)
    assert set(whole_state(model, trained=True)) == {n for n, _ in model.named_parameters(remove_duplicate=False)}
