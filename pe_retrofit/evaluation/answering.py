"""Tasks that ask for an answer: scored by forcing the right one, by generating, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UnsupportedError
from .metrics import contained
from .task import Item, Record, Task, fingerprint, rng

if TYPE_CHECKING:
    from .setting import Setting
    from .subject import Subject


@dataclass(frozen=True)
class Prompt:
    """A question.

    Attributes:
        prompt: tokens, the one that begins a text included.
        answer: tokens of the answer that is forced.
        references: what a generated answer must contain.
        new_tokens: how many tokens may be generated; they count towards the length.
        more: for the record.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    references: Sequence[str]
    new_tokens: int
    more: tuple[tuple[str, Any], ...] = ()


class AnswerTask(Task):
    """Base of tasks with a prompt and an answer. Override :meth:`build`.

    Attributes:
        scored_by: ``forced``: the answer is right when each of its tokens is the model's first choice given those
            before, in one forward without a cache; ``generate``: when the greedy continuation contains the references.
        swept: whether the depth is varied; else a cell is a length.
    """

    scored_by: ClassVar[str] = "generate"
    swept: ClassVar[bool] = True

    def build(self, subject: Subject, setting: Setting, random: Random, length: int, depth: float | None) -> Prompt:
        """One prompt that, with its answer or its generated tokens, has at most ``length`` tokens.

        Raises:
            UnsupportedError: it cannot be that short.
        """
        raise NotImplementedError

    def match(self, text: str, references: Sequence[str]) -> float:
        """Score of a generated text, 0 to 1: by default the share of the references it contains."""
        return contained(text, references)

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        depths: Sequence[float | None] = setting.depths if self.swept else (None,)
        for length in setting.lengths:
            for depth in depths:
                for index in range(setting.samples):
                    place = (length, depth, index)
                    made = self.build(subject, setting, rng(setting, self.name, *place), length, depth)
                    yield self._item(made, *place)

    def _item(self, made: Prompt, length: int, depth: float | None, index: int) -> Item:
        total = len(made.prompt) + max(len(made.answer), made.new_tokens)
        if total > length:  # a task must never lose a token of its prompt
            raise UnsupportedError(
                f"A prompt of task {self.name!r} has {total} tokens, its answer included, and the length is {length}."
            )
        return Item(
            key=f"{length}/{depth}/{index}",
            length=length,
            depth=depth,
            index=index,
            tokens=total,
            shape=(len(made.prompt), len(made.answer), made.new_tokens),
            sha=fingerprint(list(made.prompt), list(made.answer), list(made.references)),
            content=made,
        )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        made: list[Prompt] = [item.content for item in items]
        prompts, answers = [m.prompt for m in made], [m.answer for m in made]
        generated: list[list[int]] = []
        if self.scored_by == "generate":
            forced, generated = subject.forced_and_generated(prompts, answers, made[0].new_tokens)
        else:  # apart, so that one without a cache and one with it can be seen to agree
            forced = subject.forced(prompts, answers)
            generated = subject.generate(prompts, made[0].new_tokens) if setting.generate else []
        records = []
        for i, (item, prompt, found) in enumerate(zip(items, made, forced, strict=True)):
            score = float(found.exact)
            more: dict[str, Any] = {"exact": found.exact, **dict(prompt.more)}
            if generated:
                text = subject.decode(generated[i])
                starts = generated[i][: len(prompt.answer)] == list(prompt.answer)
                more |= {"generated": text, "generated_score": self.match(text, prompt.references)}
                more["agrees"] = starts == found.exact
                score = more["generated_score"] if self.scored_by == "generate" else score
            more["references"] = list(prompt.references)
            records.append([item.record(score=score, nll=found.nll, tokens=len(prompt.answer), **more)])
        return records

    def describe(self, setting: Setting) -> dict[str, Any]:
        return {
            **super().describe(setting),
            "decoding": "greedy, with the cache" if self.scored_by == "generate" else "teacher-forced, one forward",
            "also_generated": setting.generate and self.scored_by != "generate",
        }


def answer_tokens(subject: Subject, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a question and of the answer that follows it, as the tokenizer splits the two written together."""
    return split_answer(subject.encode(question + answer), subject.encode(question))


def split_answer(whole: list[int], alone: list[int]) -> tuple[list[int], list[int]]:
    """Tokens of a question and its answer, cut where they cease to be those of the question alone."""
    shared = 0
    while shared < min(len(whole) - 1, len(alone)) and whole[shared] == alone[shared]:
        shared += 1
    return whole[:shared], whole[shared:]
