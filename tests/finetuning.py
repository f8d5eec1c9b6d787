"""A tiny fine-tune for the tests, and a worker process that runs it and can be killed: ``python finetuning.py``."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import torch

from pe_retrofit import patch_model
from pe_retrofit.retrofit.fade import FadeOptions
from pe_retrofit.training import FineTuneOptions, LoraOptions, finetune

LORA = LoraOptions(r=2, dropout=0.1)
OPTIONS = FineTuneOptions(
    max_steps=7, batch_size=2, accumulation=2, save_every=2, log_every=3, warmup=1, learning_rate=1e-2, precision="fp32"
)


class Rows(torch.utils.data.Dataset):
    """Rows of tokens that are their own labels."""

    def __init__(self, count: int = 12, length: int = 16, seed: int = 5) -> None:
        self.ids = tiny.ids(count, length, seed)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@dataclass
class Data:
    train: Any
    evaluation: Any = None
    collator: Any = field(default=collate)
    text_label: str = "random"
    sha256: str | None = None


def patched(spec: Any = "t5", build: Any = tiny.llama) -> Any:
    model = build()
    patch_model(model, spec)
    return model


def run(folder: Path, options: FineTuneOptions = OPTIONS, lora: Any = LORA, model: Any = None, **more: Any) -> Any:
    model = patched() if model is None else model
    data = more.pop("data", None) or Data(Rows())
    return finetune(model, None, data, options, lora, folder, **more)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Trained tensors, copied."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _worker(folder: Path, moment: str, when: int) -> None:
    """Run, and be killed with SIGKILL at a moment of step ``when``."""
    import transformers

    from pe_retrofit.training import checkpoints, trainer

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Killer(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if moment in ("step", "fading") and state.global_step == when:
                die()

    def at(name: str, place: Any, attribute: str, *, after: bool) -> None:
        before = getattr(place, attribute)
        calls = [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if moment == name and calls[0] == when and not after:
                die()
            result = before(*args, **kwargs)
            if moment == name and calls[0] == when and after:
                die()
            return result

        setattr(place, attribute, wrapped)

    at("before the weights", trainer.PositionTrainer, "_save", after=False)
    at("after the weights", trainer.PositionTrainer, "_save", after=True)
    at("after the optimizer", trainer.PositionTrainer, "_save_optimizer_and_scheduler", after=True)
    at("before the manifest", trainer, "seal", after=False)
    at("after the manifest", trainer, "seal", after=True)
    at("after the rename", checkpoints, "_sync_folder", after=False)
    at("in the rotation", trainer, "rotate", after=False)
    if moment == "inside a file":
        import safetensors.torch

        whole = safetensors.torch.save_file

        def torn(tensors: Any, filename: Any, metadata: Any = None) -> None:
            whole(tensors, filename, metadata)
            if f"checkpoint-{when}" in str(filename):
                size = os.path.getsize(filename)
                os.truncate(filename, size // 2)
                die()

        import peft.peft_model

        peft.peft_model.safe_save_file = torn
    fade = FadeOptions(steps=5) if moment == "fading" else None
    done = run(folder, callbacks=[Killer()], fade=fade)
    torch.save(weights(done.model), folder / "final.pt")
    (folder / "done.json").write_text(json.dumps({"resumed": done.resumed, "steps": done.steps}))


def forked(work: Any) -> int:
    """Run in a process of its own, a copy of this one; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def worker(folder: Path, moment: str, when: int = 0) -> int:
    return forked(lambda: _worker(folder, moment, when))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
