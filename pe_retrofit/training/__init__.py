"""Fine-tune a patched model: data, LoRA, the Trainer, many devices."""
