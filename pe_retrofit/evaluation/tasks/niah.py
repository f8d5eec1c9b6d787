"""Needles in a haystack: the four retrieval tasks of RULER."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from ...config import choice, integer
from ..haystack import Draft, FilledTask, TextHay, noise
from ..task import TaskOptions, register_task
from ..vocabulary import KINDS, Fresh

if TYPE_CHECKING:
    from ..setting import Setting

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{hay}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is"
)
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{hay}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text are"
)
HAYSTACKS = ("noise", "needles", "text")
SOURCE = "templates and parameters of RULER, Hsieh et al. 2024, arXiv 2404.06654; RULER-style: own word list"


@dataclass(frozen=True)
class NiahOptions(TaskOptions):
    """Options of all four tasks."""

    name = "niah_single"
    haystack: str = choice("noise", HAYSTACKS, help="noise lines, needles nobody asks for, or the text of --text")
    key_type: str = choice("words", tuple(KINDS), help="words (such as dusty-lantern), numbers (7 digits) or uuids")
    value_type: str = choice("numbers", tuple(KINDS), help="as key_type")
    new_tokens: int = integer(128, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")


@dataclass(frozen=True)
class MultikeyOptions(NiahOptions):
    """Options of niah_multikey."""

    name = "niah_multikey"
    keys: int = integer(4, low=1, high=1000, help="needles, one of which is asked for")


@dataclass(frozen=True)
class MultivalueOptions(NiahOptions):
    """Options of niah_multivalue."""

    name = "niah_multivalue"
    values: int = integer(4, low=1, high=1000, help="values of the one key, all asked for")


@dataclass(frozen=True)
class MultiqueryOptions(NiahOptions):
    """Options of niah_multiquery."""

    name = "niah_multiquery"
    queries: int = integer(4, low=1, high=1000, help="keys, all asked for")


class Niah(FilledTask):
    """Base: needles ``One of the special magic numbers for KEY is: VALUE.`` in hay, and a question for some of them.

    No two keys and no two values of a prompt are equal, those of distractors included, and none occurs in the text
    that is the hay. The hay is one of

    - ``noise``: the lines of the passkey task, a sentence a unit;
    - ``needles``: needles of the same form that nobody asks for (RULER's niah_multikey_2, and _3 with uuids);
    - ``text``: the setting's text from its beginning, a word a unit (RULER: essays); needles go between sentences.
    """

    source = SOURCE
    Options = NiahOptions
    asks: ClassVar[tuple[str, str, str]] = ("", "", "")
    """Names of the options that say how many keys, values per key, and queries there are; "" for one."""

    def _counts(self) -> tuple[int, int, int]:
        keys, values, queries = (getattr(self.options, name) if name else 1 for name in self.asks)
        return max(keys, queries), values, queries

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        options = self.options
        keys, values, queries = self._counts()
        content = setting.text.content if options.haystack == "text" else ""
        key, value = KINDS[options.key_type], KINDS[options.value_type]
        fresh = Fresh(random, lambda draw: draw in content)
        pairs = [(name, fresh.draw(value)) for name in [fresh.draw(key) for _ in range(keys)] for _ in range(values)]
        names = list(dict.fromkeys(name for name, _ in pairs))
        asked = random.sample(names, queries)
        random.shuffle(pairs)
        answers = [v for name in asked for k, v in pairs if k == name]  # of a key, in the order of the prompt
        needles = [NEEDLE.format(kind=options.value_type, key=k, value=v) for k, v in pairs]
        places = [depth] if depth is not None else sorted(random.random() for _ in needles)
        hay = self._hay(setting, fresh, key, value)
        one = values * queries == 1
        template = ONE if one else SEVERAL
        words = {"kind": options.value_type[:-1] if one else options.value_type, "query": listed(asked)}

        def write(units: int) -> str:
            return template.format(hay=hay(units, needles, places), **words)

        most = len(TextHay(setting.text).words) if options.haystack == "text" else None
        lacking = (
            f"the text ({setting.text.name}) has only {most} words. Give a longer one with --text, or set "
            f"{self.name}.haystack=noise."
        )
        least = {"noise": 5, "needles": 1, "text": 20}[options.haystack]
        more = {"keys": keys, "values": values, "queries": queries}
        return Draft(write, " " + ", ".join(answers), answers, least, most, lacking, more)

    def _hay(self, setting: Setting, fresh: Fresh, key: Any, value: Any) -> Callable[..., str]:
        """What lays so many units out with the needles at their places."""
        if self.options.haystack == "text":
            text = TextHay(setting.text)

            def within(units: int, needles: Sequence[str], places: Sequence[float]) -> str:
                cuts = [0, *(text.place(place, units) for place in places), units]
                parts = [" ".join(text.words[a:b]) for a, b in pairwise(cuts)]
                mixed = [part for i, part in enumerate(parts) for part in (part, *needles[i : i + 1])]
                return " ".join(part for part in mixed if part)

            return within
        distractors: list[str] = []

        def lines(units: int) -> list[str]:
            if self.options.haystack == "noise":
                return noise(units)
            while len(distractors) < units:
                more = {"key": fresh.draw(key), "value": fresh.draw(value)}
                distractors.append(NEEDLE.format(kind=self.options.value_type, **more))
            return distractors[:units]

        def between(units: int, needles: Sequence[str], places: Sequence[float]) -> str:
            return "\n".join(insert(lines(units), needles, places))

        return between


def insert(lines: Sequence[str], extra: Sequence[str], places: Sequence[float]) -> list[str]:
    """Lines with others between them, at ascending places from 0 (before all) to 1 (after all)."""
    laid: list[str] = []
    at = 0
    for line, place in zip(extra, places, strict=True):
        upto = round(place * len(lines))
        laid += [*lines[at:upto], line]
        at = upto
    return [*laid, *lines[at:]]


def listed(names: Sequence[str]) -> str:
    """``a``; or ``a, b, and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


@register_task
class NiahSingle(Niah):
    """One needle, at each depth."""

    name = "niah_single"
    title = "Needle, single"
    recipe = "one needle (key and value) at a depth of the hay; the value is asked for; share of values generated"
    template = f"{ONE} {{value}}, with needles: {NEEDLE}"
    swept = True


@register_task
class NiahMultikey(Niah):
    """Needles with different keys, one of which is asked for; spread at random, as in RULER."""

    name = "niah_multikey"
    title = "Needle, several keys"
    recipe = "needles with different keys at random depths; the value of one is asked for; share of values generated"
    template = f"{ONE} {{value}}, with needles: {NEEDLE}"
    Options = MultikeyOptions
    asks = ("keys", "", "")


@register_task
class NiahMultivalue(Niah):
    """Needles with the same key and different values, all of which are asked for; spread at random, as in RULER."""

    name = "niah_multivalue"
    title = "Needle, several values"
    recipe = "needles with one key and several values at random depths; all are asked for; share of values generated"
    template = f"{SEVERAL} {{value}}, ..., with needles: {NEEDLE}"
    Options = MultivalueOptions
    asks = ("", "values", "")


@register_task
class NiahMultiquery(Niah):
    """Needles with different keys, all of which are asked for; spread at random, as in RULER."""

    name = "niah_multiquery"
    title = "Needle, several queries"
    recipe = "needles with different keys at random depths; the values of all are asked for; share of values generated"
    template = f"{SEVERAL} {{value}}, ..., with needles: {NEEDLE}"
    Options = MultiqueryOptions
    asks = ("", "", "queries")
