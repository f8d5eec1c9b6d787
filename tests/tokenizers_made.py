"""Real tokenizers for tests, made on the spot: bytes as tokens, with the special tokens asked for."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, chat: str | None = None, **special: str) -> Any:
    """Bytes as tokens 0 .. 255, then the special tokens in their order, such as ``bos_token="<s>"``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(dict.fromkeys(special.values())))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = chat
    return tokenizer


def decoder_tokenizer(**more: Any) -> Any:
    """With bos 256 and eos 257, and no pad."""
    return byte_tokenizer(bos_token="<s>", eos_token="</s>", **more)


def encoder_tokenizer() -> Any:
    """With cls 256, sep 257, mask 258 and pad 259."""
    return byte_tokenizer(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]")
