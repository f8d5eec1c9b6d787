"""A folder with a tiny model, its tokenizer and a text, and recipes over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from tokenizers_made import decoder_tokenizer

TEXT = "".join(
    f"Line {i} says that {i * i % 97} and {i * 7 % 89} are numbers, and no two lines agree.\n" for i in range(300)
)


def make_folder(folder: Path) -> Path:
    """``folder/tiny`` and ``folder/text.txt``."""
    tiny.llama(vocab_size=258, max_position_embeddings=256, pad_token_id=None).save_pretrained(folder / "tiny")
    decoder_tokenizer().save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text(TEXT)
    return folder


def raw(folder: Path, out: str, **more: Any) -> dict[str, Any]:
    """Sections of a recipe of all stages that need no calibration; False in ``more`` leaves one out."""
    made = {
        "model": {"name": str(folder / "tiny")},
        "patch": {"name": "t5", "num_buckets": 8, "max_distance": 32},
        "data": {"text": str(folder / "text.txt"), "length": 32, "held_out": 1000},
        "lora": {"r": 2},
        "finetune": {"max_steps": 2, "batch_size": 2, "save_every": 1, "learning_rate": 0.01, "precision": "fp32"},
        "evaluate": {
            "tasks": ["perplexity"],
            "lengths": [32, 64],
            "options": {"perplexity": {"tail": 16, "skip": 0, "window": 32, "stride": 16, "windows": 2}},
            "after": ["patch"],
        },
        "run": {"folder": str(folder / out), "device": "cpu"},
    }
    return {**made, **more}
