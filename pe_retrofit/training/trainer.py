"""transformers' ``Trainer`` with a chunked loss, a learning rate of their own for positions, and whole checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..errors import ConfigError, TrainingError
from ..hub.adapters import write_patches
from ..patchers.family import find_host
from .checkpoints import WRITING, last_whole, publish, rotate, seal
from .gathered import whole_state
from .heads import find_head, output_embedding, teacher_of, token_loss
from .lora import position_parameters
from .options import DistillOptions, FineTuneOptions

WEIGHTS = "adapter_model.safetensors"
MODEL = "model.safetensors"


class PositionTrainer(Trainer):
    """A ``Trainer`` for patched models.

    Args:
        options: of the fine-tune, which ``args`` stands for.
        distill: mix in the distance from the original; needs an adapter.
        **more: of ``Trainer``.
    """

    def __init__(self, *, options: FineTuneOptions, distill: DistillOptions | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.options, self.distill = options, distill
        self.trained: Any = self.model  # as it was given: wrapped by peft, not by DDP
        self.folder = Path(str(self.args.output_dir))
        self.writing_into: Path | None = None
        self.head: nn.Module | None = None
        self.head_known = False
        self.causal = find_host(self.trained).causal()
        self.of_tokens = makes_token_loss(self.trained)
        if self.of_tokens:
            self.model_accepts_loss_kwargs = True  # have the labels of all micro-batches counted
            self._loss_shifts_labels = self.causal
        self.terms = torch.zeros(2)
        self.add_callback(_LogAtSave())

    # ---- loss ----

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a batch; the mean over the labels of all micro-batches when their number is given."""
        if not self.of_tokens:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.head_known:
            self.head, self.head_known = find_head(self.trained, inputs["input_ids"]), True
        self.loss_is_scaled_for_ga = num_items_in_batch is not None
        teacher = None
        if self.distill is not None and model.training:
            weight, temperature = self.distill.weight, self.distill.temperature
            teacher = teacher_of(self.trained, self.head, inputs, weight, temperature)
        found = token_loss(model, self.head, inputs, causal=self.causal, teacher=teacher, count=num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            found = found * (self.accelerator.num_processes // self.get_tp_size())  # DDP takes the mean of gradients
        if model.training:
            share = 1.0 if num_items_in_batch is not None else 1 / self.current_gradient_accumulation_steps
            self.terms = self.terms.to(found.device) + share * found[1:].detach()
        return (found[0], {}) if return_outputs else found[0]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward.

        Raises:
            TrainingError: the loss is no finite number.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise TrainingError(self._stopped(f"The loss is {loss.item()} at step {self.state.global_step + 1}."))
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        scaled = getattr(self.accelerator, "scaler", None) is not None  # which skips such steps by itself
        if norm is not None and not scaled and not torch.isfinite(torch.as_tensor(norm)).all():
            raise TrainingError(self._stopped(f"The gradient is not finite at step {self.state.global_step + 1}."))
        return norm

    def _stopped(self, what: str) -> str:
        whole, _ = last_whole(self.folder)
        left = "No checkpoint had been written." if whole is None else f"The last whole checkpoint is {str(whole)!r}."
        return (
            f"{what} No weights were changed by it. {left} Going on from there repeats it: look at the data, or start "
            "in another folder with a lower learning_rate or pe_learning_rate, more warmup, or precision=fp32."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; with distillation both terms of the loss too."""
        if "loss" in logs and self.distill is not None:
            steps = self.state.global_step - getattr(self, "_terms_since", self._initial_global_step)
            terms = self.accelerator.reduce(self.terms.to(self.args.device), "mean") / max(steps, 1)
            logs["cross_entropy"], logs["kl"] = terms.tolist()
        if "loss" in logs:
            self.terms, self._terms_since = torch.zeros(2), self.state.global_step
        super().log(logs, start_time)

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the ``Trainer`` does, with position parameters in groups of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        position = {id(p) for p in position_parameters(self.trained if model is None else model).values()}
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in position]
            if mine:
                rest = {k: v for k, v in group.items() if k != "params"}
                group["params"] = [p for p in group["params"] if id(p) not in position]
                new = {**rest, "params": mine, "lr": self.options.position_rate, "weight_decay": 0.0}
                optimizer.add_param_group(new)
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
        return optimizer

    # ---- checkpoints ----

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.writing_into or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole, or raise with what was there before intact."""
        name = f"checkpoint-{self.state.global_step}"
        into = self.folder / WRITING
        failure: BaseException | None = None
        try:
            if self.args.should_save:
                shutil.rmtree(into, ignore_errors=True)
                (into / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.writing_into = into
            super()._save_checkpoint(model, trial)
        except Exception as error:  # torch and safetensors have their own words for a full disk
            failure = error
        finally:
            self.writing_into = None
        self._agree(failure, name)
        try:
            if self.args.should_save:
                seal(into / name)
                publish(into / name, self.folder / name)
                rotate(self.folder, self.options.keep)
        except Exception as error:
            failure = error
        self._agree(failure, name)

    def _agree(self, failure: BaseException | None, name: str) -> None:
        """Raise on every process when one of them failed."""
        message = None if failure is None else f"{type(failure).__name__}: {failure}"
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            message = next((m for m in gather_object([message]) if m is not None), None)
        if message is None:
            return
        if self.args.should_save:
            shutil.rmtree(self.folder / WRITING, ignore_errors=True)
        whole, _ = last_whole(self.folder)
        left = "no checkpoint had been written before" if whole is None else f"{str(whole)!r} is whole"
        raise TrainingError(
            f"{name} could not be written ({message}), so training has stopped; {left}. Free some space and start the "
            "same run again: it goes on from there."
        ) from failure

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        adapted = hasattr(self.trained, "peft_config")
        state = whole_state(self.trained, trained=adapted) if state_dict is None else state_dict
        if not self.args.should_save:
            return
        if adapted:
            self.trained.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # a form to fill in
            write_patches(folder, self.trained)
        else:
            # under the names the model has now: save_pretrained may write others, which only from_pretrained undoes
            own = _own_names(self.trained)
            save_file({n: t for n, t in state.items() if n in own}, folder / MODEL, metadata={"format": "pt"})
            self.trained.config.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights; all of them must fit."""
        model = self.trained if model is None else model
        folder = Path(resume_from_checkpoint)
        adapted = hasattr(model, "peft_config")
        if not (folder / (WEIGHTS if adapted else MODEL)).is_file():  # as FSDP1 and DeepSpeed write them
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif adapted:
            load_adapter(model, folder / WEIGHTS)
        else:
            load_weights(model, folder / MODEL)


class _LogAtSave(TrainerCallback):
    """A checkpoint ends a window of the log, so that an interrupted run logs what an unbroken one does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True


def makes_token_loss(model: Any) -> bool:
    """Whether the loss is the cross-entropy of tokens and nothing else."""
    adds = getattr(find_host(model).config, "output_router_logits", False)  # experts' balance
    return output_embedding(model) is not None and not adds


def load_adapter(model: Any, file: Path) -> None:
    """Load an adapter, and what is saved whole with it, into a model that has the same one.

    Raises:
        ConfigError: keys or shapes differ; nothing was loaded.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    state = load_file(file)
    _check_fit(state, get_peft_model_state_dict(model, save_embedding_layers=False))
    set_peft_model_state_dict(model, state)


def load_weights(model: Any, file: Path) -> None:
    """Load all weights.

    Raises:
        ConfigError: keys or shapes differ; nothing was loaded.
    """
    state, own = load_file(file), _own_names(model)
    _check_fit(state, {n: t for n, t in model.state_dict().items() if n in own})
    model.load_state_dict(state, strict=False)


def _own_names(model: nn.Module) -> set[str]:
    """Names of the tensors of a state dict, each tensor once."""
    state = model.state_dict(keep_vars=True)
    return set({id(tensor): name for name, tensor in reversed(state.items())}.values())


def _check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    parts = {
        "the checkpoint lacks": sorted(set(wanted) - set(state)),
        "the model does not have": sorted(set(state) - set(wanted)),
        "of another shape are": [k for k in wanted if k in state and wanted[k].shape != state[k].shape],
    }
    said = "; ".join(f"{what} {len(keys)} tensors, such as {keys[0]!r}" for what, keys in parts.items() if keys)
    if said:
        raise ConfigError(
            f"The checkpoint does not fit the model ({said}). Patch the model, and give it the adapter, as when saved."
        )
