"""Facts to hide in documents, each with the query for it; all made from short lists, so nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Fact:
    """A sentence, and the question it answers."""

    sentence: str
    query: str


def _words(text: str, between: str = " ") -> list[str]:
    return text.split(between)


FIRST = _words(
    "Alice Benjamin Clara Daniel Emma Frederick Grace Henry Isabel Jacob Katherine Leonard Martha Nathan Olivia Peter "
    "Rachel Samuel Teresa Victor Amelia Bruno Charlotte David Eleanor Felix Georgia Harold Irene Julian Laura Marcus "
    "Nora Oscar Pauline Quentin Rosa Simon Valerie Walter"
)

LAST = _words(
    "Abbott Barker Carter Dawson Ellis Fisher Graham Harper Irving Jennings Kennedy Lambert Morgan Norris Osborne "
    "Palmer Quinn Russell Sanders Turner Underwood Vaughan Walsh Young Archer Bishop Cooper Douglas Emerson Foster "
    "Gardner Hudson Jackson Knight Lawson Mason Newton Parker Reynolds Stewart"
)

CITIES = _words(
    "Amsterdam Athens Baghdad Bangkok Barcelona Beirut Berlin Bogota Boston Brussels Budapest Cairo Calcutta Chicago "
    "Copenhagen Damascus Delhi Dublin Edinburgh Florence Geneva Hamburg Havana Helsinki Istanbul Jakarta Jerusalem "
    "Kyoto Lima Lisbon London Madrid Manila Melbourne Milan Montreal Moscow Munich Nairobi Naples"
)

THINGS = _words(
    "oldest bakery;highest tower;public library;railway station;botanical garden;opera house;fish market;clock museum;"
    "stone bridge;town hall;school of music;observatory;harbour hospital;chess club;brick factory;swimming pool;"
    "royal stables;tea house;paper mill;summer theatre;river ferry;wine cellar;flower parade;toy shop;"
    "night school;printing house;glass workshop;ice rink;coffee exchange;map archive;"
    "boat yard;bell foundry;zoo;puppet theatre;cycling track;art academy;spice market;lighthouse;silk mill;post office",
    ";",
)


def passkeys(random: Random, count: int, digits: int = 5) -> list[Fact]:
    """Pass keys of different people; at most 1600."""
    facts = []
    for number in random.sample(range(len(FIRST) * len(LAST)), count):
        name = f"{FIRST[number // len(LAST)]} {LAST[number % len(LAST)]}"
        key = random.randrange(10 ** (digits - 1), 10**digits)
        sentence = f"{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}.\n"
        facts.append(Fact(sentence, f"What is the pass key for {name}?"))
    return facts


def place_facts(random: Random, count: int) -> list[Fact]:
    """Who founded what in which city; each of at most 1600 pairs of a thing and a city once."""
    facts = []
    for number in random.sample(range(len(THINGS) * len(CITIES)), count):
        thing, city = THINGS[number // len(CITIES)], CITIES[number % len(CITIES)]
        name = f"{random.choice(FIRST)} {random.choice(LAST)}"
        sentence = f" The {thing} in {city} was founded by {name}. "
        facts.append(Fact(sentence, f"Who founded the {thing} in {city}?"))
    return facts
