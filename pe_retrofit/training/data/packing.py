"""Documents to rows: cut what is too long, and put short ones side by side."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

IGNORED = -100
"""Label of a token that is not predicted."""


@dataclass(frozen=True)
class Piece:
    """Tokens that see each other, and which of them are predicted.

    Attributes:
        ids: tokens.
        labels: the tokens, or :data:`IGNORED`.
    """

    ids: Sequence[int]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)


def compact(piece: Piece) -> Piece:
    """The same in less memory."""
    ids = array("i", piece.ids)
    return Piece(ids, ids if piece.labels is piece.ids else array("i", piece.labels))


def cut(piece: Piece, length: int) -> Iterator[Piece]:
    """Consecutive parts of at most ``length`` tokens."""
    for start in range(0, len(piece), length):
        ids = piece.ids[start : start + length]
        yield Piece(ids, ids if piece.labels is piece.ids else piece.labels[start : start + length])


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Indices of what goes into each row of ``length``: longest first, each into the fullest row that has room.

    Source: best-fit-decreasing, as in Ding et al., Fewer Truncations Improve Language Modeling, 2024, arXiv 2404.10830.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect_left(room, (sizes[index], 0))
        if at == len(room):
            rows.append([index])
            free, row = length - sizes[index], len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(index)
            free -= sizes[index]
        insort(room, (free, row))
    return rows


def packed(pieces: Iterable[Piece], length: int, at_once: int) -> Iterator[list[Piece]]:
    """Rows of pieces that fit into ``length`` tokens, among every ``at_once`` consecutive ones."""
    source = iter(pieces)
    while group := list(islice(source, at_once)):
        for row in best_fit([len(piece) for piece in group], length):
            yield [group[index] for index in row]
