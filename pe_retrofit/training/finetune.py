"""Fine-tune a patched model, with an adapter or whole, so that an interruption costs the steps since a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, TrainingError, UnsupportedError
from ..patchers.family import find_host
from ..progress import Report
from .checkpoints import WRITING, last_whole, settle_run
from .devices import check_start, kind_of
from .heads import output_embedding
from .journal import Journal
from .lora import LoraOptions, add_lora, trained_parameters
from .options import DistillOptions, FineTuneOptions, training_arguments
from .shifted import check_shifted, shifted_sparse

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model.

    Attributes:
        model: the model, a ``PeftModel`` when an adapter was trained, in evaluation mode.
        steps: updates made, over all sessions.
        tokens: of all processes that went through the model.
        seconds: spent training, over all sessions.
        history: lines of ``training.jsonl``.
        parameters: what was trained; see :func:`~pe_retrofit.training.lora.trained_parameters`.
        resumed: name of the checkpoint it went on from, or None.
        skipped: checkpoints that were not whole, and why.
    """

    model: Any
    steps: int
    tokens: int
    seconds: float
    history: list[dict[str, Any]]
    parameters: dict[str, int]
    resumed: str | None = None
    skipped: tuple[str, ...] = ()


def finetune(
    model: Any,
    tokenizer: Any,
    prepared: Any,
    options: FineTuneOptions,
    lora: LoraOptions | None,
    folder: str | Path,
    *,
    resume: bool = True,
    fade: Any = None,
    distill: DistillOptions | None = None,
    report: Report | None = None,
    callbacks: Sequence[Any] = (),
) -> FineTuned:
    """Fine-tune with transformers' ``Trainer``.

    A run that was killed at any moment goes on from its last whole checkpoint, and ends with the weights of an unbroken
    one. Checkpoints hold weights as safetensors; the state of optimizer, schedule and random numbers beside them are
    pickles of tensors, which torch reads with ``weights_only``. They are for going on with one's own run.

    Args:
        model: patched or not; wrapped by peft already or not.
        tokenizer: of the model; not used by the training itself.
        prepared: the data: ``train``, ``evaluation`` (or None) and ``collator``.
        options: how to train.
        lora: the adapter to add (a model that has one keeps it); None trains all weights, or the adapter there is.
        folder: of the run: checkpoints, ``run.json`` with the options, ``training.jsonl`` with the log.
        resume: go on with the run in ``folder``; without one there it starts.
        fade: ``FadeOptions``, or a callback that fades from the native encoding to the new one.
        distill: distil from the original; needs an adapter, without which there is no original to ask.
        report: told about the progress.
        callbacks: more of the ``Trainer``.

    Returns:
        The model and what happened. ``model`` itself is changed.

    Raises:
        ConfigError: the folder holds a run with other options; nothing to train; distillation without an adapter.
        UnsupportedError: what this machine, or a sharded model, cannot do.
        TrainingError: the loss is no number, or the disk is full; the last whole checkpoint is as it was.
    """
    from transformers import set_seed

    folder = Path(folder)
    arguments = training_arguments(
        options,
        folder,
        evaluates=prepared.evaluation is not None,
        half=any(p.dtype in _HALVES for p in model.parameters()),
        more=getattr(prepared, "arguments", None),
    )
    set_seed(options.seed)
    if lora is not None and not hasattr(model, "peft_config"):
        model = add_lora(model, lora)
    counts = trained_parameters(model)
    _check(model, counts, options, distill)
    settled = None
    if arguments.should_save:
        settle_run(folder, _about(model, prepared, options, lora, fade, distill, arguments.world_size), resume=resume)
        shutil.rmtree(folder / WRITING, ignore_errors=True)
        settled = last_whole(folder)
    whole, skipped = _shared(settled, arguments)
    if whole is not None and kind_of(model) is not None:
        raise UnsupportedError(
            f"The run in {str(folder)!r} has checkpoints, and a model that is sharded when it is loaded cannot go on "
            "from them. Train in another folder, or with DDP."
        )
    with _wide(model), _no_cache(model):
        return _train(model, prepared, arguments, options, distill, report, whole, skipped, counts, fade, callbacks)


