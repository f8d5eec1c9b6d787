"""Prompts that fill a length: as much hay as fits, counted in the model's own tokens, never cut.

A task says how its prompt reads with ``n`` units of hay (sentences, words, documents, pairs). The largest ``n`` is
searched with the real tokenizer, by interpolation: tokens grow almost evenly with the units, so that two or three
tokenisations of the whole prompt are enough.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UnsupportedError
from .answering import AnswerTask, Prompt, split_answer

if TYPE_CHECKING:
    from ..texts import Text
    from .setting import Setting
    from .subject import Subject

SENTENCES = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
NOISE = " ".join(SENTENCES)


class TooShort(UnsupportedError):  # noqa: N818 (a length, not an error of the program)
    """A length that even the shortest prompt exceeds.

    Attributes:
        least: tokens it needs.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


INTERPOLATIONS = 8
"""After so many steps the search halves instead, so that it ends whatever the tokens do."""


@dataclass(frozen=True)
class Draft:
    """A prompt whose hay is not measured out yet.

    Attributes:
        write: the prompt with so many units of hay; more units, more tokens.
        answer: the right answer as it would be written behind the prompt.
        references: what a generated answer must contain.
        least: units it cannot do without.
        most: units there are; None for no end.
        lacking: when ``most`` is too few: what there is too little of, and the way out.
        more: for the record.
    """

    write: Callable[[int], str]
    answer: str
    references: Sequence[str]
    least: int = 1
    most: int | None = None
    lacking: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


class FilledTask(AnswerTask):
    """Base of tasks whose prompt fills the length. Override :meth:`draft`.

    The tokens of the prompt and the budget of generated tokens together come as close to the length as the hay allows
    and never exceed it. The budget is the option ``new_tokens``, or what the right answer takes where that is more.
    """

    scored_by: ClassVar[str] = "generate"
    swept: ClassVar[bool] = False

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        """A prompt for a length, of which only the amount of hay is open."""
        raise NotImplementedError

    def build(self, subject: Subject, setting: Setting, random: Random, length: int, depth: float | None) -> Prompt:
        draft = self.draft(setting, random, length, depth)
        seen: dict[int, list[int]] = {}

        def measure(units: int) -> int:
            if units not in seen:
                seen.clear()  # only the last is asked for again
                seen[units] = subject.encode(draft.write(units))
            return len(seen[units])

        budget = max(self.options.new_tokens, len(subject.encode(draft.answer)) + 1)
        fixed = len(subject.start) + budget
        units = fill(measure, length - fixed, draft, f"This prompt of {self.name}", fixed)
        measure(units)
        whole = subject.encode(draft.write(units) + draft.answer)
        question, answer = split_answer(whole, seen[units])
        more = (("units", units), *draft.more.items())
        new_tokens = max(self.options.new_tokens, len(answer))
        return Prompt([*subject.start, *question], answer, draft.references, new_tokens, more)


def fill(measure: Callable[[int], int], room: int, draft: Draft, what: str, fixed: int = 0) -> int:
    """The largest number of units whose prompt has at most ``room`` tokens.

    Args:
        measure: tokens of the prompt with so many units.
        room: tokens there are.
        draft: says how few and how many units there may be.
        what: begins the sentences of errors.
        fixed: further tokens, for the sentences.

    Raises:
        UnsupportedError: there are too few units to fill the room; TooShort: the fewest are too long already.
    """
    low, low_tokens = draft.least, measure(draft.least)
    if low_tokens > room:
        least = low_tokens + fixed
        raise TooShort(
            f"{what} needs at least {least} tokens, its answer included, and the length is {room + fixed}. "
            "Leave that length out.",
            least,
        )
    high = math.inf if draft.most is None else draft.most + 1  # the fewest units known to be too many
    trial, per_unit, steps = low + 16.0, 1.0, 0
    while high - low > 1:
        units = int(max(low + 1, min(trial, high - 1, 64 * low + 1024)))
        tokens, steps = measure(units), steps + 1
        per_unit = max((tokens - low_tokens) / (units - low), 1e-3)
        if tokens > room:
            high = units
        else:
            low, low_tokens = units, tokens
            if room - tokens < per_unit:
                break
        trial = low + (room - low_tokens) / per_unit
        if steps > INTERPOLATIONS and math.isfinite(high):
            trial = (low + high) // 2
    if low == draft.most and room - low_tokens >= 2 * per_unit:
        raise UnsupportedError(f"{what} of {room + fixed} tokens cannot be filled: {draft.lacking}")
    return low


def noise(sentences: int) -> list[str]:
    """Lines of five noise sentences each; what is over stands in front as a shorter line."""
    lines, rest = divmod(sentences, len(SENTENCES))
    return ([" ".join(SENTENCES[-rest:])] if rest else []) + [NOISE] * lines


@lru_cache(maxsize=4)
def _words(text: Text) -> tuple[list[str], list[int]]:
    """The words of a text, and behind how many of them a sentence ends."""
    words = text.content.split()
    return words, [i + 1 for i, word in enumerate(words) if re.search(r"[.!?][\"')\]]*$", word)]


class TextHay:
    """A text as hay, a word a unit; needles go between sentences.

    Args:
        text: the user's.
    """

    def __init__(self, text: Text) -> None:
        self.words, self._ends = _words(text)

    def place(self, depth: float, units: int) -> int:
        """The end of a sentence that is nearest to a depth of so many words; a word's, where no sentence ends near."""
        goal = round(depth * units)
        if goal in (0, units):
            return goal
        at = bisect_left(self._ends, goal)
        near = [end for end in self._ends[max(0, at - 1) : at + 1] if end <= units]
        best = min(near, key=lambda end: abs(end - goal), default=goal)
        return best if abs(best - goal) <= max(20, units // 50) else goal
