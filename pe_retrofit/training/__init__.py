"""Fine-tune a patched model: data, LoRA, the Trainer, many devices."""

from .finetune import FineTuned, finetune
from .lora import LoraOptions, add_lora, trained_parameters
from .options import DistillOptions, FineTuneOptions

__all__ = [
    "DistillOptions",
    "FineTuneOptions",
    "FineTuned",
    "LoraOptions",
    "add_lora",
    "finetune",
    "trained_parameters",
]
