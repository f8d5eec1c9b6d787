"""Prompts from a JSON-lines file; what is wrong with it is said with the line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

LONGEST = 65536
"""Most tokens of an answer."""

KEYS = ("id", "prompt", "messages", "max_new_tokens", "reference")


@dataclass(frozen=True)
class Prompt:
    """One line of the file.

    Attributes:
        line: its number, from 1.
        id: unique; ``line N`` where none is given.
        prompt: text to continue; or
        messages: for the chat template, each with ``role`` and ``content``.
        max_new_tokens: of the answer; None for the run's.
        references: what the answer should contain.
    """

    line: int
    id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    max_new_tokens: int | None
    references: tuple[str, ...]

    @property
    def content(self) -> str:
        """What is asked, as one text."""
        return json.dumps([self.prompt, self.messages], ensure_ascii=False, sort_keys=True)

    def shown(self) -> dict[str, Any]:
        """For the results."""
        asked: dict[str, Any] = {"prompt": self.prompt} if self.messages is None else {"messages": self.messages}
        return {**asked, "references": list(self.references)}


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file: one JSON object per line; empty lines are passed over.

    Each has ``prompt`` (text) or ``messages`` (a list of ``{"role": ..., "content": ...}``), and may have ``id``,
    ``max_new_tokens`` and ``reference`` (a text or a list of texts).

    Raises:
        ConfigError: the file cannot be read, holds no prompt, or a line is wrong; with the first five wrong lines.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompts {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    found: list[Prompt] = []
    wrong: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = _read(number, line)
        except ConfigError as error:
            wrong.append(f"line {number}: {error}")
            continue
        if prompt.id in seen:
            wrong.append(f"line {number}: the id {prompt.id!r} is that of line {seen[prompt.id]} already")
        seen.setdefault(prompt.id, number)
        found.append(prompt)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(f"The prompts {str(path)!r} are wrong: {'; '.join(wrong[:5])}{more}.")
    if not found:
        raise ConfigError(
            f'The prompts {str(path)!r} hold nothing. Write one JSON object per line: {{"prompt": "..."}}.'
        )
    return found


def _read(number: int, line: str) -> Prompt:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise ConfigError('it is no JSON object such as {"prompt": "..."}')
    for key in entry:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(KEYS)}"
            raise ConfigError(f"{key!r} is unknown{hint}")
    if ("prompt" in entry) == ("messages" in entry):
        raise ConfigError("it needs either prompt or messages")
    prompt, messages = entry.get("prompt"), entry.get("messages")
    if "prompt" in entry and (not isinstance(prompt, str) or not prompt):
        raise ConfigError("prompt must be a text that is not empty")
    if "messages" in entry:
        _check_messages(messages)
    tokens = entry.get("max_new_tokens")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= LONGEST):
        raise ConfigError(f"max_new_tokens={tokens!r} must be a whole number from 1 to {LONGEST}")
    name = entry.get("id", f"line {number}")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ConfigError(f"id={name!r} must be a text or a whole number")
    return Prompt(number, str(name), prompt, messages, tokens, _references(entry.get("reference")))


def _check_messages(messages: Any) -> None:
    good = isinstance(messages, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and "content" in m for m in messages
    )
    if not good or not messages:
        raise ConfigError('messages must be a list such as [{"role": "user", "content": "..."}]')


def _references(value: Any) -> tuple[str, ...]:
    values: Sequence[Any] = () if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or any(not isinstance(v, str) or not v for v in values):
        raise ConfigError("reference must be a text or a list of texts, none of them empty")
    return tuple(values)
