"""A tokenizer for tests that splits as byte-pair encodings do (pieces of words, with the space before), and a subject
that answers from a script."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

from pe_retrofit.evaluation.subject import Forced


class PieceTokenizer:
    """Up to four letters or two digits, with the space before them, are one token; else a character."""

    def __init__(self) -> None:
        self.pieces: dict[int, str] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        found = re.findall(r" ?[A-Za-z]{1,4}| ?[0-9]{1,2}|[\s\S]", text)
        ids = [zlib.crc32(piece.encode()) for piece in found]
        self.pieces.update(zip(ids, found, strict=True))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids if i)


class Scripted:
    """What tasks need of a subject: token 0 begins a text; generates what ``reply`` makes of the prompt's text."""

    def __init__(self, tokenizer: Any = None, reply: Any = lambda prompt: "") -> None:
        self.tokenizer, self.reply = tokenizer or PieceTokenizer(), reply
        self.start = [0]
        self.asked: list[int] = []

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token])

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        self.asked.append(new_tokens)
        return [self.encode(self.reply(self.decode(prompt)))[:new_tokens] for prompt in prompts]

    def forced(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Forced]:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            choices = self.encode(self.reply(self.decode(prompt)))[: len(answer)]
            found.append(Forced(1.0, choices == list(answer), choices))
        return found

    def forced_and_generated(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[list[Forced], list[list[int]]]:
        return self.forced(prompts, answers), self.generate(prompts, new_tokens)
