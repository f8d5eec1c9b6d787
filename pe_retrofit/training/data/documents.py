"""The documents, or examples, of the texts a user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ConfigError
from ...sources import FIELD, JOINT, Rows, files_of, joined, load_text, open_rows, reading, values
from ...texts import Text, text_from
from .encode import Encoder
from .options import DataOptions
from .packing import IGNORED, Piece

SPLIT = "train"
"""Of a dataset of the Hub, where the name gives none."""

CHARACTERS = 400_000_000
"""Characters after which rows held in memory end, some hundred million tokens; streaming has no limit."""


def whole_text(options: DataOptions) -> Text:
    """All texts as one.

    Raises:
        ConfigError: a text or field does not exist, or a field was named for plain text.
    """
    return joined([_text(name, options.field) for name in options.names()])


def _text(name: str, field: str | None) -> Text:
    if field is not None:
        _opened(name, field)
    return load_text(name, field=field, characters=CHARACTERS, split=SPLIT)


def _opened(name: str, field: str | None) -> Rows | None:
    rows = open_rows(name, field=field, split=SPLIT)
    if rows is None and field is not None:
        raise ConfigError(f"field={field!r} names a column of rows, and {name!r} is plain text. Leave it out.")
    return rows


class Documents:
    """Pieces of at most ``length`` tokens, document by document, and what was left out on the way.

    Attributes:
        label: where they come from, in words.
        short: documents without a token to predict.
        long: examples whose end was cut off.
    """

    def __init__(self, options: DataOptions, encoder: Encoder, objective: str) -> None:
        self.options = options
        self.encoder = encoder
        self.examples = objective == "completion"
        self.sources = [(name, _opened(name, options.field)) for name in options.names()]
        self.label = " + ".join(self._label(name, rows) for name, rows in self.sources)
        self.short = self.long = 0

    def _label(self, name: str, rows: Rows | None) -> str:
        if rows is None:
            return load_text(name).name
        return rows.label if self.examples else f"{rows.label}, field {rows.field or FIELD}"

    def __iter__(self) -> Iterator[Piece]:
        for name, rows in self.sources:
            yield from self.pieces(name, rows, rows.stream if rows is not None else None)

    def pieces(self, name: str, rows: Rows | None, stream: Any) -> Iterator[Piece]:
        """Those of one source; ``stream`` is what is read of ``rows``, perhaps a part or in another order."""
        made: Iterator[Piece]
        if self.examples:
            if rows is None:
                raise ConfigError(
                    f"objective='completion' needs rows with prompt and completion or with messages, and {name!r} is "
                    "plain text. Give a .jsonl, .json, .csv or .parquet file, or a dataset of the Hub."
                )
            made = (self._fitted(self.encoder.example(row, name)) for row in read(name, stream))
        else:
            made = (p for text in self.texts(name, rows, stream) for p in self._cut(text))
        for piece in made:
            if any(label != IGNORED for label in piece.labels[1:]):
                yield piece
            else:
                self.short += 1

    def texts(self, name: str, rows: Rows | None, stream: Any) -> Iterator[str]:
        """The documents of one source as text: rows, files, or one of Python's texts."""
        if rows is not None:
            some = Rows(rows.name, rows.label, rows.field, read(name, stream))
            yield from values(some, rows.field or FIELD)
        elif files := files_of(name):
            yield from (text_from(path).content for path in files)
        else:
            yield load_text(name).content

    def _cut(self, text: str) -> Iterator[Piece]:
        if self.options.packing == "windows":  # to be put end to end
            ids = self.encoder.body(text + JOINT)
            yield Piece(ids, ids)
            return
        found = False
        for piece in self.encoder.document(text, self.options.length) if text.strip() else ():
            found = True
            yield piece
        self.short += not found

    def _fitted(self, piece: Piece) -> Piece:
        length = self.options.length
        if len(piece) <= length:
            return piece
        self.long += 1
        return Piece(piece.ids[:length], piece.labels[:length])

    def notes(self) -> list[str]:
        """What was left out, in words."""
        made = []
        if self.short:
            made.append(f"{self.short} documents or examples without a token to predict were left out")
        if self.long:
            made.append(f"{self.long} examples were cut after {self.options.length} tokens")
        return made


def read(name: str, stream: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a stream, what goes wrong in words."""
    with reading(name):
        iterator = iter(stream)
    while True:
        with reading(name):
            row = next(iterator, None)
        if row is None:
            return
        yield row
