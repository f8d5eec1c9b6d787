"""A tokenizer for tests: bytes as tokens, and the special tokens a decoder or an encoder needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ByteTokenizer:
    """Bytes as tokens; 256 begins a text (also as ``cls``), 257 ends one (also as ``sep``), 258 masks, 259 pads."""

    bos_token_id = cls_token_id = 256
    eos_token_id = sep_token_id = 257
    mask_token_id = 258
    pad_token_id = 259
    vocab_size = 260

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        body = list(text.encode())
        return [256, *body, 257] if add_special_tokens else body

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": self.encode(text)}
