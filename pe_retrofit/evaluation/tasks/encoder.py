"""Retrieval with an encoder: of documents of one length, which answers the query?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from ...config import choice, integer
from ...errors import UnsupportedError
from ..embedding import AUTO, POOLINGS, embed, find_pooling, rank
from ..task import Item, Record, Task, TaskOptions, fingerprint, register_group, register_task, rng
from .facts import Fact, passkeys, place_facts
from .passkey import NOISE

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject


@dataclass(frozen=True)
class EncoderOptions(TaskOptions):
    """Options of both retrieval tasks."""

    name = "encoder_passkey"
    candidates: int | None = integer(
        None, low=2, high=1600, optional=True, help="documents to choose from, at least one per query, the default"
    )
    pooling: str = choice(AUTO, (AUTO, *POOLINGS), help="auto: what modules.json beside the model says, else mean")


@dataclass(frozen=True)
class NeedleOptions(EncoderOptions):
    """Options of the needle task."""

    name = "encoder_needle"


class EncoderRetrieval(Task):
    """Documents of exactly ``length`` tokens, each with a fact of its own, and a query for some of the facts.

    The score of a query is 1 when the document with its fact has the highest cosine of all (acc@1). There are
    ``samples`` queries per length and depth, and all documents of a length, whatever the depth of their facts, are
    candidates for each query. A set of documents is one item: a run that is stopped repeats the set it was at.

    A model whose table of positions ends before ``length`` is skipped there: cut documents would test something else.

    Override :meth:`facts` and :meth:`document`.
    """

    needs = "encoder"
    source = "Zhu et al. 2024, LongEmbed: Extending Embedding Models for Long Context Retrieval, arXiv 2404.12096"

    def facts(self, random: Random, count: int) -> list[Fact]:
        """So many different facts, each with the query for it."""
        raise NotImplementedError

    def document(
        self, subject: Subject, setting: Setting, random: Random, fact: Sequence[int], room: int, depth: float
    ) -> tuple[list[int], int]:
        """``room`` tokens that hold the tokens of a fact, and where it starts.

        Raises:
            UnsupportedError: it does not fit.
        """
        raise NotImplementedError

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        asked = setting.samples * len(setting.depths)
        count = max(2, asked) if self.options.candidates is None else self.options.candidates
        if not asked <= count <= 1600:
            raise UnsupportedError(
                f"{asked} queries ({setting.samples} samples x {len(setting.depths)} depths) over {count} documents: "
                f"there must be a document for each query, and at most 1600. Set {self.name}.candidates, or fewer "
                "samples."
            )
        facts = self.facts(rng(setting, self.name, count), count)
        queries = [[*subject.start, *subject.encode(fact.query), *subject.end] for fact in facts[:asked]]
        depths = [setting.depths[i % len(setting.depths)] for i in range(count)]
        sweep = "-".join(f"{depth:g}" for depth in setting.depths)
        for length in setting.lengths:
            documents, places = [], []
            for i, (fact, depth) in enumerate(zip(facts, depths, strict=True)):
                inner = length - len(subject.start) - len(subject.end)
                random = rng(setting, self.name, length, i)
                body, place = self.document(subject, setting, random, subject.encode(fact.sentence), inner, depth)
                documents.append([*subject.start, *body, *subject.end])
                places.append(len(subject.start) + place)
                assert len(documents[-1]) == length, f"{self.name}: a document has {len(documents[-1])} tokens"
            yield Item(
                key=f"{length}/{asked} of {count}/{sweep}",
                length=length,
                depth=None,
                index=0,
                tokens=length * count,
                shape=None,
                sha=fingerprint(documents, queries),
                content=(documents, queries, depths, places),
                forwards=count,
            )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        pooling = find_pooling(subject.model, self.options.pooling)
        return [self._records(subject, item, pooling.mode, setting) for item in items]

    def _records(self, subject: Subject, item: Item, mode: str, setting: Setting) -> list[Record]:
        documents, queries, depths, places = item.content
        subject.check_length(item.length)  # before the time is spent
        vectors = embed(subject, documents, mode, setting.batch_size)
        asked = embed(subject, queries, mode, setting.batch_size)
        records = []
        for i, found in enumerate(rank(asked, vectors, range(len(queries)))):
            finite = math.isfinite(found.similarity) and math.isfinite(found.margin)
            more: dict[str, Any] = {} if finite else {"finite": False}
            records.append(
                item.record(
                    depth=depths[i],
                    index=i // len(setting.depths),
                    actual_length=item.length,
                    score=float(found.rank == 1),
                    rank=found.rank,
                    similarity=found.similarity if finite else None,
                    margin=found.margin if finite else None,
                    needle_at=places[i],
                    pooling=mode,
                    **more,
                )
            )
        return records

    def describe(self, setting: Setting) -> dict[str, Any]:
        asked = setting.samples * len(setting.depths)
        return {
            **super().describe(setting),
            "queries": asked,
            "documents": self.options.candidates or max(2, asked),
            "decoding": "cosine of embeddings, acc@1",
        }


@register_task
class EncoderPasskey(EncoderRetrieval):
    """Somebody's pass key in repeated noise: the documents differ in nothing but the name and the number."""

    name = "encoder_passkey"
    title = "Passkey retrieval by embeddings"
    recipe = "noise with <name>'s pass key; which document answers 'What is the pass key for <name>?'; acc@1 by cosine"
    Options = EncoderOptions

    def facts(self, random: Random, count: int) -> list[Fact]:
        return passkeys(random, count)

    def document(
        self, subject: Subject, setting: Setting, random: Random, fact: Sequence[int], room: int, depth: float
    ) -> tuple[list[int], int]:
        line = subject.encode(NOISE)
        left = room - len(fact)
        if left < len(line):
            raise UnsupportedError(
                f"A document of task {self.name!r} has room for {room} tokens and its fact has {len(fact)}, to which "
                f"at least one line of noise, {len(line)} tokens, belongs. Give longer lengths."
            )
        lines, rest = divmod(left, len(line))
        before = round(depth * lines)
        first = [*line[len(line) - rest :], *line * before]  # the cut line goes first
        return [*first, *fact, *line * (lines - before)], len(first)


