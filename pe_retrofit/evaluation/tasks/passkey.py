"""Passkey retrieval: a number hidden in noise."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ...config import integer
from ...errors import UnsupportedError
from ..answering import AnswerTask, Prompt, answer_tokens
from ..task import TaskOptions, register_task

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


@dataclass(frozen=True)
class PasskeyOptions(TaskOptions):
    """Options of the passkey task."""

    name = "passkey"
    digits: int = integer(5, low=1, high=30, help="digits of the number")


@register_task
class Passkey(AnswerTask):
    """A number of fixed digits, at a depth of repeated noise lines; exactly ``length`` tokens with the answer.

    The noise before the needle takes ``depth`` of all noise, to the nearest line; the first line of the noise is cut at
    its front so that the length is exact. The score is teacher-forced exact match. With ``generate`` the answer is
    also generated with the cache; the two must agree, or the cache or the positions are wrong.
    """

    name = "passkey"
    title = "Passkey retrieval"
    recipe = "noise lines, one needle with a random number, question; exact match of the forced answer"
    template = f"{INTRODUCTION}{NOISE}... {NEEDLE}... {NOISE}{QUESTION} {{key}}"
    source = "Mohtashami, Jaggi 2023, Landmark Attention, arXiv 2305.16300"
    scored_by = "forced"
    Options = PasskeyOptions

    def build(self, subject: Subject, setting: Setting, random: Random, length: int, depth: float | None) -> Prompt:
        digits = self.options.digits
        key = str(random.randrange(10 ** (digits - 1), 10**digits))
        head = [*subject.start, *subject.encode(INTRODUCTION)]
        needle = subject.encode(NEEDLE.format(key=key))
        question, answer = answer_tokens(subject, QUESTION, f" {key}")
        while len(answer) > 1 and not subject.decode(answer[:1]).strip():
            question, answer = [*question, answer[0]], answer[1:]  # a space before the key is no part of it
        line = subject.encode(NOISE)
        room = length - len(head) - len(needle) - len(question) - len(answer)
        if room < len(line):
            shortest = length - room + len(line)
            raise UnsupportedError(f"A passkey prompt needs at least {shortest} tokens, and the length is {length}.")
        lines, rest = divmod(room, len(line))
        before = round((depth or 0.0) * lines)
        first = line[len(line) - rest :] + line * before  # the cut line goes first
        last = line * (lines - before)
        prompt = [*head, *first, *needle, *last, *question]
        return Prompt(prompt, answer, [key], len(answer), (("needle_at", len(head) + len(first)),))
