"""Rows as a model takes them: tokens, labels, and positions and masks where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from .draws import pose, randomized, torch_generator
from .options import DataOptions
from .packing import IGNORED, Piece

Random = np.random.Generator
Drawn = Callable[[Random, int], Tensor]
TRIES = 100


class Windows:
    """Consecutive windows of a long text.

    Args:
        tokens: int32 ``[n]``.
        length: of a window, special tokens included.
        around: tokens before and after each.
    """

    def __init__(self, tokens: Tensor, length: int, around: tuple[list[int], list[int]]) -> None:
        self.tokens = tokens
        self.length = length
        self.before, self.after = around

    def __len__(self) -> int:
        return len(self.tokens) // self._own(self.length)

    def __call__(self, index: int, length: int | None = None) -> list[Piece]:
        """One window, or as many shorter ones of ``length`` as hold the same number of tokens."""
        length = length or self.length
        own, first = self._own(length), index * self._own(self.length)
        starts = [first + i * own for i in range(self.length // length)]
        made = []
        for start in starts:
            ids = [*self.before, *self.tokens[start : start + own].tolist(), *self.after]
            made.append(Piece(ids, ids))
        return made

    def _own(self, length: int) -> int:
        return length - len(self.before) - len(self.after)


class Listed:
    """Rows that were made before."""

    def __init__(self, rows: Sequence[list[Piece]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, index: int, length: int | None = None) -> list[Piece]:
        """The pieces of one row."""
        return self.rows[index]


class Finish:
    """Makes pieces the tensors of a row, with what is drawn for it.

    A packed row has the pieces side by side, with position ids that start again at each and labels -100 at their first
    tokens; what is left is padding, one more piece that is not predicted. Other pieces are rows of their own.

    Args:
        options: how rows are packed, and which positions they get.
        pad: token that fills rows up, or None where none needs it.
        masked: hides tokens of ``[n]`` and says which, for masked language models; None for others.
        offset: rows of a position table before position 0.
    """

    def __init__(self, options: DataOptions, *, pad: int | None, masked: Masked | None, offset: int) -> None:
        self.options = options
        self.pad = pad
        self.masked = masked
        self.offset = offset

    def __call__(self, pieces: list[Piece], random: Random, *, normal: bool = False) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` and what else the model needs, int64 ``[n]`` each, or ``[rows, n]`` of several.

        Args:
            pieces: of one row, or several rows of one length.
            random: for this row alone.
            normal: positions 0, 1, 2 ..., whatever the options say.
        """
        if self.options.packing == "packed":
            return self._packed(pieces)
        made = [self._row(piece, random, normal) for piece in pieces]
        return made[0] if len(made) == 1 else {key: torch.stack([row[key] for row in made]) for key in made[0]}

    def _row(self, piece: Piece, random: Random, normal: bool) -> dict[str, Tensor]:
        ids = torch.tensor(piece.ids, dtype=torch.int64)
        if self.masked is not None:
            ids, labels = self.masked(ids, random)
        else:
            labels = torch.tensor(piece.labels, dtype=torch.int64)
        row = {"input_ids": ids, "labels": labels}
        options, target = self.options, self.options.target_length
        if options.positions == "normal" or target is None or normal:
            return row
        if options.positions == "pose":
            positions = pose(random, len(ids), target, options.chunks)
        else:
            positions = randomized(random, len(ids), target)
        # with a mask, or the model would take skipped positions for packed sequences
        return {**row, "position_ids": positions + self.offset, "attention_mask": torch.ones_like(ids)}

    def _packed(self, pieces: list[Piece]) -> dict[str, Tensor]:
        missing = self.options.length - sum(map(len, pieces))
        if missing:
            assert self.pad is not None
            pieces = [*pieces, Piece([self.pad] * missing, [IGNORED] * missing)]
        labels = [label for piece in pieces for label in (IGNORED, *piece.labels[1:])]
        return {
            "input_ids": torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "position_ids": torch.cat([torch.arange(len(piece)) for piece in pieces]),
        }


class Masked:
    """Hides tokens for a masked language model, by transformers' ``DataCollatorForLanguageModeling``.

    Of the tokens drawn with the given probability 80 % become ``[MASK]``, 10 % another token and 10 % stay. A row in
    which none was drawn is drawn again, since its loss would not be a number.

    Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2018, arXiv 1810.04805.

    Raises:
        ConfigError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: Any, probability: float) -> None:
        from transformers import DataCollatorForLanguageModeling

        if getattr(tokenizer, "mask_token", None) is None:
            raise ConfigError(
                "objective='mlm' hides tokens behind the mask token, and the tokenizer has none. Use the tokenizer of "
                "a masked language model, or set tokenizer.mask_token."
            )
        self.collator: Any = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=probability)
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))

    def __call__(self, ids: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """Tokens and labels, int64 ``[n]`` each."""
        special = torch.isin(ids, self.special)[None]
        self.collator.generator = torch_generator(random)
        for _ in range(TRIES):
            changed, labels = self.collator.torch_mask_tokens(ids[None].clone(), special)
            if (labels != IGNORED).any() or special.all():
                break
        return changed[0], labels[0]
