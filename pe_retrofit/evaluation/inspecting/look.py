"""One look at a model: its attention over a text, its last hidden states, and what it writes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import UnsupportedError
from ...progress import Work, forward_cost
from ...texts import Text
from ..metrics import repetition
from ..subject import Subject
from .heads import LayerStatistics, gathered
from .observing import observed

NEW_TOKENS = 128
"""Tokens generated at most; never more than half of the length."""

NGRAM = 4


@dataclass
class Look:
    """What was seen.

    Attributes:
        ids: tokens read.
        attention: see :func:`~.heads.gathered`.
        hidden: last hidden states ``[n, hidden_size]``.
    """

    ids: list[int]
    attention: dict[str, Any]
    hidden: Tensor


def tokens_for(subject: Subject, text: Text, length: int) -> list[int]:
    """``length`` tokens from the start of a text, with those that begin and end one.

    Raises:
        UnsupportedError: the text is too short.
    """
    start, end = subject.start, subject.end
    tokens, room = subject.tokens_of(text), length - len(start) - len(end)
    if len(tokens) < room:
        raise UnsupportedError(
            f"The text ({text.name}) has {len(tokens)} tokens, and a length of {length} needs {room}. Give a longer "
            "text with --text, or a shorter --length."
        )
    return [*start, *tokens[:room], *end]


def look_cost(length: int) -> float:
    """Estimated work of :func:`look`: the attention is computed twice, and summed up."""
    return 3 * forward_cost(length)


def look(subject: Subject, ids: Sequence[int], work: Work, text: str) -> Look:
    """Read ``ids`` in one forward, watching the attention."""
    work.say(text)
    subject.check_length(len(ids))
    causal = [subject.host.causal(layer) for layer in range(len(subject.host.layers))]
    layers = [LayerStatistics(len(ids), c) for c in causal]
    with work.part(subject.model, look_cost(len(ids))), observed(subject.model, layers):
        hidden = subject.hidden([ids])[0]
    return Look(list(ids), gathered(layers), hidden)


def generation_cost(length: int) -> float:
    """Estimated work of :func:`continuation`."""
    return forward_cost(length) + 10 * new_tokens(length)


def new_tokens(length: int) -> int:
    """How many tokens are generated at a length."""
    return min(NEW_TOKENS, length // 2)


def continuation(subject: Subject, ids: Sequence[int], work: Work, text: str) -> dict[str, Any]:
    """A greedy continuation that ends at the length of ``ids``, and how much it repeats itself."""
    work.say(text)
    count = new_tokens(len(ids))
    prompt = list(ids[: len(ids) - count])
    with work.part(subject.model, generation_cost(len(ids))):
        made = subject.generate([prompt], count)[0]
    return {
        "prompt_tokens": len(prompt),
        "new_tokens": len(made),
        "ngram": NGRAM,
        "repetition": repetition(made, NGRAM),
        "text": subject.decode(made),
    }
