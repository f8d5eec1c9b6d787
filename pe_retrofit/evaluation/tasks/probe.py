"""Random tokens that come twice: whether a model can copy from so far back, without any text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...config import choice, integer
from ...errors import UnsupportedError
from ...likelihood import CHUNK, logits_of
from ..task import Item, Record, Task, TaskOptions, fingerprint, register_task, rng
from .passkey import NOISE

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject


@dataclass(frozen=True)
class ProbeOptions(TaskOptions):
    """Options of the probe."""

    name = "probe"
    repeated: int = integer(64, low=2, high=1024, help="tokens that come twice")
    gap: str = choice("random", ("random", "noise"), help="what stands between: other random tokens, or noise text")


@register_task
class Probe(Task):
    """``[R][gap][R]``: random tokens, others, and the first ones again; exactly ``length`` tokens.

    The tokens of R are distinct, and none of them stands in a random gap, so each token of the second copy is settled
    by the one before it and by the first copy alone, ``length - R`` tokens back. The first token of each copy is not
    scored: nothing announces it. Score: share of right first choices in the second copy, teacher-forced in one forward
    without a cache, beside its nll. Variant ``first copy`` holds the same of the first one: the baseline of a model
    that copies nothing.
    """

    name = "probe"
    title = "Copying random tokens"
    recipe = "random tokens, a gap, and the same tokens again; share of right first choices in the second copy"
    source = "after Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895"
    Options = ProbeOptions

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        size, start = self.options.repeated, subject.start
        tokens = ordinary_tokens(subject)
        if len(tokens) < 2 * size:
            raise UnsupportedError(
                f"The vocabulary has {len(tokens)} tokens that are not special, and probe.repeated={size} needs "
                f"{2 * size}. Set probe.repeated={len(tokens) // 2} or less."
            )
        shortest = len(start) + 2 * size
        for length in setting.lengths:
            if length < shortest:
                raise UnsupportedError(
                    f"A probe of probe.repeated={size} tokens needs at least {shortest}, and the length is {length}. "
                    f"Set probe.repeated={max(2, (length - len(start)) // 2)} or choose longer lengths."
                )
            for index in range(setting.samples):
                random = rng(setting, self.name, length, index)
                repeated = random.sample(tokens, size)
                gap = self._gap(subject, random, tokens, repeated, length - shortest)
                yield self._item([*start, *repeated, *gap, *repeated], len(start), length, index)

    def _gap(
        self, subject: Subject, random: Random, tokens: Sequence[int], repeated: Sequence[int], size: int
    ) -> list[int]:
        if self.options.gap == "noise":
            line = subject.encode(NOISE)
            return (line * (size // len(line) + 1))[:size]
        taken = set(repeated)  # looked up, never iterated
        return random.choices([token for token in tokens if token not in taken], k=size)

    def _item(self, ids: list[int], first: int, length: int, index: int) -> Item:
        size = self.options.repeated
        return Item(
            key=f"{length}/{index}",
            length=length,
            depth=None,
            index=index,
            tokens=len(ids),
            shape=(len(ids),),
            sha=fingerprint(ids, size),
            content=(ids, first),
        )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        hidden = subject.hidden([item.content[0] for item in items])
        return [self._score(subject, item, states) for item, states in zip(items, hidden, strict=True)]

    def _score(self, subject: Subject, item: Item, hidden: Tensor) -> list[Record]:
        ids, first = item.content
        size = self.options.repeated
        distance = len(ids) - first - size
        records = []
        for variant, start in (("", len(ids) - size), ("first copy", first)):
            nll, right = _forced(subject, hidden[start : start + size - 1], ids[start + 1 : start + size])
            more: dict[str, Any] = {"tokens": size - 1, "distance": distance}
            records.append(item.record(variant=variant, score=right, nll=nll, **more))
        return records


def ordinary_tokens(subject: Subject) -> list[int]:
    """All tokens of the vocabulary that are neither special nor added to it, ascending."""
    tokenizer = subject.tokenizer
    rows = subject.model.get_input_embeddings().weight.shape[0]
    count = min(len(tokenizer), rows) if hasattr(tokenizer, "__len__") else rows
    special = {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())}
    names = ("bos", "eos", "pad", "cls", "sep", "mask", "unk")
    special |= {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return [token for token in range(count) if token not in special]


def _forced(subject: Subject, hidden: Tensor, targets: Sequence[int]) -> tuple[float, float]:
    """Mean nll, and share of right first choices."""
    wanted = torch.tensor(list(targets), device=hidden.device)
    nll, right = 0.0, 0
    for start in range(0, len(wanted), CHUNK):
        logits = logits_of(subject.model, hidden[start : start + CHUNK])
        part = wanted[start : start + CHUNK]
        nll += torch.nn.functional.cross_entropy(logits, part, reduction="sum").item()
        right += int((logits.argmax(-1) == part).sum())
    return nll / len(wanted), right / len(wanted)
