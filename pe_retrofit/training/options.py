"""Options of a fine-tune and of distillation, and the ``TrainingArguments`` they stand for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import StrictOptions, choice, flag, integer, number, numbers
from ..errors import UnsupportedError
from ..machine import fast_dtype

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit")
REPORTERS = {"none": None, "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
POSITION_FACTOR = 10
"""Learning rate of position parameters in multiples of the others': they are few, and each acts on all tokens."""


@dataclass(frozen=True)
class FineTuneOptions(StrictOptions):
    """How to fine-tune; transformers' ``TrainingArguments`` in fewer words.

    A step is one update: ``batch_size * accumulation`` rows on each process.
    """

    name = "finetune"
    noun = "section"

    max_steps: int | None = integer(None, low=1, high=10**8, optional=True, help="updates; or give epochs")
    epochs: float | None = number(None, low=1e-6, high=1e5, optional=True, help="passes over the data; default 1")
    learning_rate: float = number(2e-4, low=0, high=10, help="of the adapter or the weights, at its highest")
    pe_learning_rate: float | None = number(
        None, low=0, high=10, optional=True, help="of position parameters; None: 10 times learning_rate"
    )
    schedule: str = choice("cosine", SCHEDULES, help="of the learning rates")
    warmup: float = number(0.03, low=0, high=1e8, help="below 1: share of the steps; from 1 on: steps")
    batch_size: int = integer(4, low=1, high=10**6, help="rows per process and forward")
    accumulation: int = integer(1, low=1, high=10**6, help="forwards per update")
    gradient_checkpointing: bool = flag(False, help="recompute activations in backward: less memory, more time")
    precision: str = choice("auto", ("auto", "fp32", "bf16", "fp16"), help="of the arithmetic; see docs/training.md")
    shifted_group: int | None = integer(
        None,
        low=2,
        high=2**24,
        optional=True,
        help="train with shifted sparse attention in groups of so many tokens; None: full attention",
    )
    optim: str = choice("adamw_torch", OPTIMIZERS, help="optimizer, by transformers' name")
    weight_decay: float = number(0.0, low=0, high=10, help="not for norms, biases and position parameters")
    betas: tuple[float, ...] | None = numbers(low=0, high=0.999999, most=2, help="of Adam; None: 0.9 and 0.999")
    max_grad_norm: float = number(1.0, low=0, high=1e9, help="gradients are clipped to this norm; 0: never")
    save_every: int = integer(100, low=1, high=10**8, help="steps between checkpoints; the last step has one too")
    keep: int = integer(2, low=1, high=1000, help="checkpoints kept")
    log_every: int = integer(10, low=1, high=10**8, help="steps between lines of the log")
    evaluate_every: int = integer(0, low=0, high=10**8, help="steps between losses on the held-out text; 0: at the end")
    report_to: str = choice("none", tuple(REPORTERS), help="experiment tracker, which must be installed")
    seed: int = integer(0, low=0, high=2**32 - 1, help="of adapters, dropout and the order of the data")

    def check(self) -> Sequence[str]:
        problems = []
        if self.max_steps is not None and self.epochs is not None:
            problems.append("max_steps and epochs are both given; leave one of them out")
        if self.betas is not None and len(self.betas) != 2:
            problems.append(f"betas={self.betas!r} must be two numbers, such as [0.9, 0.999]")
        if self.shifted_group is not None and self.shifted_group % 2:
            problems.append(f"shifted_group={self.shifted_group} must be even: half of it is the shift")
        return problems

    @property
    def position_rate(self) -> float:
        """Learning rate of position parameters."""
        return POSITION_FACTOR * self.learning_rate if self.pe_learning_rate is None else self.pe_learning_rate


@dataclass(frozen=True)
class DistillOptions(StrictOptions):
    """Distillation from the original: the same weights, with adapter and patch off, are the teacher.

    The loss is ``(1 - w) CE + w T² KL(teacher‖student)`` (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a
    Neural Network", arXiv 1503.02531), over the whole vocabulary, which is in memory anyway.
    """

    name = "distill"
    noun = "section"

    weight: float = number(0.5, low=0.0, high=1.0, help="w, share of the distance from the original in the loss")
    temperature: float = number(1.0, low=0.05, high=100.0, help="T, divides the logits of both")

    def check(self) -> Sequence[str]:
        return [] if self.weight > 0 else ["weight=0 would never look at the teacher; leave the section out"]


def training_arguments(
    options: FineTuneOptions,
    folder: Path,
    *,
    evaluates: bool,
    half: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Any:
    """``transformers.TrainingArguments`` of the options.

    Args:
        options: of the fine-tune.
        folder: checkpoints go there.
        evaluates: whether there is something to evaluate on.
        half: whether weights of the model are in half precision.
        more: arguments the data asks for.

    Raises:
        UnsupportedError: this machine cannot do the precision, or a package is not installed.
    """
    from transformers import TrainingArguments

    _check_installed(options)
    precision = settle_precision(options.precision, half=half)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.max_steps or -1,
        num_train_epochs=options.epochs or 1.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        lr_scheduler_kwargs=_SCHEDULE_KEYWORDS.get(options.schedule),
        warmup_steps=options.warmup if options.warmup < 1 else int(options.warmup),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        optim=options.optim,
        weight_decay=options.weight_decay,
        adam_beta1=(options.betas or (0.9, 0.999))[0],
        adam_beta2=(options.betas or (0.9, 0.999))[1],
        max_grad_norm=options.max_grad_norm,
        logging_strategy="steps",
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=None,  # rotation waits until the new checkpoint is whole
        eval_strategy="steps" if evaluates and options.evaluate_every else "no",
        eval_steps=options.evaluate_every or None,
        prediction_loss_only=True,
        report_to=REPORTERS[options.report_to] or "none",
        seed=options.seed,
        data_seed=options.seed,
        dataloader_num_workers=0,
        include_num_input_tokens_seen="all",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        use_cpu=_on_cpu(),
        **(more or {}),
    )


_SCHEDULE_KEYWORDS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
}


def settle_precision(wanted: str, *, half: bool = False) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` on a CPU without instructions for bfloat16 is ``fp32``.

    Args:
        wanted: an option ``precision``.
        half: weights are in half precision, so that nothing but autocast multiplies them with float32.

    Raises:
        UnsupportedError: fp16 where there is no GPU.
    """
    gpu = torch.cuda.is_available() and not _on_cpu()
    if wanted == "auto":
        if not gpu:
            return "bf16" if _on_cpu() and (half or fast_dtype() == torch.bfloat16) else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if wanted == "fp16" and not gpu:
        raise UnsupportedError(
            "finetune.precision='fp16' scales its loss on a GPU, and there is none. Set precision=bf16 or fp32."
        )
    return wanted


def _on_cpu() -> bool:
    """Whether training runs on the CPU: there is nothing else, or the launcher asks for it."""
    from accelerate.utils import parse_flag_from_env

    return not torch.accelerator.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def _check_installed(options: FineTuneOptions) -> None:
    package = REPORTERS[options.report_to]
    if package is not None and importlib.util.find_spec(package) is None:
        raise UnsupportedError(
            f"finetune.report_to={options.report_to!r} needs the package {package!r}, which is not installed. Install "
            f"it with: pip install {package}, or set report_to=none; training.jsonl is always written."
        )
    if "8bit" in options.optim and importlib.util.find_spec("bitsandbytes") is None:
        raise UnsupportedError(
            f"finetune.optim={options.optim!r} needs bitsandbytes, which is not installed. Install it with: pip "
            "install bitsandbytes, or set optim=adamw_torch."
        )
