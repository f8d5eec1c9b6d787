"""What a retrofit must not lose: what the model could do with a short text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...config import integer, number
from ...errors import UnsupportedError
from ..masking import draw_masked
from ..task import Item, Record, Task, TaskOptions, fingerprint, register_task, rng
from .masked import masked_record, spread

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject


@dataclass(frozen=True)
class ShortOptions(TaskOptions):
    """Options of the short task."""

    name = "short"
    window: int = integer(512, low=16, high=2**20, help="tokens; at most the length the model was made for")
    windows: int = integer(16, low=1, high=10_000, help="evenly spread over the text")
    share: float = number(0.15, low=0.001, high=1.0, help="of a window that is hidden from an encoder")


@register_task
class Short(Task):
    """Perplexity of short windows, each read on its own, next to stock's on the same windows.

    The lengths of the run do not matter here: a window has ``window`` tokens, those that begin (and end) a text
    included, or as many as the model was made for where that is less. A decoder predicts every token but the first; an
    encoder the hidden ones, as in the task ``masked``. Intervals come from windows.
    """

    name = "short"
    title = "Short-context perplexity"
    recipe = "mean nll of short windows spread over a text, each read on its own; hidden tokens for an encoder"
    needs = "head"
    metric = "perplexity"
    Options = ShortOptions

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        window = min(self.options.window, subject.trained_length)
        inner = window - len(subject.start) - len(subject.end)
        tokens = subject.tokens_of(setting.text)
        if inner < 2 or len(tokens) < inner:
            raise UnsupportedError(
                f"The text ({setting.text.name}) has {len(tokens)} tokens, and a window of task 'short' holds {inner} "
                "of them. Give a longer text with --text, or set short.window."
            )
        for number_, end in enumerate(spread(len(tokens), inner, self.options.windows)):
            ids = [*subject.start, *tokens[end - inner : end], *subject.end]
            yield Item(
                key=f"{window}/{number_}",
                length=window,
                depth=None,
                index=number_,
                tokens=len(ids),
                shape=(len(ids),),
                sha=fingerprint(ids),
                content=ids,
            )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        if subject.kind == "causal":
            rows = [item.content for item in items]
            return [[_record(subject, i, states)] for i, states in zip(items, subject.hidden(rows), strict=True)]
        records = []
        for item in items:
            first, count = len(subject.start), len(item.content) - len(subject.start) - len(subject.end)
            hidden = draw_masked(rng(setting, self.name, item.index), count, self.options.share)
            records.append([masked_record(subject, item, item.content, [first + i for i in hidden])])
        return records

    def describe(self, setting: Setting) -> dict[str, Any]:
        return {**super().describe(setting), "ignores_lengths": True}


def _record(subject: Subject, item: Item, states: Any) -> Record:
    nll = subject.nll(states[:-1], item.content[1:]).double().mean().item()
    more: dict[str, Any] = {} if nll - nll == 0 else {"finite": False}
    count = len(item.content) - 1
    return item.record(nll=nll, tokens=count, parts=[nll], part_tokens=[count], **more)