def _train(
    model: Any,
    prepared: Any,
    arguments: Any,
    options: FineTuneOptions,
    distill: DistillOptions | None,
    report: Report | None,
    whole: Path | None,
    skipped: list[str],
    counts: dict[str, int],
    fade: Any,
    callbacks: Sequence[Any],
) -> FineTuned:
    from .callbacks import Progress
    from .trainer import PositionTrainer

    state = json.loads((whole / "trainer_state.json").read_text(encoding="utf-8")) if whole else {}
    journal = Journal(Path(arguments.output_dir), writes=arguments.should_save)
    journal.rewind(int(state.get("global_step", 0)))
    trainer = PositionTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.evaluation,
        data_collator=prepared.collator,
        options=options,
        distill=distill,
        callbacks=[*_fading(fade), Progress(journal, report or (lambda text, done, total: None)), *callbacks],
    )
    check_start(trainer)
    _quiet(trainer)
    for sentence in skipped:
        (report or (lambda text, done, total: None))(sentence, 0.0, 0.0)
    try:
        if whole is not None and state["global_step"] >= state["max_steps"]:  # it had finished
            trainer._load_from_checkpoint(str(whole))
            trainer.state = type(trainer.state).load_from_json(str(whole / "trainer_state.json"))
        else:
            with nullcontext() if options.shifted_group is None else shifted_sparse(model, group=options.shifted_group):
                trainer.train(resume_from_checkpoint=None if whole is None else str(whole))
        steps = trainer.state.global_step
        evaluated = any("eval_loss" in row and row["step"] == steps for row in journal.rows)
        if prepared.evaluation is not None and not evaluated:
            trainer.evaluate()
    except OSError as error:
        kept, _ = last_whole(Path(arguments.output_dir))
        left = "No checkpoint had been written." if kept is None else f"{str(kept)!r} is whole."
        raise TrainingError(f"Training has stopped: {error}. {left}") from error
    finally:
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        _own_forward(model)
    return FineTuned(
        model.eval(),
        steps,
        int(trainer.state.num_input_tokens_seen),
        journal.seconds,
        journal.rows,
        counts,
        None if whole is None else whole.name,
        tuple(skipped),
    )


def _own_forward(model: Any) -> None:
    """Take accelerate's mixed precision off, which it leaves on: what is returned computes in its own dtype."""
    original = model.__dict__.pop("_original_forward", None)
    if original is None:
        return
    if getattr(original, "__func__", None) is type(model).forward:
        model.__dict__.pop("forward", None)
    else:
        model.forward = original


def _check(model: Any, counts: dict[str, int], options: FineTuneOptions, distill: DistillOptions | None) -> None:
    if not counts["trained"]:
        raise ConfigError("There is nothing to train: all weights are frozen. Give a section lora, or unfreeze some.")
    if options.precision == "fp32" and any(p.dtype in _HALVES for p in model.parameters()):
        raise UnsupportedError(
            "finetune.precision='fp32' needs a model in float32, and this one is in half precision. Load it with "
            "dtype=torch.float32, or leave precision at auto."
        )
    if options.shifted_group is not None:
        check_shifted(model, options.shifted_group)
    if distill is None:
        return
    if not hasattr(model, "peft_config"):
        raise ConfigError(
            "distill asks the original, which is the same weights with the adapter off, and there is no adapter: all "
            "weights would be trained. Add a section lora, or leave distill out."
        )
    if output_embedding(model) is None:
        raise ConfigError(f"distill needs logits over a vocabulary, which {type(model).__name__} does not have.")


def _about(
    model: Any, prepared: Any, options: FineTuneOptions, lora: Any, fade: Any, distill: Any, processes: int
) -> dict[str, Any]:
    """What makes a run the same run."""
    host = find_host(model)
    patches = getattr(host.base, "_position_encoding_patches", [])
    return {
        "finetune": options.to_dict(),
        "lora": None if lora is None else lora.to_dict(),
        "fade": fade.to_dict() if hasattr(fade, "to_dict") else None if fade is None else type(fade).__name__,
        "distill": None if distill is None else distill.to_dict(),
        "data": {"text": getattr(prepared, "text_label", None), "sha256": getattr(prepared, "sha256", None)},
        "model": {
            "class": type(host.base).__name__,
            "parameters": sum(p.numel() for p in host.base.parameters()),
            "patches": [{"encodings": a.entries, "layers": a.layers} for a in patches],
        },
        "processes": processes,
    }


def _shared(settled: Any, arguments: Any) -> tuple[Path | None, list[str]]:
    """What the first process found, on all of them."""
    if arguments.world_size > 1:
        from accelerate.utils import broadcast_object_list

        box = [settled]
        broadcast_object_list(box)
        settled = box[0]
    return settled  # type: ignore[no-any-return]


def _fading(fade: Any) -> list[Any]:
    from transformers import TrainerCallback

    if fade is None or isinstance(fade, TrainerCallback):
        return [] if fade is None else [fade]
    from ..retrofit.fade import FadeCallback

    return [FadeCallback(fade)]


def _quiet(trainer: Any) -> None:
    """Print nothing but what ``report`` prints."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def _wide(model: Any) -> Iterator[None]:
    """Trained weights in float32 while they train: small steps are lost in bfloat16."""
    kept = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad and p.dtype in _HALVES}
    named = dict(model.named_parameters())
    for name in kept:
        named[name].data = named[name].data.float()
    try:
        yield
    finally:
        named = dict(model.named_parameters())
        for name, dtype in kept.items():
            named[name].data = named[name].data.to(dtype)
            named[name].grad = None


@contextmanager
def _no_cache(model: Any) -> Iterator[None]:
    """No cache of keys and values while training, which gradient checkpointing would warn about."""
    config = find_host(model).config
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before
