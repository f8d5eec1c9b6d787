"""LoRA runs for the tests on two processes: the same code trains as one process and as one of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

import pe_retrofit
from pe_retrofit.training.devices import whole_state

ENCODINGS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "alibi": ("alibi", {}, []),
    "t5": ("t5", {"num_buckets": 8, "max_distance": 16}, ["position_encoding"]),
    "yarn": ("yarn", {"factor": 4.0}, []),
    "yarn_1": ("yarn", {"factor": 4.0, "layers": [1]}, []),
}
"""Spec, options and what is trained whole beside LoRA."""

MAIN = ["alibi", "t5", "yarn"]
"""Those that run in every way; ``yarn_1``, which turns at the attention's door, runs context parallel."""

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
BATCH, LENGTH, STEPS = 4, 24, 3


def patched(name: str, dtype: torch.dtype = torch.float64) -> Any:
    spec, options, _ = ENCODINGS[name]
    model = pe_retrofit.patch_model(tiny.llama().to(dtype), spec, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "position_encoding" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return model


def with_lora(model: Any, name: str, targets: list[str] | None = None) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=targets or TARGETS,
        modules_to_save=ENCODINGS[name][2] or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).train()


def batches(steps: int = STEPS) -> list[Tensor]:
    return [tiny.ids(BATCH, LENGTH, seed=step) for step in range(steps)]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """In the model's dtype; transformers' own is float32."""
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, rows: slice = slice(None), *, micro: int = 1) -> list[float]:
    """Losses of AdamW steps on a part of every batch, each in ``micro`` parts whose gradients add up."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser, losses = torch.optim.AdamW(parameters, lr=1e-2, foreach=False), []
    for ids in batches():
        total = 0.0
        for part in ids[rows].chunk(micro):
            loss = loss_of(model, part) / micro
            loss.backward()
            total += loss.item()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
    return losses


def result(model: nn.Module, losses: list[float]) -> dict[str, Any]:
    return {"losses": losses, "state": whole_state(model, trained=True)}


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Largest differences of losses and of trained weights, and how far these moved."""
    assert list(found["state"]) == list(wanted["state"])
    difference = max(float((found["state"][k] - t).abs().max()) for k, t in wanted["state"].items())
    losses = max(abs(a - b) for a, b in zip(found["losses"], wanted["losses"], strict=True))
    return {"losses": losses, "weights": difference, "tensors": len(wanted["state"])}


def trained_by_trainer(model: Any, folder: Path, processes: int, world: list[Any] | None = None) -> list[float]:
    """Losses of transformers' Trainer, with the same rows in every global batch."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from pe_retrofit.training.devices import check_world

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if world is not None and not world:
                world.append(check_world(2, model=trainer.model_wrapped, report=None))

    data = [{"input_ids": row, "labels": row} for ids in batches() for row in ids]
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH // processes,
        max_steps=STEPS,
        learning_rate=1e-2,
        weight_decay=0.01,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=3,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[Look()])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
