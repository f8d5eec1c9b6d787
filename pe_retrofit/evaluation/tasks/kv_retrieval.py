"""Key-value retrieval: a JSON object of UUIDs, and the value of one of its keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ...config import integer
from ..haystack import Draft, FilledTask
from ..task import TaskOptions, register_task
from ..vocabulary import Fresh, uuid

if TYPE_CHECKING:
    from ..setting import Setting

TEMPLATE = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{hay}\n\n"
    "Key: {key}\nCorresponding value:"
)


@dataclass(frozen=True)
class KeyValueOptions(TaskOptions):
    """Options of key-value retrieval."""

    name = "kv_retrieval"
    new_tokens: int = integer(48, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")


@register_task
class KeyValueRetrieval(FilledTask):
    """A JSON object whose keys and values are UUIDs, the pair asked for at each depth.

    Besides the score, a substring match of the generated text, the nll of the forced answer is recorded: small models
    score 0 everywhere, and still differ in it.
    """

    name = "kv_retrieval"
    title = "Key-value retrieval"
    recipe = "JSON of pairs of UUIDs, the pair asked for at a depth; the value occurs in what is generated; nll"
    template = TEMPLATE
    source = "Liu et al. 2023, Lost in the Middle, arXiv 2307.03172"
    swept = True
    Options = KeyValueOptions

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        fresh = Fresh(random)
        key, value = fresh.draw(uuid), fresh.draw(uuid)
        others: list[tuple[str, str]] = []

        def text(units: int) -> str:
            while len(others) < units:
                others.append((fresh.draw(uuid), fresh.draw(uuid)))
            at = round((depth or 0.0) * units)
            pairs = [*others[:at], (key, value), *others[at:units]]
            hay = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs)
            return TEMPLATE.format(hay=f"{{{hay}}}", key=json.dumps(key))

        return Draft(text, f" {json.dumps(value)}", [value], least=2)
