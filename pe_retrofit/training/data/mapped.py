"""Rows held in memory, in an order and with draws that depend on their numbers alone."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .draws import EVALUATED, ROW, Order, generator, order
from .options import DataOptions
from .rows import Finish, Listed, Windows


class TrainingRows(Dataset[dict[str, Tensor]]):
    """Rows for training, one after the other: take them in sequence, the order is random already.

    With ``tokens`` more than the text has, an epoch goes round the text several times, each time in another order.
    Another epoch (:meth:`set_epoch`, which the Trainer calls) goes on where the last one ended.

    Args:
        rows: of the text.
        finish: makes them tensors.
        options: order, seed, number of tokens, curriculum.
    """

    def __init__(self, rows: Windows | Listed, finish: Finish, options: DataOptions) -> None:
        self.rows = rows
        self.finish = finish
        self.options = options
        self.count = len(rows) if options.tokens is None else options.tokens // options.length
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay alive see it change
        self._turn: tuple[int, Order] | None = None

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Rows of another epoch from now on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The tensors of one row, or of several shorter ones of the same tokens in a curriculum."""
        index = range(self.count)[index]
        turn, place = divmod(int(self.epoch) * self.count + index, len(self.rows))
        row = int(self._order(turn)[place])
        pieces = self.rows(row, self._length(index))
        return self.finish(pieces, generator(self.options.seed, ROW, turn, row))

    def _order(self, turn: int) -> Order:
        if self._turn is None or self._turn[0] != turn:
            self._turn = (turn, order(self.options.seed, turn, len(self.rows), shuffle=self.options.shuffle))
        return self._turn[1]

    def _length(self, index: int) -> int:
        return next(length for length, end in self._stages if index < end)

    @cached_property
    def _stages(self) -> list[tuple[int, int]]:
        """Tokens per row, and the index at which each stage ends."""
        stages, done, ends = self.options.curriculum or ((self.options.length, 1.0),), 0.0, []
        for length, share in stages:
            done += share
            ends.append((int(length), round(done * self.count)))
        return [*ends[:-1], (ends[-1][0], self.count)]


class EvaluationRows(Dataset[dict[str, Tensor]]):
    """Rows for evaluation: in the order of the text, at normal positions, always with the same draws."""

    def __init__(self, rows: Windows | Listed, finish: Finish, options: DataOptions) -> None:
        self.rows = rows
        self.finish = finish
        self.options = options

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The tensors of one row."""
        index = range(len(self))[index]
        return self.finish(self.rows(index), generator(self.options.seed, EVALUATED, index), normal=True)
