"""Small algorithms whose problems grow: does a model that learned short ones solve longer ones?

For models trained on them: :func:`problem` makes the texts to train on, from the sizes up to which it is trained.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ...config import integers
from ...errors import ConfigError, UnsupportedError
from ..answering import AnswerTask, Prompt, answer_tokens
from ..task import Item, TaskOptions, register_group, register_task, rng

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject

SIZES = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
LARGEST = 512


@dataclass(frozen=True)
class AlgorithmOptions(TaskOptions):
    """Options of each algorithm."""

    name = "copy"
    sizes: Sequence[int] = integers(SIZES, low=1, high=LARGEST, most=64, help="problem sizes, one column each")

    def check(self) -> list[str]:
        return [] if list(self.sizes) == sorted(set(self.sizes)) else [f"sizes={list(self.sizes)} must ascend"]


class Algorithm(AnswerTask):
    """Base: a question of some size, and the one answer, which ends with a line break.

    A cell is a problem size, not a number of tokens: ``length`` of its records is the size. The score is exact match
    of the forced answer, and of the greedily generated one as well with ``generate``. Every problem must fit the
    longest of the setting's lengths.
    """

    scored_by = "forced"
    swept = False
    unit = "problem size"
    source = (
        "after Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization, arXiv 2305.19466"
    )
    Options = AlgorithmOptions

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        """A question, and the answer that follows it to the letter."""
        raise NotImplementedError

    def match(self, text: str, references: Sequence[str]) -> float:
        return float(text.strip() == references[0])

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        limit = setting.lengths[-1]
        for size in self.options.sizes:
            for index in range(setting.samples):
                question, answer = self.problem(rng(setting, self.name, size, index), size)
                tokens, forced = answer_tokens(subject, question, answer)
                made = Prompt([*subject.start, *tokens], forced, [answer.strip()], len(forced))
                total = len(made.prompt) + len(forced)
                if total > limit:
                    raise UnsupportedError(
                        f"A problem of {self.name} of size {size} needs {total} tokens, and the longest length is "
                        f"{limit}. Set {self.name}.sizes to smaller ones, or choose a longer length."
                    )
                yield dataclasses.replace(self._item(made, limit, None, index), key=f"{size}/{index}", length=size)


def problem(name: str, random: Random, size: int) -> tuple[str, str]:
    """A question of the task ``name`` (copy, reverse, addition, sort, lookup) and its answer, to train on.

    Raises:
        ConfigError: no such task, or a size that is not from 1 to 512.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"{name!r} is no algorithm; there are {', '.join(ALGORITHMS)}.")
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"size={size} must be a whole number from 1 to {LARGEST}.")
    return ALGORITHMS[name]().problem(random, size)


@register_task
class Copy(Algorithm):
    """So many letters, repeated."""

    name = "copy"
    title = "Copying letters"
    recipe = "letters, to be repeated; exact match by how many they are"

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        letters = random.choices(string.ascii_lowercase, k=size)
        return f"Copy: {' '.join(letters)}\nAnswer:", f" {' '.join(letters)}\n"


@dataclass(frozen=True)
class ReverseOptions(AlgorithmOptions):
    """Options of reverse."""

    name = "reverse"


@register_task
class Reverse(Algorithm):
    """So many letters, from the last to the first."""

    name = "reverse"
    title = "Reversing letters"
    recipe = "letters, to be written backwards; exact match by how many they are"
    Options = ReverseOptions

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        letters = random.choices(string.ascii_lowercase, k=size)
        return f"Reverse: {' '.join(letters)}\nAnswer:", f" {' '.join(letters[::-1])}\n"


@dataclass(frozen=True)
class AdditionOptions(AlgorithmOptions):
    """Options of addition."""

    name = "addition"


@register_task
class Addition(Algorithm):
    """The sum of two numbers of so many digits, digits apart."""

    name = "addition"
    title = "Adding numbers"
    recipe = "two numbers, to be added; exact match by the number of their digits"
    Options = AdditionOptions

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        first, second = (random.randrange(10 ** (size - 1), 10**size) for _ in range(2))
        question = f"Add: {' '.join(str(first))} + {' '.join(str(second))}\nAnswer:"
        return question, f" {' '.join(str(first + second))}\n"


@dataclass(frozen=True)
class SortOptions(AlgorithmOptions):
    """Options of sort."""

    name = "sort"


@register_task
class Sort(Algorithm):
    """So many numbers from 0 to 99, in ascending order."""

    name = "sort"
    title = "Sorting numbers"
    recipe = "numbers from 0 to 99, to be sorted; exact match by how many they are"
    Options = SortOptions

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        numbers = [random.randrange(100) for _ in range(size)]
        question = f"Sort: {' '.join(map(str, numbers))}\nAnswer:"
        return question, f" {' '.join(map(str, sorted(numbers)))}\n"


@dataclass(frozen=True)
class LookupOptions(AlgorithmOptions):
    """Options of lookup."""

    name = "lookup"


@register_task
class Lookup(Algorithm):
    """So many keys of two letters with numbers of three digits; the number of one key. None comes twice."""

    name = "lookup"
    title = "Looking up a key"
    recipe = "keys with numbers, and one of the keys; exact match of its number by how many keys there are"
    Options = LookupOptions

    def problem(self, random: Random, size: int) -> tuple[str, str]:
        keys = random.sample([a + b for a in string.ascii_lowercase for b in string.ascii_lowercase], size)
        values = random.sample(range(100, 1000), size)
        at = random.randrange(size)
        pairs = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        return f"Look up: {pairs}; {keys[at]}\nAnswer:", f" {values[at]}\n"


ALGORITHMS: dict[str, type[Algorithm]] = {kind.name: kind for kind in (Copy, Reverse, Addition, Sort, Lookup)}

register_group("algorithms", list(ALGORITHMS))
