"""Inspect a model next to the original, and put together the file."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...likelihood import logits_of
from ...patching import STATE
from ...progress import Report, Work
from ...status import status
from ...texts import Text, python_topics
from ..lifting import lifted
from ..opening import describe_source, open_model
from ..results import about, machine
from ..subject import Subject
from .drift import hidden_drift, logit_drift, same_head
from .flags import RULES, THRESHOLDS, flags
from .heads import DEFINITIONS
from .look import Look, continuation, generation_cost, look, look_cost, tokens_for
from .report import summary, write

SCHEMA_VERSION = 1
KIND = "inspection"
LONGEST = 2**20
HEAD_PROBE = 4
"""Positions on which the heads of both models are compared."""


def inspect_model(
    model: Any,
    tokenizer: Any,
    *,
    against: Any = "unpatched",
    length: int = 1024,
    text: Text | None = None,
    generate: bool = True,
    out: str | Path | None = None,
    name: str = "",
    report: Report | None = None,
) -> dict[str, Any]:
    """What a retrofit did inside: attention, sinks, entropy, drift and repetition, next to the original.

    The attention weights are those of the encoding that runs, computed by the reference for some queries at a time:
    memory beyond a forward pass is ``O(heads x length)``.

    Args:
        model: a transformers model of a supported family, patched or not, with an adapter or not.
        tokenizer: of the model.
        against: ``"unpatched"``: the same model with its patch lifted (nothing is compared when there is no patch);
            another model with the same tokens; or None.
        length: tokens read, 16 to 1048576, those that begin and end a text included. A stock model that cannot read so
            many reads as many as it can, and so does the model, once more, for the differences.
        text: read from its start; by default the Python language reference.
        generate: decoders also continue the text greedily, with the cache.
        out: folder for ``inspect.json`` and pictures; None writes nothing.
        name: in tables and files; the class by default.
        report: is told how far it is: text, work done, work in all.

    Returns:
        The results, as in ``inspect.json``; ``flags`` holds what to act on.

    Raises:
        ConfigError: ``length`` is out of range, or ``against`` has other layers, heads or tokens.
        UnsupportedError: the model fits no family, the text is too short, or the patch cannot be lifted.
    """
    subject = Subject(model, tokenizer, name or type(model).__name__)
    side: _Side | None
    if against is None or (isinstance(against, str) and against == "unpatched" and not status(model).patched):
        side = None
    elif isinstance(against, str) and against == "unpatched":
        side = _Side(lambda: lifted(model), f"{subject.name}, unpatched")
    elif isinstance(against, str):
        raise ConfigError(f"against={against!r} must be 'unpatched', a loaded model, or None.")
    else:
        side = _Side(lambda: nullcontext(against), type(against).__name__, against)
    return _Inspection(length, text or python_topics(), generate, report).run(subject, None, side, out)


def inspect_named(
    model: str,
    *,
    against: str | None = "auto",
    length: int = 1024,
    text: Text | None = None,
    generate: bool = True,
    out: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Inspect a model by its name; see :func:`inspect_model`.

    Args:
        model: what :func:`~pe_retrofit.evaluation.evaluate` takes: a hub id, a folder, an adapter, ``NAME@MODEL``.
        against: ``auto``: the same weights without patch and adapter, where there is one; ``none``; or a model.
    """
    if report is not None:
        report("loading the model", 0.0, 0.0)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    keywords: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    opened = open_model(model, gguf_file=gguf_file, **keywords)
    side: _Side | None = None
    if against == "auto":
        if opened.changed:
            side = _Side(opened.stock, opened.base)
    elif against not in (None, "none"):
        stock = open_model(against, **keywords)
        side = _Side(lambda: nullcontext(stock.model), stock.named.label, stock.model)
    inspection = _Inspection(length, text or python_topics(), generate, report)
    return inspection.run(
        Subject(opened.model, opened.tokenizer, opened.named.label), describe_source(opened), side, out
    )


@dataclass
class _Side:
    """The stock model, when its turn comes; ``other`` where it is a model of its own."""

    open: Callable[[], AbstractContextManager[Any]]
    name: str
    other: Any = None


