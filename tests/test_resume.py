"""A fine-tune that is killed goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from finetuning import LORA, OPTIONS, Data, Rows, forked, patched, run, weights, worker

from pe_retrofit.errors import ConfigError, TrainingError
from pe_retrofit.retrofit.fade import FadeOptions
from pe_retrofit.training import checkpoints
from pe_retrofit.training.journal import FILE, Journal

pytestmark = pytest.mark.filterwarnings("ignore")


def fresh(folder: Path, moment: str = "never", when: int = 0) -> int:
    """A run in a new interpreter."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(Path(__file__).with_name("finetuning.py")), str(folder), moment, str(when)]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("unbroken"))


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("moment", "when", "left"),
    [
        ("step", 1, None),
        ("step", 5, "checkpoint-4"),
        ("inside a file", 4, "checkpoint-2"),
        ("after the optimizer", 2, "checkpoint-2"),
        ("before the manifest", 1, None),
        ("after the manifest", 3, "checkpoint-4"),
        ("after the rename", 2, "checkpoint-4"),
        ("in the rotation", 3, "checkpoint-6"),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_weights(
    moment: str, when: int, left: str | None, tmp_path: Path, unbroken: Any
) -> None:
    assert worker(tmp_path, moment, when) == -signal.SIGKILL
    whole, _ = checkpoints.last_whole(tmp_path)
    assert (whole and whole.name) == left
    done = run(tmp_path)
    assert done.resumed == left
    assert same(weights(done.model), weights(unbroken.model))
    assert timeless(done.history) == timeless(unbroken.history)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert timeless(lines) == timeless(unbroken.history)
    assert [p.name for _, p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-7"]
    assert not (tmp_path / checkpoints.WRITING).exists()


def test_killed_again_and_again_in_processes_of_its_own(tmp_path: Path, unbroken: Any) -> None:
    assert worker(tmp_path, "step", 3) == -signal.SIGKILL
    assert worker(tmp_path, "after the weights", 1) == -signal.SIGKILL
    assert fresh(tmp_path) == 0
    assert json.loads((tmp_path / "done.json").read_text()) == {"resumed": "checkpoint-2", "steps": 7}
    assert same(torch.load(tmp_path / "final.pt", weights_only=True), weights(unbroken.model))


def test_the_comparison_can_fail(tmp_path: Path, unbroken: Any) -> None:
    other = run(tmp_path, dataclasses.replace(OPTIONS, seed=1))
    assert not same(weights(other.model), weights(unbroken.model))


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
@pytest.mark.parametrize("build", [tiny.neox, tiny.bert])
def test_other_families_and_full_fine_tuning_go_on_too(build: Any, whole: bool, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, max_steps=3, save_every=2)
    lora = None if whole else LORA
    first = run(tmp_path, options, lora, patched(["native", "t5"], build))
    shutil.rmtree(tmp_path / "checkpoint-3")
    again = run(tmp_path, options, lora, patched(["native", "t5"], build))
    assert again.resumed == "checkpoint-2"
    assert same(weights(again.model), weights(first.model))


def test_a_fade_goes_on_too(tmp_path: Path) -> None:
    fade = FadeOptions(steps=5)
    first = run(tmp_path / "a", fade=fade)
    assert worker(tmp_path / "b", "fading", 3) == -signal.SIGKILL
    again = run(tmp_path / "b", fade=fade)
    assert again.resumed == "checkpoint-2"
    assert same(weights(again.model), weights(first.model))
    assert timeless(again.history) == timeless(first.history)
    assert [row["strength"] for row in first.history] == sorted(row["strength"] for row in first.history)
    with pytest.raises(ConfigError, match=r"fade\.steps: 5 became 4"):
        run(tmp_path / "b", fade=FadeOptions(steps=4))


def test_a_finished_run_is_only_loaded(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, max_steps=2)
    first = run(tmp_path, options)
    again = run(tmp_path, options)
    assert (again.resumed, again.steps, again.tokens) == ("checkpoint-2", 2, first.tokens)
    assert same(weights(again.model), weights(first.model))
    assert again.history == first.history


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("adapter_model.safetensors", torn, "adapter_model.safetensors has"),
        ("adapter_model.safetensors", flipped, "has changed since"),
        ("optimizer.pt", flipped, "optimizer.pt has changed"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("manifest.json", Path.unlink, "it has no manifest.json"),
        ("manifest.json", torn, "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(file: str, harm: Any, said: str, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, max_steps=3, save_every=2)
    first = run(tmp_path, options)
    harm(tmp_path / "checkpoint-3" / file)
    told: list[str] = []
    again = run(tmp_path, options, report=lambda text, done, total: told.append(text))
    assert again.resumed == "checkpoint-2"
    assert "checkpoint-3 is skipped: " in again.skipped[0]
    assert said in again.skipped[0]
    assert again.skipped[0] in told
    assert same(weights(again.model), weights(first.model))
    assert checkpoints.problems_of(tmp_path / "checkpoint-3") is None


def test_a_full_disk_stops_it_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft.peft_model

    real, calls = peft.peft_model.safe_save_file, []

    def full(tensors: Any, filename: Any, metadata: Any = None) -> None:
        calls.append(filename)
        if len(calls) == 2:
            Path(filename).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, filename, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(peft.peft_model, "safe_save_file", full)
        with pytest.raises(
            TrainingError, match=r"checkpoint-4 could not be written .*No space left.*checkpoint-2' is whole"
        ):
            run(tmp_path)
    assert [p.name for _, p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / checkpoints.WRITING).exists()
    assert run(tmp_path).resumed == "checkpoint-2"


def test_a_disk_that_fills_up_at_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pe_retrofit.training.trainer.seal", full)
        with pytest.raises(TrainingError, match="no checkpoint had been written before"):
            run(tmp_path)
    assert not checkpoints.checkpoints(tmp_path)


def test_a_limit_on_file_sizes_is_a_full_disk_for_torch_and_safetensors(tmp_path: Path) -> None:
    def limited() -> None:
        import resource

        import transformers

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        class Limit(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

        with pytest.raises(TrainingError, match="checkpoint-4 could not be written"):
            run(tmp_path, callbacks=[Limit()])

    assert forked(limited) == 0
    assert checkpoints.last_whole(tmp_path)[0] == tmp_path / "checkpoint-2"


class Poisoned(Rows):
    """Nothing wrong with the rows; the model is poisoned when one of them comes up."""

    def __init__(self, model: Any, row: int) -> None:
        super().__init__()
        self.model, self.row, self.seen = model, row, 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.seen += 1
        if self.seen == self.row:
            with torch.no_grad():
                self.model.model.embed_tokens.weight.fill_(float("nan"))
        return super().__getitem__(index)


def test_a_loss_that_is_no_number_stops_it_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    model = patched()
    with pytest.raises(TrainingError, match=r"The loss is nan at step 4\. .*checkpoint-2'"):
        run(tmp_path, model=model, data=Data(Poisoned(model, 14)))
    assert [p.name for _, p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert checkpoints.problems_of(tmp_path / "checkpoint-2") is None


def test_a_gradient_that_is_no_number_stops_it_before_the_step(tmp_path: Path) -> None:
    model = patched()
    table = model.model.layers[0].self_attn.position_encoding.t5.weight
    run(tmp_path / "fine", dataclasses.replace(OPTIONS, max_steps=1), None, model)
    table.register_hook(lambda slope: slope * float("inf"))
    before = weights(model)
    with pytest.raises(TrainingError, match="The gradient is not finite at step 1"):
        run(tmp_path / "bad", OPTIONS, None, model)
    assert same(weights(model), before)


def test_another_run_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1))
    changed = dataclasses.replace(OPTIONS, max_steps=1, learning_rate=0.5, betas=[0.8, 0.9])
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, changed, dataclasses.replace(LORA, r=4))
    said = str(caught.value)
    assert "finetune.learning_rate: 0.01 became 0.5" in said
    assert "finetune.betas: null became [0.8, 0.9]" in said
    assert "lora.r: 2 became 4" in said
    with pytest.raises(ConfigError, match=r"model\.patches"):
        run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1), model=patched("alibi"))
    with pytest.raises(ConfigError, match="resume=False"):
        run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1), resume=False)
    (tmp_path / checkpoints.RUN).unlink()
    with pytest.raises(ConfigError, match=r"no run\.json"):
        run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1))


def test_how_many_checkpoints_are_kept_may_change(tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1))
    assert run(tmp_path, dataclasses.replace(OPTIONS, max_steps=1, keep=5)).resumed == "checkpoint-1"


def test_a_manifest_reaches_no_file_outside(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").write_text("a")
    checkpoints.seal(folder)
    assert checkpoints.problems_of(folder) is None
    (tmp_path / "outside").write_text("a")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../outside"] = manifest["files"]["a"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoints.problems_of(folder) == "../outside is missing"
    checkpoints.seal(folder)
    (folder / "b").write_text("b")
    assert checkpoints.problems_of(folder) == "b is not in its manifest.json"


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.add({"step": step})
    with (tmp_path / FILE).open("a") as stream:
        stream.write('{"step": 2, "lo')
    again = Journal(tmp_path)
    again.rewind(2)
    assert [row["step"] for row in again.rows] == [1, 2]
    again.add({"step": 3, "loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 2, 3]
    assert lines[-1]["loss"] is None
