"""Questions about documents, among documents that do not answer them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ...config import integer, words
from ...errors import ConfigError, UnsupportedError
from ..answering import Prompt
from ..facts import Asked, ask
from ..haystack import Draft, FilledTask, TooShort
from ..metrics import any_contained
from ..task import TaskOptions, register_task

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
TEMPLATE = (
    INSTRUCTION
    + "\n\nThe following are given documents.\n\n{hay}\n\n"
    + INSTRUCTION
    + "\n\nQuestion: {question} Answer:"
)
TRIES = 50


@dataclass(frozen=True)
class QuestionsOptions(TaskOptions):
    """Options of question answering."""

    name = "qa"
    file: str | None = words(
        most=4096, help="JSON lines with question, answers and context, as in SQuAD; without it, invented people"
    )
    new_tokens: int = integer(32, low=1, high=4096, help="tokens that may be generated; more if the answer is longer")


@register_task
class Questions(FilledTask):
    """A question, the document that answers it, and as many others as fit, in random order.

    Without a file, the documents are about invented people: no world knowledge helps, and nothing is downloaded. With
    one, the distractors are the file's other contexts that hold none of the question's answers. A generated answer is
    right when it contains any of the answers.
    """

    name = "qa"
    title = "Questions about documents"
    recipe = "the right document among others, in random order, and a question; any of its answers generated"
    template = TEMPLATE
    source = (
        "template of RULER, Hsieh et al. 2024, arXiv 2404.06654, on documents about invented people (RULER takes SQuAD "
        "and HotpotQA): RULER-style"
    )
    Options = QuestionsOptions

    def match(self, text: str, references: Sequence[str]) -> float:
        return any_contained(text, references)

    def build(self, subject: Subject, setting: Setting, random: Random, length: int, depth: float | None) -> Prompt:
        if self.options.file is None:
            return super().build(subject, setting, random, length, depth)
        shortest = 2**63
        for _ in range(TRIES):  # a file's contexts may be long: take one that fits
            try:
                return super().build(subject, setting, random, length, depth)
            except TooShort as problem:
                shortest = min(shortest, problem.least)
        raise UnsupportedError(
            f"None of {TRIES} questions drawn from {self.options.file} fits {length} tokens with its context; the "
            f"shortest needs {shortest}. Leave that length out."
        )

    def draft(self, setting: Setting, random: Random, length: int, depth: float | None) -> Draft:
        if self.options.file is None:
            asked, draw = ask(random)
            others: Iterator[str] = iter(draw, None)
            most = None
        else:
            asked = random.choice(self._file[0])
            contexts = [text for text in self._contexts if not any_contained(text, asked.answers)]
            random.shuffle(contexts)
            others, most = iter(contexts), len(contexts)
        place, drawn = random.random(), list[str]()

        def text(units: int) -> str:
            while len(drawn) < units:
                drawn.append(next(others))
            at = round(place * units)
            documents = [*drawn[:at], asked.document, *drawn[at:units]]
            hay = "\n\n".join(f"Document {i}:\n{document}" for i, document in enumerate(documents, 1))
            return TEMPLATE.format(hay=hay, question=asked.question)

        lacking = (
            f"{self.options.file} has only {most} contexts without an answer to the question drawn. Give a file with "
            "more, choose shorter lengths, or leave qa.file out."
        )
        return Draft(text, f" {asked.answers[0]}", asked.answers, 1 if most is None else 0, most, lacking)

    def describe(self, setting: Setting) -> dict[str, Any]:
        more = {} if self.options.file is None else {"file_sha256": self._file[1], "questions": len(self._file[0])}
        return {**super().describe(setting), **more}

    @cached_property
    def _file(self) -> tuple[list[Asked], str]:
        return read_questions(Path(self.options.file))

    @cached_property
    def _contexts(self) -> list[str]:
        return list(dict.fromkeys(asked.document for asked in self._file[0]))


def read_questions(path: Path) -> tuple[list[Asked], str]:
    """Questions from a file, one JSON object a line, and the file's SHA-256.

    ``answers`` is a text, a list of texts, or ``{"text": [...]}`` as in SQuAD; questions without an answer are left
    out.

    Raises:
        ConfigError: the file cannot be read, a line is not of that form, or an answer is not in its context.
    """
    try:
        raw = path.read_bytes()
        lines = raw.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"qa.file={str(path)!r} cannot be read: {error}. Give a UTF-8 file of JSON lines.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                asked = _question(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"qa.file={str(path)!r}, line {number}, is not understood ({error}). A line is JSON such as "
                    '{"question": "...", "answers": ["..."], "context": "..."}, and the context holds an answer.'
                ) from error
            found += [asked] if asked else []
    if not found:
        raise ConfigError(f"qa.file={str(path)!r} holds no question with an answer.")
    return found, hashlib.sha256(raw).hexdigest()


def _question(row: Any) -> Asked | None:
    answers = row["answers"] if "answers" in row else row["answer"]
    answers = answers["text"] if isinstance(answers, dict) else answers
    answers = [answers] if isinstance(answers, str) else answers
    texts = [row["question"], row["context"], *answers]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("question, context and answers must be texts that are not empty")
    if not answers:
        return None
    if not any_contained(row["context"], answers):
        raise ValueError("no answer occurs in the context")
    return Asked(row["question"].strip(), tuple(dict.fromkeys(a.strip() for a in answers)), row["context"].strip())
