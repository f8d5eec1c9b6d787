"""What the notebooks share: a small language, models that learn it within seconds, and pictures of a modest size.

The language has 16 letters. Each follows from the two letters before it, nine times out of ten, and is drawn at random
otherwise. A model that knows the rule and sees the order of the last two letters has a perplexity of :data:`BEST`; one
that sees the letters but not their order cannot come near.
"""

# ruff: noqa: E402
from __future__ import annotations

import io
import math
import random
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars without widgets: none are drawn here

import torch
from IPython.display import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pe_retrofit import patch_model

LETTERS = "abcdefghijklmnop"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
KNOWN = 0.9
"""How often a letter follows the rule."""

_HIT, _MISS = KNOWN + (1 - KNOWN) / 16, (1 - KNOWN) / 16
BEST = math.exp(-_HIT * math.log(_HIT) - 15 * _MISS * math.log(_MISS))
"""Lowest perplexity that a model of the language can have."""


def language(letters: int, seed: int) -> str:
    """A text; the rule is the same for every seed."""
    rule, drawn = random.Random("rule"), random.Random(f"text {seed}")
    follows = {a + b: rule.choice(LETTERS) for a in LETTERS for b in LETTERS}
    text = list("ab")
    while len(text) < letters:
        text.append(follows[text[-2] + text[-1]] if drawn.random() < KNOWN else drawn.choice(LETTERS))
    return "".join(text)


def tokenizer() -> Any:
    """One token per letter, and four special ones."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {token: i for i, token in enumerate([*LETTERS, *SPECIAL.values()])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL["unk_token"]))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def untrained(length: int, spec: Any = None, *, layers: int = 2) -> Any:
    """A Llama with random weights for texts of ``length`` letters, patched with ``spec``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + len(SPECIAL),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        bos_token_id=16,
        eos_token_id=17,
        pad_token_id=18,
    )
    model = LlamaForCausalLM(config).eval()
    return model if spec is None else patch_model(model, spec)


def windows(text: str, length: int, count: int) -> Tensor:
    """The first ``count`` pieces of a text as token ids ``[count, length]``, each begun by ``<s>``."""
    ids = torch.tensor(tokenizer()(text[: count * (length - 1)])["input_ids"]).view(count, length - 1)
    return torch.cat((torch.full((count, 1), 16), ids), dim=1)


def teach(model: Any, text: str, length: int, steps: int, *, rows: int = 16, rate: float = 3e-3) -> Any:
    """Train all weights on random pieces of the text; the model, in evaluation mode."""
    ids = torch.tensor(tokenizer()(text)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - length, (rows,), generator=generator)
        batch = torch.stack([torch.cat((torch.tensor([16]), ids[i : i + length - 1])) for i in starts.tolist()])
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def show(path: str | Path, width: int = 1000) -> Image:
    """A PNG file for display: at most ``width`` pixels wide, in 128 colours."""
    from PIL import Image as Pillow

    picture = Pillow.open(path).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(128, dither=Pillow.Dither.NONE).save(buffer, format="png", optimize=True)
    return Image(buffer.getvalue())
