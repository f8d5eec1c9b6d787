"""Counting words: the two aggregation tasks of RULER."""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ...config import integer, number
from ...errors import UnsupportedError
from ..haystack import Draft, FilledTask
from ..task import TaskOptions, register_task
from ..vocabulary import WORDS, Fresh, compound
from .niah import SOURCE

if TYPE_CHECKING:
    from ..setting import Setting

COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{hay}\nQuestion: What are the {number} most common words in the above list? "
    "Answer: The top {number} words that appear most often in the list are:"
)
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {hay}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text above, the three most "
    "frequently appeared words are:"
)
SHORT = 4096
"""Below this length the common words task uses smaller numbers, as RULER does."""


@dataclass(frozen=True)
class CommonOptions(TaskOptions):
    """Options of common words extraction."""

    name = "cwe"
    common: int = integer(10, low=1, high=100, help="common words, all asked for")
    repeats: int | None = integer(
        None, low=2, high=1000, optional=True, help="times each common word appears: 30, and 6 at lengths below 4096"
    )
    rest: int | None = integer(
        None, low=1, high=1000, optional=True, help="times any other word appears: 3, and 1 at lengths below 4096"
    )
    new_tokens: int = integer(120, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")

    def times(self, length: int) -> tuple[int, int]:
        """How often common and other words appear at a length."""
        repeats, rest = (6, 1) if length < SHORT else (30, 3)
        return self.repeats or repeats, self.rest or rest

    def check(self) -> list[str]:
        wrong = [n for n in (SHORT - 1, SHORT) if self.times(n)[0] <= self.times(n)[1]]
        if not wrong:
            return []
        repeats, rest = self.times(wrong[0])
        return [f"repeats ({repeats}) must be more than rest ({rest}), or the common words are not the common ones"]


@register_task
class CommonWords(FilledTask):
    """A numbered list of shuffled words; which ten appear most often?

    The common words are single words, so are the others until the list of words is used up; then they are compounds
    (``dusty-lantern``). None contains a common word or is part of one. One solved example of 20 words (40 at lengths
    from 4096) stands in front.
    """

    name = "cwe"
    title = "Common words"
    recipe = "a numbered list, 10 words 30 times each, the others 3 times each, one solved example; share of the 10"
    template = COMMON
    source = SOURCE
    Options = CommonOptions

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        common = self.options.common
        repeats, rest = self.options.times(length)
        pool = list(WORDS)
        random.shuffle(pool)
        example, asked, others = pool[:common], pool[common : 2 * common], pool[2 * common :]
        front = self._example(random, example, others, length)
        others = [word for word in others if not _overlaps(word, asked)]
        seed = random.getrandbits(64)
        fresh = Fresh(random, lambda word: _overlaps(word, asked))

        def listing(units: int) -> list[str]:
            while len(others) < units:
                others.append(fresh.draw(compound))
            words = [word for word in asked for _ in range(repeats)]
            return spread(words, [word for word in others[:units] for _ in range(rest)], Random(seed))

        def text(units: int) -> str:
            return front + COMMON.format(hay=numbered(listing(units)), number=common)

        answers = list(dict.fromkeys(listing(0)))  # in the order in which they first appear
        return Draft(text, f" {numbered(answers)}", answers)

    def _example(self, random: Random, asked: list[str], others: list[str], length: int) -> str:
        many, repeats, rest = (20, 3, 1) if length < SHORT else (40, 10, 3)
        few = [word for word in others if not _overlaps(word, asked)][: max(1, many - len(asked))]
        words = [word for word in asked for _ in range(repeats)] + [word for word in few for _ in range(rest)]
        random.shuffle(words)
        return f"{COMMON.format(hay=numbered(words), number=len(asked))} {numbered(asked)}\n\n"


def spread(common: list[str], others: list[str], random: Random) -> list[str]:
    """Both in random order, such that more words at the end of ``others`` leave the order of the common ones."""
    random.shuffle(common)
    places = sorted((random.random(), i) for i in range(len(common)))
    keyed = [(place, 0, word) for (place, _), word in zip(places, common, strict=True)]
    keyed += [(random.random(), 1, word) for word in others]
    return [word for _, _, word in sorted(keyed)]


def numbered(words: list[str]) -> str:
    """``1. one 2. two``."""
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def _overlaps(word: str, others: list[str]) -> bool:
    return any(word in other or other in word for other in others)


@dataclass(frozen=True)
class FrequentOptions(TaskOptions):
    """Options of frequent words extraction."""

    name = "fwe"
    alpha: float = number(2.0, low=1.1, high=4.0, help="exponent of Zipf's law: the k-th word appears as 1 / k^alpha")
    letters: int = integer(6, low=4, high=12, help="of a coded word")
    new_tokens: int = integer(50, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")


@register_task
class FrequentWords(FilledTask):
    """Coded words (random letters) whose frequencies follow Zipf's law; which three are most frequent?

    The most frequent of all is ``...``, which does not count; the answers are ranks 2 to 4. There are as many
    different words as a fiftieth of the length. The third answer appears at least once more than any other word.
    """

    name = "fwe"
    title = "Frequent words"
    recipe = "random coded words in shuffled order, frequencies by Zipf's law; share of the three most frequent"
    template = CODED
    source = SOURCE
    Options = FrequentOptions

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        letters = self.options.letters
        fresh = Fresh(random)

        def coded_word(random: Random) -> str:
            return "".join(random.choices(string.ascii_lowercase, k=letters))

        vocabulary = ["...", *(fresh.draw(coded_word) for _ in range(max(8, length // 50) - 1))]
        shares = [k**-self.options.alpha / zeta(self.options.alpha) for k in range(1, len(vocabulary) + 1)]
        seed = random.getrandbits(64)

        def text(units: int) -> str:
            words = [w for w, share in zip(vocabulary, shares, strict=True) for _ in range(int(units * share))]
            Random(seed).shuffle(words)
            return CODED.format(hay=" ".join(words))

        least = int(1 / (shares[3] - shares[4])) + 1  # from there on the fourth rank has one more than the fifth
        if least > length:
            raise UnsupportedError(
                f"A prompt of fwe with alpha={self.options.alpha} needs at least {least} words, or the third and the "
                f"fourth may appear equally often, and the length is {length}. Leave that length out."
            )
        answers = vocabulary[1:4]
        return Draft(text, f" {', '.join(answers)}", answers, least=least)


def zeta(alpha: float) -> float:
    """Riemann's zeta for ``alpha`` > 1, by Euler and Maclaurin."""
    n = 64
    tail = n ** (1 - alpha) / (alpha - 1) + n**-alpha / 2 + alpha * n ** (-alpha - 1) / 12
    return sum(k**-alpha for k in range(1, n)) + tail
