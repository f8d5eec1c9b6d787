"""Perplexity of a long text, in three views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...config import flag, integer
from ...errors import UnsupportedError
from ..task import Item, Record, Task, TaskOptions, fingerprint, register_task

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject

BLOCK = 64
"""Tokens per block; intervals resample blocks, because neighbouring tokens are not independent."""

Span = tuple[str, int, int]
"""A view, the length at which it ends, and the first token that it scores."""


@dataclass(frozen=True)
class PerplexityOptions(TaskOptions):
    """Options of the perplexity task."""

    name = "perplexity"
    tail: int = integer(1024, low=1, high=2**20, help="tokens scored at the end of each length")
    skip: int = integer(2000, low=0, high=2**31, help="tokens of the text passed over first")
    documents: int = integer(1, low=1, high=10_000, help="stretches of the text, one after the other")
    window: int = integer(2048, low=2, high=2**24, help="of the sliding view, at most the longest length")
    stride: int = integer(256, low=1, high=2**24, help="of the sliding view")
    windows: int = integer(16, low=1, high=100_000, help="windows of the sliding view, at most those that fit")
    by_position: bool = flag(True, help="view: one long forward, the last `tail` tokens before each length")
    fixed_tail: bool = flag(True, help="view: the same last `tail` tokens, given each length of context")
    sliding: bool = flag(True, help="view: windows moved by `stride`, each scoring its new tokens")

    def check(self) -> Sequence[str]:
        problems = []
        if not (self.by_position or self.fixed_tail or self.sliding):
            problems.append("by_position, fixed_tail and sliding are all off; leave one on")
        if self.stride > self.window:
            problems.append(f"stride={self.stride} must not exceed window={self.window}, or tokens would be left out")
        return problems


@register_task
class Perplexity(Task):
    """Mean negative log-likelihood of a text's tokens, and its exponential.

    - ``by_position``: one forward over the longest length; the ``tail`` predictions that end at each length. Stretches
      of a text differ in difficulty, so this compares models at a length, not lengths. For a model whose parameters
      depend on the length of the call (transformers' dynamic NTK and longrope) it is one forward per length.
    - ``fixed_tail``: the *same* last ``tail`` tokens of the stretch, given 1k .. N tokens of context, so what the
      further context is worth.
    - ``sliding``: windows of ``window`` tokens moved by ``stride``, each scoring the tokens that are new in it,
      weighted by tokens; what a model that cannot reach far makes of a text.

    Every forward begins with the token that begins a text. Intervals come from blocks of 64 tokens.
    """

    name = "perplexity"
    title = "Perplexity"
    recipe = "mean nll of next tokens, by position, of a fixed tail by context, and in sliding windows"
    source = "sliding evaluation as in Press et al. 2021, arXiv 2108.12409, and Chen et al. 2023, arXiv 2306.15595"
    metric = "perplexity"
    Options = PerplexityOptions

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        options, lengths, longest = self.options, setting.lengths, setting.lengths[-1]
        if (options.by_position or options.fixed_tail) and lengths[0] <= options.tail:
            raise UnsupportedError(
                f"perplexity.tail={options.tail} must be smaller than the shortest length, {lengths[0]}. Set "
                f"perplexity.tail={max(1, lengths[0] // 2)} or leave that length out."
            )
        start, tokens = subject.start, subject.tokens_of(setting.text)
        inner = longest - len(start)
        if len(tokens) < options.skip + options.documents * inner:
            raise UnsupportedError(
                f"The text ({setting.text.name}) has {len(tokens)} tokens, and {options.skip} + {options.documents} x "
                f"{inner} are needed (perplexity.skip and .documents, lengths). Give a longer text with --text, or "
                "shorter lengths."
            )
        for document in range(options.documents):
            first = options.skip + document * inner
            stretch = tokens[first : first + inner]
            long = [*start, *stretch]
            if options.by_position:
                groups = [[n] for n in lengths] if varies_with_length(subject) else [list(lengths)]
                for group in groups:
                    spans = [("by_position", n, n - options.tail) for n in group]
                    if options.fixed_tail and group[-1] == longest:  # the same forward
                        spans.append(("fixed_tail", longest, longest - options.tail))
                    yield self._item("by_position", document, long[: group[-1]], group[-1], spans)
            if options.fixed_tail:
                for n in lengths[: -1 if options.by_position else None]:
                    ids = [*start, *stretch[inner - (n - len(start)) :]]
                    yield self._item("fixed_tail", document, ids, n, [("fixed_tail", n, n - options.tail)])
            if options.sliding:
                yield from self._sliding(start, stretch, document, longest)

    def _sliding(self, start: list[int], stretch: list[int], document: int, longest: int) -> Iterator[Item]:
        window = min(self.options.window, longest)
        inner, stride = window - len(start), min(self.options.stride, window - 1)
        for number in range(self.options.windows):
            at = number * stride
            if at + inner > len(stretch):
                break
            ids = [*start, *stretch[at : at + inner]]
            scored = 1 if number == 0 else window - stride  # the first token of all is never predicted
            yield self._item("sliding", document, ids, window, [("sliding", window, scored)], number)

    def _item(self, view: str, document: int, ids: list[int], length: int, spans: list[Span], number: int = 0) -> Item:
        ends = "-".join(f"{'f' if v != view else ''}{n}" for v, n, _ in spans)
        return Item(
            key=f"{view}/{document}/{ends}/{number}",
            length=length,
            depth=None,
            index=document * self.options.windows + number,
            tokens=len(ids),
            shape=None,
            sha=fingerprint(ids, spans),
            content=(ids, spans),
        )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        return [self._score(subject, item) for item in items]

    def _score(self, subject: Subject, item: Item) -> list[Record]:
        ids, spans = item.content
        hidden = subject.hidden([ids])[0]
        records = []
        for view, last, first in spans:
            nll = subject.nll(hidden[first - 1 : last - 1], ids[first:last]).double()
            blocks = [part.mean().item() for part in nll.split(BLOCK)]
            sizes = [len(part) for part in nll.split(BLOCK)]
            more: dict[str, Any] = {"tokens": len(nll), "parts": blocks, "part_tokens": sizes}
            more["question"] = fingerprint(ids[:last], first)
            records.append(item.record(variant=view, length=last, nll=torch.mean(nll).item(), **more))
        return records


def varies_with_length(subject: Subject) -> bool:
    """Whether one forward treats early tokens otherwise than a forward that ends there would.

    transformers' dynamic NTK and longrope do; this package's own ``dynamic`` and ``longrope`` look at each query's
    position instead. ``normalized`` divides by the length of the call.
    """
    from ...status import status

    state = status(subject.model)
    names = {entry["name"] for patch in state.patches for entry in patch.options}
    if "normalized" in names:
        return True
    types = {rope.get("rope_type") for rope in subject.host.rope_sets.values()}
    return bool(types & {"dynamic", "longrope"}) and not names & {"dynamic", "longrope"}
