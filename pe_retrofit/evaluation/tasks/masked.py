"""What context is worth to an encoder: hidden tokens at the end of a text, given more and more of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...config import integer, number
from ...errors import UnsupportedError
from ..masking import draw_masked, masked_nll
from ..task import Item, Record, Task, TaskOptions, fingerprint, register_task, rng

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject


@dataclass(frozen=True)
class MaskedOptions(TaskOptions):
    """Options of the masked task."""

    name = "masked"
    tail: int = integer(128, low=2, high=2**20, help="tokens at the end of each length of which some are hidden")
    share: float = number(0.15, low=0.001, high=1.0, help="of the tail that is hidden")
    documents: int = integer(16, low=1, high=10_000, help="stretches of the text, evenly spread over it")


@register_task
class Masked(Task):
    """Mean negative log-likelihood of hidden tokens and its exponential (a pseudo-perplexity), by length of context.

    Of each document the same tokens of the same last ``tail`` are hidden at every length, all at once and always by the
    mask token; what differs is how much of the text stands before the tail. Intervals come from documents.
    """

    name = "masked"
    title = "Perplexity of masked tokens"
    recipe = "hidden tokens of the same tail, given each length of context; nll of the true tokens"
    source = "masking as in Devlin et al. 2018, BERT, arXiv 1810.04805"
    needs = "masked"
    metric = "perplexity"
    Options = MaskedOptions

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        options, around = self.options, len(subject.start) + len(subject.end)
        if setting.lengths[0] < options.tail + around:
            raise UnsupportedError(
                f"masked.tail={options.tail} and {around} special tokens do not fit the shortest length, "
                f"{setting.lengths[0]}. Set masked.tail={max(2, setting.lengths[0] // 2)} or leave that length out."
            )
        tokens, inner = subject.tokens_of(setting.text), setting.lengths[-1] - around
        if len(tokens) < inner:
            raise UnsupportedError(
                f"The text ({setting.text.name}) has {len(tokens)} tokens, and {inner} are needed. Give a longer text "
                "with --text, or shorter lengths."
            )
        for length in setting.lengths:
            for document, end in enumerate(spread(len(tokens), inner, options.documents)):
                hidden = draw_masked(rng(setting, self.name, document), options.tail, options.share)
                ids = [*subject.start, *tokens[end - (length - around) : end], *subject.end]
                first = len(ids) - len(subject.end) - options.tail
                places = [first + i for i in hidden]
                yield Item(
                    # other longest lengths spread the documents otherwise
                    key=f"{length}/{setting.lengths[-1]}/{document}",
                    length=length,
                    depth=None,
                    index=document,
                    tokens=len(ids),
                    shape=None,
                    sha=fingerprint(ids, places),
                    content=(ids, places),
                )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        return [[masked_record(subject, item, *item.content)] for item in items]


def masked_record(subject: Subject, item: Item, ids: Sequence[int], places: Sequence[int]) -> Record:
    """The record of hidden tokens: one part, because tokens hidden in one text are not independent."""
    nll = masked_nll(subject, ids, places).double().mean().item()
    more: dict[str, Any] = {} if nll - nll == 0 else {"finite": False}
    return item.record(nll=nll, tokens=len(places), parts=[nll], part_tokens=[len(places)], **more)


def spread(total: int, size: int, count: int) -> list[int]:
    """Ends of ``count`` stretches of ``size`` out of ``total`` tokens, evenly spread; they may overlap."""
    return [size + (total - size) * i // max(1, count - 1) for i in range(count)]
