"""From the options to what a Trainer takes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ...errors import ConfigError
from ...patchers.family import Host, find_host
from ...progress import Report, Work
from . import fits
from .collate import Collator
from .documents import Documents, read, whole_text
from .encode import Encoder
from .mapped import EvaluationRows, TrainingRows
from .options import DataOptions
from .packing import Piece, compact, packed
from .rows import Finish, Listed, Masked, Windows
from .streamed import StreamedRows, windows

TOLD = 1000
"""Documents after which the progress is told."""


@dataclass(frozen=True)
class Prepared:
    """Data that is ready for training.

    Attributes:
        train: rows in their final order: take them in sequence (see :attr:`arguments`).
        evaluation: rows that are not trained on, or None.
        collator: rows to a batch.
        text_label: where the text comes from, in words.
        sha256: of the text in UTF-8, or of the tokens of its documents; None for a stream.
        objective: ``causal``, ``mlm`` or ``completion``.
        tokens: for training, once through the text; None for a stream.
        held_out: tokens kept for evaluation.
        notes: what was left out, in words.
        arguments: for ``TrainingArguments``: without them the Trainer would shuffle the rows again.
    """

    train: Dataset[dict[str, Tensor]] | IterableDataset[dict[str, Tensor]]
    evaluation: Dataset[dict[str, Tensor]] | None
    collator: Collator
    text_label: str
    sha256: str | None
    objective: str = "causal"
    tokens: int | None = None
    held_out: int = 0
    notes: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


def prepare(options: DataOptions, tokenizer: Any, model: Any, report: Report | None = None) -> Prepared:
    """Read, tokenise and cut the text for a model, and check that the model can be trained on it.

    Args:
        options: what to train on and how.
        tokenizer: of the model.
        model: a transformers model, patched or not, wrapped by peft or not.
        report: told about the progress of tokenising.

    Raises:
        ConfigError: a text, field or special token is missing, the text is too short, or an option does not fit the
            model.
        UnsupportedError: the model cannot carry these rows, or a text cannot be read.
    """
    host = find_host(model)
    objective = fits.objective_for(options, host, model)
    fits.check_length(options, host)
    encoder = Encoder(tokenizer, causal=host.causal())
    _check_room(options, encoder)
    if options.packing == "packed":
        fits.check_packing(host)
    elif options.positions != "normal":
        fits.check_positions(options, host)
    return _Making(options, tokenizer, encoder, host, objective, report).made()


def _check_room(options: DataOptions, encoder: Encoder) -> None:
    shortest = int(min(stage[0] for stage in options.curriculum)) if options.curriculum else options.length
    special = sum(map(len, encoder.around))
    if shortest < special + 2:
        raise ConfigError(f"A row of {shortest} tokens has no room beside {special} special ones: set length higher.")


class _Making:
    """The steps of :func:`prepare`, with what they share."""

    def __init__(
        self, options: DataOptions, tokenizer: Any, encoder: Encoder, host: Host, objective: str, report: Report | None
    ) -> None:
        self.options = options
        self.encoder = encoder
        self.report = report
        self.objective = objective
        pads = options.packing != "windows" or options.curriculum is not None
        masked = Masked(tokenizer, options.mlm_probability) if objective == "mlm" else None
        pad = encoder.pad if pads else None
        self.finish = Finish(options, pad=pad, masked=masked, offset=fits.offset(host))
        self.collator = Collator(pad, masks=options.packing == "padded", packed=options.packing == "packed")

    def made(self) -> Prepared:
        """By the kind of rows."""
        if self.options.streaming:
            return self._streamed()
        return self._windows() if self.options.packing == "windows" else self._documents()

    def _windows(self) -> Prepared:
        options = self.options
        text = whole_text(options)
        work = Work(len(text.content), self.report)
        work.say(f"tokenising {text.name}")
        tokens = self.encoder.long(text.content, work)
        kept = len(tokens) - self._held(len(tokens))
        around = self.encoder.around
        train, rest = (Windows(part, options.length, around) for part in (tokens[:kept], tokens[kept:]))
        return self._prepared(train, rest, text.name, text.sha256, kept, len(tokens) - kept, ())

    def _documents(self) -> Prepared:
        documents = Documents(self.options, self.encoder, self.objective)
        digest = hashlib.sha256()
        pieces: list[Piece] = []
        work = Work(0, self.report)
        for piece in documents:
            if len(pieces) % TOLD == 0:
                work.say(f"tokenising {documents.label}: {len(pieces)} documents")
            pieces.append(compact(piece))
            digest.update(array("i", [*piece.ids, -1]).tobytes())
        total = sum(map(len, pieces))
        wanted, kept, held = self._held(total), len(pieces), 0
        while kept and held < wanted:
            kept -= 1
            held += len(pieces[kept])
        train, rest = (Listed(list(self._rows(part))) for part in (pieces[:kept], pieces[kept:]))
        notes = tuple(documents.notes())
        return self._prepared(train, rest, documents.label, digest.hexdigest(), total - held, held, notes)

    def _rows(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        if self.options.packing == "packed":
            return packed(pieces, self.options.length, max(1, len(pieces)))
        return ([piece] for piece in pieces)

    def _held(self, total: int) -> int:
        """Tokens to hold out of so many."""
        share = self.options.held_out
        if share >= 1 or not share:
            return min(total, int(share))
        return min(total, max(self.options.length, round(share * total)))

    def _prepared(
        self,
        train: Windows | Listed,
        rest: Windows | Listed,
        label: str,
        sha256: str,
        kept: int,
        held: int,
        notes: tuple[str, ...],
    ) -> Prepared:
        options = self.options
        if not len(train) and not kept + held:
            raise ConfigError(f"The text {label} has no document with a token to predict.")
        if not len(train):
            raise ConfigError(
                f"The text {label} has {kept + held} tokens, and beside the {held} that held_out={options.held_out:g} "
                f"keeps from training {kept} are left: less than one row of length={options.length}. Set length or "
                "held_out lower, or name more text."
            )
        if options.held_out and not len(rest):
            raise ConfigError(
                f"held_out={options.held_out:g} keeps {held} tokens of {label} for evaluation, less than one row of "
                f"length={options.length}. Set it higher, or to 0."
            )
        return Prepared(
            train=TrainingRows(train, self.finish, options),
            evaluation=EvaluationRows(rest, self.finish, options) if len(rest) else None,
            collator=self.collator,
            text_label=label,
            sha256=sha256,
            objective=self.objective,
            tokens=kept,
            held_out=held,
            notes=notes,
            arguments={"train_sampling_strategy": "sequential"},
        )

    def _streamed(self) -> Prepared:
        options, documents = self.options, Documents(self.options, self.encoder, self.objective)
        for name, rows in documents.sources:
            if rows is None:
                raise ConfigError(
                    f"streaming reads rows, and {name!r} is plain text. Give a .jsonl, .json, .csv or .parquet file or "
                    "a dataset of the Hub, or set streaming to false."
                )
        pieces, skipped = self._first(documents)
        held = sum(map(len, pieces))
        if options.packing == "windows":
            rest = Listed(list(windows(iter(pieces), options.length, self.encoder)))
        else:
            rest = Listed(list(self._rows(pieces)))
        if options.held_out and not len(rest):
            raise ConfigError(
                f"held_out={options.held_out:g} keeps {held} tokens of {documents.label} for evaluation, less than one "
                f"row of length={options.length}. Set it higher, or to 0."
            )
        first = StreamedRows(documents, self.encoder, self.finish, replace(options, shuffle=False), skipped)
        next(iter(first))  # that there is one
        return Prepared(
            train=StreamedRows(documents, self.encoder, self.finish, options, skipped),
            evaluation=EvaluationRows(rest, self.finish, options) if len(rest) else None,
            collator=self.collator,
            text_label=documents.label,
            sha256=None,
            objective=self.objective,
            held_out=held,
            notes=(*documents.notes(), "held-out documents are the first of the stream"),
            arguments={"accelerator_config": {"dispatch_batches": False}},
        )

    def _first(self, documents: Documents) -> tuple[list[Piece], dict[str, int]]:
        """Pieces at the beginning of the stream, as many as are held out, and the rows they are from."""
        wanted, pieces, held = int(self.options.held_out), [], 0
        skipped: dict[str, int] = {}
        for name, rows in documents.sources:
            if held >= wanted:
                break
            assert rows is not None

            def counted(name: str = name, stream: Any = rows.stream) -> Iterator[Any]:
                for row in read(name, stream):
                    skipped[name] = skipped.get(name, 0) + 1
                    yield row

            for piece in documents.pieces(name, rows, counted()):
                pieces.append(piece)
                held += len(piece)
                if held >= wanted:
                    break
        return pieces, skipped