@register_task
class EncoderNeedle(EncoderRetrieval):
    """A fact about a city in a stretch of the text; each document is another stretch."""

    name = "encoder_needle"
    title = "Needle retrieval by embeddings"
    recipe = "stretches of a text, each with a fact put in; which one answers the query for the fact; acc@1 by cosine"
    Options = NeedleOptions

    def facts(self, random: Random, count: int) -> list[Fact]:
        return place_facts(random, count)

    def document(
        self, subject: Subject, setting: Setting, random: Random, fact: Sequence[int], room: int, depth: float
    ) -> tuple[list[int], int]:
        tokens, left = subject.tokens_of(setting.text), room - len(fact)
        if left < len(fact):
            raise UnsupportedError(
                f"A document of task {self.name!r} has room for {room} tokens and its fact has {len(fact)}: too few "
                "for a haystack. Give longer lengths."
            )
        if len(tokens) < left:
            raise UnsupportedError(
                f"The text ({setting.text.name}) has {len(tokens)} tokens, and a haystack needs {left}. Give a longer "
                "text with --text, or shorter lengths."
            )
        start = random.randrange(len(tokens) - left + 1)
        stretch = tokens[start : start + left]
        place = _sentence_start(stretch, round(depth * left), subject.encode("."))
        return [*stretch[:place], *fact, *stretch[place:]], place


def _sentence_start(tokens: Sequence[int], near: int, stop: Sequence[int]) -> int:
    """The place after the last full stop up to ``near``, within 64 tokens; ``near`` where there is none."""
    if near == 0 or near == len(tokens) or not stop:
        return near
    return next((i for i in range(near, max(0, near - 64), -1) if tokens[i - 1] == stop[-1]), near)


register_group("encoder", ["encoder_passkey", "encoder_needle"])
