"""Variable tracking: assignments that follow from each other, spread over noise."""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from ...config import integer
from ..haystack import Draft, FilledTask, noise
from ..task import TaskOptions, register_task
from ..vocabulary import Fresh
from .niah import SOURCE, insert

if TYPE_CHECKING:
    from ..setting import Setting

TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{hay}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. "
    "Answer: According to the chain(s) of variable assignment in the text above, {number} variables are assigned the "
    "value {value}, they are:"
)
EXAMPLE_SENTENCES = 25


@dataclass(frozen=True)
class VariablesOptions(TaskOptions):
    """Options of variable tracking."""

    name = "vt"
    hops: int = integer(4, low=1, high=100, help="assignments of a variable to a variable, per chain")
    chains: int = integer(1, low=1, high=100, help="chains, one of which is asked for")
    new_tokens: int = integer(30, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")


@dataclass(frozen=True)
class Chain:
    """``VAR A = 12345``, ``VAR B = VAR A``, ...

    Attributes:
        value: of all its variables.
        names: of its variables, in order.
        places: of its assignments in the hay, 0 to 1, ascending.
    """

    value: str
    names: tuple[str, ...]
    places: tuple[float, ...]

    def lines(self) -> list[str]:
        """Its assignments."""
        first = f"VAR {self.names[0]} = {self.value}"
        return [first, *(f"VAR {b} = VAR {a}" for a, b in pairwise(self.names))]


@register_task
class VariableTracking(FilledTask):
    """Chains of assignments in noise; which variables have the value of the first chain?

    One solved example stands in front, as in RULER: as many chains and hops in 25 sentences of noise, with names of
    three letters; those asked for have five. No two variables or values of a prompt are equal.
    """

    name = "vt"
    title = "Variable tracking"
    recipe = "a chain of assignments at random depths of noise, one solved example; share of its variables generated"
    template = TEMPLATE
    source = SOURCE
    Options = VariablesOptions

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        fresh = Fresh(random)
        example, asked = self._chains(fresh, 3), self._chains(fresh, 5)
        names = list(asked[0].names)
        front = f"{_written(example, EXAMPLE_SENTENCES)} {' '.join(example[0].names)}\n\n"
        answer = f" {' '.join(names)}"
        return Draft(lambda units: front + _written(asked, units), answer, names, least=5)

    def _chains(self, fresh: Fresh, letters: int) -> list[Chain]:
        random, size = fresh.random, self.options.hops + 1

        def variable(random: Random) -> str:
            return "".join(random.choices(string.ascii_uppercase, k=letters))

        def value(random: Random) -> str:
            return str(random.randrange(10_000, 100_000))

        return [
            Chain(
                fresh.draw(value),
                tuple(fresh.draw(variable) for _ in range(size)),
                tuple(sorted(random.random() for _ in range(size))),
            )
            for _ in range(self.options.chains)
        ]


def _written(chains: list[Chain], sentences: int) -> str:
    """The noise with the assignments of all chains, and the question for the first."""
    placed = sorted(
        (place, i, line) for i, c in enumerate(chains) for place, line in zip(c.places, c.lines(), strict=True)
    )
    hay = insert(noise(sentences), [line for _, _, line in placed], [place for place, _, _ in placed])
    asked = chains[0]
    return TEMPLATE.format(hay="\n".join(hay), value=asked.value, number=len(asked.names))