@dataclass
class _Inspection:
    """One inspection."""

    length: int
    text: Text
    generate: bool
    report: Report | None
    attention: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = isinstance(self.length, int) and not isinstance(self.length, bool)
        if not whole or not 16 <= self.length <= LONGEST:
            raise ConfigError(f"length={self.length!r} must be a whole number of tokens from 16 to {LONGEST}.")

    def run(
        self, subject: Subject, source: dict[str, Any] | None, side: _Side | None, out: str | Path | None
    ) -> dict[str, Any]:
        """The model, then the stock model, then the comparison."""
        writes = self.generate and subject.kind == "causal"
        sides = 1 if side is None else 2
        each = look_cost(self.length) + (generation_cost(self.length) if writes else 0.0)
        work = Work(sides * each, self.report)
        ids = tokens_for(subject, self.text, self.length)
        subject.check_length(len(ids))
        mine = about(subject, source)
        seen = look(subject, ids, work, "attention")
        if writes:
            self.generation["model"] = continuation(subject, ids, work, "generating")
        self.attention["model"] = seen.attention
        theirs, drift = None, None
        if side is not None:
            theirs, drift = self._against(subject, seen, side, work, writes)
        return self._finish(mine, theirs, drift, len(ids), out)

    def _against(
        self, subject: Subject, seen: Look, side: _Side, work: Work, writes: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the stock model does with the same tokens, and how far the model is from it."""
        has_head = subject.kind != "encoder"
        limit = _limit_of_stock(subject, side, len(seen.ids))
        compared = seen
        if limit < len(seen.ids):
            shorter = tokens_for(subject, self.text, limit)
            work.total += look_cost(limit)
            compared = look(subject, shorter, work, f"attention over {limit} tokens")
            self.attention["model_at_stock_length"] = compared.attention
        expected = logits_of(subject.model, compared.hidden[:HEAD_PROBE]) if has_head else None
        with side.open() as model:
            stock = Subject(model, subject.tokenizer, side.name)
            _check_alike(subject, stock, compared)
            reference = look(stock, compared.ids, work, "attention of the stock model")
            self.attention["stock"] = reference.attention
            if writes:
                self.generation["stock"] = continuation(stock, compared.ids, work, "generating, stock model")
            work.say("drift")
            if expected is None:
                drift = hidden_drift(compared.hidden, reference.hidden)
            elif same_head(subject, compared.hidden[:HEAD_PROBE], expected):
                ids = compared.ids if subject.kind == "causal" else None
                drift = logit_drift(subject.model, compared.hidden, model, reference.hidden, ids)
            else:
                drift = {
                    "status": "skipped",
                    "reason": "the adapter changes the language-modelling head, so both models are needed at once; "
                    f"compare with a model of its own: --against {side.name}",
                }
            return about(stock, {"base": side.name}), drift

    def _finish(
        self,
        mine: dict[str, Any],
        theirs: dict[str, Any] | None,
        drift: dict[str, Any] | None,
        length: int,
        out: str | Path | None,
    ) -> dict[str, Any]:
        sides = {
            role: {"attention": self.attention[role], "generation": self.generation.get(role)}
            for role in ("model", "stock")
            if role in self.attention
        }
        results = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": mine,
            "stock": theirs,
            **machine(1),
            "text": {"source": self.text.name, "sha256": self.text.sha256, "characters": len(self.text.content)},
            "length": length,
            "stock_length": self.attention["stock"]["length"] if theirs is not None else None,
            "definitions": DEFINITIONS,
            "thresholds": THRESHOLDS,
            "rules": RULES,
            "flags": flags(sides["model"], sides.get("stock"), drift),
            "generation": self.generation or None,
            "drift": drift,
            "attention": self.attention,
        }
        results["summary"] = summary(results)
        if out is not None:
            results["files"] = write(results, Path(out))
        return results


def _limit_of_stock(subject: Subject, side: _Side, length: int) -> int:
    """Tokens the stock model can read, at most ``length``; known before the patch is lifted."""
    if side.other is not None:
        longest = Subject(side.other, subject.tokenizer, side.name).longest
    else:
        tables = [patch.table_before for patch in getattr(subject.host.base, STATE, [])]
        table = next((table for table in tables if table is not None), subject.host.table)
        longest = None if table is None else table.weight.shape[0] - subject.host.reserved_rows
    return length if longest is None else min(length, longest)


def _check_alike(subject: Subject, stock: Subject, seen: Look) -> None:
    def shape(of: Subject) -> tuple[int, int, int]:
        return len(of.host.layers), of.host.config.num_attention_heads, of.host.config.hidden_size

    if shape(subject) != shape(stock) or subject.kind != stock.kind:
        raise ConfigError(
            f"{stock.name} has {shape(stock)} layers, heads and channels and is {stock.kind!r}; {subject.name} has "
            f"{shape(subject)} and is {subject.kind!r}. Compare a retrofit with the model it was made from."
        )
    if stock.model.get_input_embeddings().weight.shape[0] <= max(seen.ids):
        raise ConfigError(f"{stock.name} does not know all tokens of {subject.name}: they are not of one origin.")
