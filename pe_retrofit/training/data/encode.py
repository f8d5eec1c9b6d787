"""Texts and examples to tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...models import quiet
from ...progress import Work
from .packing import IGNORED, Piece, cut

AT_ONCE = 200_000
"""Characters tokenised at a time; the cut is at an empty line where there is one."""


class Encoder:
    """A tokenizer and the special tokens a model expects.

    Args:
        tokenizer: of the model.
        causal: a decoder's text starts with ``bos`` and ends with ``eos``; an encoder's with ``cls`` and ``sep``; where
            the tokenizer has these.
    """

    def __init__(self, tokenizer: Any, *, causal: bool) -> None:
        self.tokenizer = tokenizer
        start, end = ("bos", "eos") if causal else ("cls", "sep")
        self.start = self._special(start)
        self.end = self._special(end)
        self.causal = causal

    def _special(self, name: str) -> list[int]:
        token = getattr(self.tokenizer, f"{name}_token_id", None)
        return [] if token is None else [int(token)]

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """What each window of a long text begins and ends with."""
        return self.start, [] if self.causal else self.end

    @property
    def pad(self) -> int:
        """The token that fills rows up: it is masked and not predicted, so ``eos`` or ``bos`` do without ``pad``.

        Raises:
            ConfigError: the tokenizer has none of them.
        """
        for name in ("pad", "eos", "bos"):
            if found := self._special(name):
                return found[0]
        raise ConfigError(
            "Rows of different lengths are padded, and the tokenizer has no pad, eos or bos token. Set "
            "tokenizer.pad_token to a token it knows, or use packing='windows', which pads nothing."
        )

    def body(self, text: str) -> list[int]:
        """Tokens of a text without special ones."""
        with quiet():  # tokenizers warn of texts longer than the model's maximum
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def document(self, text: str, length: int) -> Iterator[Piece]:
        """A document in parts of at most ``length`` tokens; all of them are predicted.

        A decoder's has ``bos`` and ``eos`` at its ends; each part of an encoder's has ``cls`` and ``sep``.
        """
        ids = self.body(text)
        if self.causal:
            ids = [*self.start, *ids, *self.end]
            yield from cut(Piece(ids, ids), length)
            return
        for part in cut(Piece(ids, ids), length - len(self.start) - len(self.end)):
            whole = [*self.start, *part.ids, *self.end]
            yield Piece(whole, whole)

    def example(self, row: Mapping[str, Any], name: str) -> Piece:
        """A prompt, which is not predicted, and its completion with ``eos``, which is.

        Raises:
            ConfigError: the row holds neither ``prompt`` and ``completion`` nor ``messages`` that end with the
                assistant's, or the tokenizer has no chat template.
        """
        if isinstance(row.get("messages"), (list, tuple)):
            prompt, completion = self._chat(row["messages"], name)
            before, after = self.body(prompt), self.body(completion)
        elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            before = [*self.start, *self.body(row["prompt"])]
            after = [*self.body(row["completion"]), *self.end]
        else:
            raise ConfigError(
                f"A row of {name!r} has no prompt and completion of text, and no messages. Its fields: "
                f"{', '.join(map(str, row))}. objective='completion' needs one of them."
            )
        return Piece([*before, *after], [*[IGNORED] * len(before), *after])

    def _chat(self, messages: Any, name: str) -> tuple[str, str]:
        """A chat up to the assistant's last message, and this message, as the chat template writes them."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"The rows of {name!r} are chats, and the tokenizer has no chat template. Use an instruction-tuned "
                "model's tokenizer, or rows with prompt and completion."
            )
        if not messages or messages[-1].get("role") != "assistant":
            raise ConfigError(f"A chat of {name!r} does not end with a message of the role assistant.")
        messages = [dict(message) for message in messages]
        prompt = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if not whole.startswith(prompt):
            raise ConfigError(
                f"The chat template writes a chat of {name!r} differently with the last answer than without it, so "
                "where the answer begins is unknown. Write the rows as prompt and completion."
            )
        return prompt, whole[len(prompt) :]

    def long(self, text: str, work: Work) -> Tensor:
        """Tokens int32 ``[n]`` of a long text, without special ones; ``work`` counts characters."""
        parts = []
        for start, stop in _stretches(text):
            parts.append(torch.tensor(self.body(text[start:stop]), dtype=torch.int32))
            work.advance(stop - start)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        stop = start + AT_ONCE
        if stop < len(text):
            at = text.rfind("\n\n", start + 1, stop)
            stop = at if at > start else stop
        yield start, min(stop, len(text))
        start = stop
