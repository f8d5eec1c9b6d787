"""The A/B of prompts as a table, Markdown and one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import finite
from ..tables import Table, number, percent
from ..tables import markdown as table_markdown
from .describing import facts
from .html import colours_of, page
from .markdown import plain, safe
from .writing import write_text


def write_answers(answers: Mapping[str, Any], folder: Path) -> list[Path]:
    """``prompts.json``, ``prompts.md`` and ``prompts.html``; returns what was written."""
    return [
        write_text(folder / "prompts.json", json.dumps(finite(answers), indent=1, ensure_ascii=False) + "\n"),
        write_text(folder / "prompts.md", answers_markdown(answers)),
        write_text(folder / "prompts.html", answers_html(answers)),
    ]


def answers_table(answers: Mapping[str, Any]) -> Table:
    """Means over the prompts, one row per model."""
    head = ["", "first token", "in all", "tokens/s", "memory", "repetition", "agreement", "exact", "reference"]
    rows = [
        [
            model["name"],
            _seconds(model["first_token_seconds"]),
            _seconds(model["seconds"]),
            number(model["tokens_per_second"]),
            _memory(model["peak_memory_bytes"]),
            _percent(model["repetition"]),
            _percent(model["agreement"]),
            _percent(model["exact"]),
            _percent(model["reference"]),
        ]
        for model in answers["models"]
    ]
    first = answers["models"][0]["name"]
    return Table(f"{len(answers['prompts'])} prompts", head, rows, CAPTION.format(first=first))


def turned(table: Table) -> Table:
    """Rows become columns, for a narrow terminal."""
    lines = [table.head, *table.rows]
    columns = [list(column) for column in zip(*lines, strict=True)]
    return Table(table.title, columns[0], columns[1:], table.caption)


CAPTION = (
    "Means over the prompts. Repetition: share of 4-grams that occurred before. Agreement: share of equal tokens from "
    "the start with {first}; exact: the same answer. Reference: share of the references that the answer contains."
)


def answers_markdown(answers: Mapping[str, Any]) -> str:
    """The table, then every prompt with its answers."""
    parts = ["## Answers to prompts\n", table_markdown(safe(answers_table(answers))), _how(answers), ""]
    for row in answers["prompts"]:
        parts.append(f"### {plain(row['id'])}\n")
        parts.append(_fenced(_asked(row)))
        for answer in row["answers"]:
            parts.append(f"**{plain(answer['model'])}** ({plain(', '.join(_facts(answer)))})\n")
            parts.append(_fenced(answer["text"]))
    return "\n".join(parts) + "\n"


def answers_html(answers: Mapping[str, Any]) -> str:
    """One file in the look of the report."""
    names = [{"label": model["name"]} for model in answers["models"]]
    return page(
        "answers.html.j2",
        f"Answers of {len(names)} models to {len(answers['prompts'])} prompts",
        "",
        how=_how(answers),
        colours=colours_of(names),
        table=answers_table(answers),
        prompts=[
            {
                "id": row["id"],
                "asked": _asked(row),
                "references": row["references"],
                "answers": [{"model": a["model"], "text": a["text"], "facts": _facts(a)} for a in row["answers"]],
            }
            for row in answers["prompts"]
        ],
        models=[{"label": model["name"], "facts": facts({"about": model["about"]})} for model in answers["models"]],
        versions=", ".join(f"{name} {version}" for name, version in answers["versions"].items()),
    )


def _how(answers: Mapping[str, Any]) -> str:
    decoding = answers["decoding"]
    how = (
        "greedy"
        if decoding["temperature"] == 0
        else f"temperature {decoding['temperature']:g}, seed {decoding['seed']}"
    )
    return f"Decoding: {how}, at most {decoding['max_new_tokens']} tokens where the prompt names no other number."


def _asked(row: Mapping[str, Any]) -> str:
    if "messages" not in row:
        return str(row["prompt"])
    return "\n\n".join(f"{m['role']}: {_content(m['content'])}" for m in row["messages"])


def _content(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(answer: Mapping[str, Any]) -> list[str]:
    found = [
        f"{answer['new_tokens']} tokens" + (" (ended)" if answer["stopped"] else ""),
        f"first after {_seconds(answer['first_token_seconds'])}",
        f"in all {_seconds(answer['seconds'])}",
        f"{number(answer['tokens_per_second'])} tokens/s",
        f"memory {_memory(answer['peak_memory_bytes'])}",
        f"repetition {_percent(answer['repetition'])}",
    ]
    if "exact" in answer:
        same = "the same answer" if answer["exact"] else f"agreement {_percent(answer['agreement'])}"
        found.append(same)
    if "reference" in answer:
        found.append(f"reference {'contained' if answer['reference'] == 1 else _percent(answer['reference'])}")
    return found


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def _memory(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{percent(value)} %"


def _fenced(text: str) -> str:
    """A block of text, in a fence longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}\n"
