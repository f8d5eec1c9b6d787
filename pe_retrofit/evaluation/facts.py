"""Invented people, a short document about each, and questions that only one document answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .vocabulary import split

FIRST = split(
    """
Ada Agnes Albert Alma Amos Anna Arthur Beatrice Bernard Blanche Bruno Cecil Clara Conrad Cora Dora Edgar Edith Edmund
Eleanor Elias Ella Emil Esther Eva Felix Flora Frances Fred Gertrude Gilbert Greta Gustav Harold Hazel Helen Herbert
Hilda Hugo Ida Irene Isaac Iris Ivan Jasper Julia Karl Laura Leo Lydia Mabel Magnus Martha Maud Milton Minnie Nora Oscar
Otto Pearl Percy Phoebe Ralph Rosa Rufus Ruth Samuel Selma Silas Stella Theodor Thomas Ursula Vera Victor Viola Walter
Wanda Wilfred Winifred
"""
)
LAST = (
    split("Alder Barn Black Brook Carl Copper Dun Ever Fair Gold Grim Hart Hazel Holl King Lang Lock Marl North Old "),
    split("Penn Quill Red Rosen Sand Silver Stan Thorn Under Vander Wake Wald West White Wim Wood Yard Yel Zim Zorn"),
    split("acre beck bell berg dale feld gate hurst kin ley man mark mere ner rick sen smith son ton wick"),
)
PLACE = (
    split("Ald Amber Bal Brae Calder Crow Dar Drift East Elder Fal Fen Glen Grey Haver Hollow Inver Kil Lan Lin"),
    split("Long Mar Mill Nether New Nor Oak Orm Pel Port Quar Raven Salt Sel Spring Stone Swan Tarn Ul Wil"),
    split("bourne bridge burgh bury castle chester cliffe combe cross ford hampton haven holme mouth pool port stead"),
)
TRADES = split(
    """
astronomer baker barber beekeeper bookbinder botanist brewer bricklayer carpenter cartographer clockmaker cobbler
composer conductor cooper dentist engraver fisherman gardener geologist glassblower goldsmith hatter innkeeper
journalist lawyer librarian locksmith mason midwife miller painter pharmacist photographer plumber potter printer
saddler sailmaker sculptor shipwright stonecutter surgeon surveyor tanner translator typesetter violinist watchmaker
zoologist
"""
)
COLLECTIONS = split(
    """
almanacs anchors arrowheads atlases barometers beetles bells bottles buttons butterflies candlesticks coins compasses
feathers ferns flutes fossils globes harmonicas helmets hymnals inkwells kettles keys kites lanterns magnets maps masks
medals minerals mosses postcards puppets quilts seashells sextants spoons stamps teapots telescopes thimbles tickets
tiles tulips umbrellas vases whistles
"""
)


@dataclass(frozen=True)
class Person:
    """An invented person."""

    name: str
    born: str
    year: str
    trade: str
    lived: str
    collected: str

    def document(self) -> str:
        """Three sentences about them."""
        article = "an" if self.trade[0] in "aeiou" else "a"
        last = self.name.split()[-1]
        return (
            f"{self.name} was born in {self.born} in {self.year} and became {article} {self.trade}. "
            f"In later life {last} moved to {self.lived} and was known there for a large collection of "
            f"{self.collected}. Most of what is remembered about {self.name} comes from letters to relatives."
        )


QUESTIONS: tuple[tuple[str, str], ...] = (
    ("Where was {name} born?", "born"),
    ("In which year was {name} born?", "year"),
    ("What was the profession of {name}?", "trade"),
    ("To which place did {name} move in later life?", "lived"),
    ("What did {name} collect?", "collected"),
)
"""Templates and the attribute of a :class:`Person` that answers them."""


def person(random: Random) -> Person:
    """One more, drawn."""
    pick = random.choice
    return Person(
        name=f"{pick(FIRST)} {pick(LAST[0] + LAST[1])}{pick(LAST[2])}",
        born=_place(random),
        year=str(random.randrange(1500, 2000)),
        trade=pick(TRADES),
        lived=_place(random),
        collected=pick(COLLECTIONS),
    )


def _place(random: Random) -> str:
    return random.choice(PLACE[0] + PLACE[1]) + random.choice(PLACE[2])


@dataclass(frozen=True)
class Asked:
    """A question, what counts as its answer, and the document that answers it."""

    question: str
    answers: tuple[str, ...]
    document: str


def ask(random: Random) -> tuple[Asked, Callable[[], str]]:
    """A question about a new person, and what draws the distractors: documents about others.

    The answer occurs in no distractor, and once in the right document; no two people share a name.
    """
    template, attribute = random.choice(QUESTIONS)
    while True:
        asked = person(random)
        answer = getattr(asked, attribute)
        if asked.document().lower().count(answer.lower()) == 1:
            break
    names = {asked.name.lower()}

    def distractor() -> str:
        while True:
            other = person(random)
            text = other.document()
            if other.name.lower() not in names and answer.lower() not in text.lower():
                names.add(other.name.lower())
                return text

    return Asked(template.format(name=asked.name), (answer,), asked.document()), distractor
