"""Rows read while training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ...errors import ConfigError, UnsupportedError
from .documents import Documents
from .draws import BUFFER, ROW, generator
from .encode import Encoder
from .options import DataOptions
from .packing import Piece, packed
from .rows import Finish

AT_ONCE = 1000
"""Documents that are packed among each other."""


class StreamedRows(IterableDataset[dict[str, Tensor]]):
    """Rows of a stream, which starts again, shuffled anew, when it ends; so it has no end without ``tokens``.

    The rows are the same in every run, so a run that resumes by reading past the ones it had meets the right ones.

    Args:
        documents: where rows are read from.
        encoder: gives each window its special tokens.
        finish: makes them tensors.
        options: seed, shuffling, number of tokens.
        skipped: rows of each source, by name, that are held out at its beginning.
    """

    def __init__(
        self, documents: Documents, encoder: Encoder, finish: Finish, options: DataOptions, skipped: dict[str, int]
    ) -> None:
        self.documents = documents
        self.encoder = encoder
        self.finish = finish
        self.options = options
        self.skipped = skipped
        self.epoch = 0

    def __len__(self) -> int:
        if self.options.tokens is None:
            raise TypeError("A stream has no length; set tokens in the section data, or max_steps.")
        return self.options.tokens // self.options.length

    def set_epoch(self, epoch: int) -> None:
        """Rows of another epoch, for the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Rows, forever or as many as ``tokens`` says.

        Raises:
            UnsupportedError: there are several workers, each of which would read all of it.
            ConfigError: there is not one row.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UnsupportedError(
                f"streaming is read by one worker, got dataloader_num_workers={worker.num_workers}: each would read "
                "all rows. Set it to 0 or 1."
            )
        stop = None if self.options.tokens is None else len(self)
        return islice(self._rows(), stop)

    def _rows(self) -> Iterator[dict[str, Tensor]]:
        options = self.options
        for turn in count():
            index = -1
            for index, pieces in enumerate(self._pieces(turn)):
                yield self.finish(pieces, generator(options.seed, ROW, self.epoch, turn, index))
            if index < 0:
                raise ConfigError(
                    f"The text {self.documents.label} is shorter than one row of length={options.length} tokens, or "
                    "nothing is left beside what is held out. Set length or held_out lower."
                )

    def _pieces(self, turn: int) -> Iterator[list[Piece]]:
        length, pieces = self.options.length, self._documents(turn)
        if self.options.packing == "windows":
            yield from windows(pieces, length, self.encoder)
        elif self.options.packing == "packed":
            yield from packed(pieces, length, AT_ONCE)
        else:
            yield from ([piece] for piece in pieces)

    def _documents(self, turn: int) -> Iterator[Piece]:
        options = self.options
        for number, (name, rows) in enumerate(self.documents.sources):
            assert rows is not None
            stream: Any = rows.stream.skip(self.skipped.get(name, 0))
            if options.shuffle:  # not by datasets, whose order depends on the worker
                stream = shuffled(stream, options.buffer_size, options.seed, BUFFER, self.epoch, turn, number)
            yield from self.documents.pieces(name, rows, stream)


def shuffled(items: Iterable[Any], size: int, *seeds: int) -> Iterator[Any]:
    """All items, each drawn from a buffer of so many that is filled up from the source."""
    random = generator(*seeds)
    held: list[Any] = []
    for item in items:
        if len(held) < size:
            held.append(item)
            continue
        at = int(random.integers(size))
        yield held[at]
        held[at] = item
    yield from (held[i] for i in random.permutation(len(held)))


def windows(pieces: Iterator[Piece], length: int, encoder: Encoder) -> Iterator[list[Piece]]:
    """Consecutive windows of documents put end to end; what is left at the end is dropped."""
    before, after = encoder.around
    own = length - len(before) - len(after)
    held: list[int] = []
    for piece in pieces:
        held.extend(piece.ids)
        while len(held) >= own:
            ids = [*before, *held[:own], *after]
            del held[:own]
            yield [Piece(ids, ids)]
