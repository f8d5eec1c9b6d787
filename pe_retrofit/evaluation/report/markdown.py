"""A comparison as Markdown, fit for a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..tables import Table
from ..tables import markdown as table_markdown
from .describing import facts
from .tables import overview, task_tables


def markdown(comparison: Mapping[str, Any], *, title: str = "Evaluation") -> str:
    """Verdicts, the overview, every table, and how it was measured."""
    runs = [model for model in comparison["models"] if model["role"] == "run"]
    parts = [f"## {title}\n"]
    for model in runs:
        words = " ".join((model["verdict"] or {}).get("words", []))
        parts.append(f"- **{plain(model['label'])}: {model['headline']['text']}.** {plain(words)}".rstrip())
    parts += ["", *(f"> {plain(note)}\n" for note in comparison["notes"])]
    parts.append(table_markdown(safe(overview(comparison))))
    parts += [table_markdown(safe(table)) for table in task_tables(comparison)]
    parts.append("### How it was measured\n")
    for model in runs:
        text = model["setting"]["text"]
        versions = ", ".join(f"{name} {version}" for name, version in model["versions"].items())
        parts.append(
            f"- {plain(model['label'])}: seed {model['seed']}, {model['setting']['samples']} samples per cell, text "
            f"{plain(text['source'])} (sha256 {text['sha256'][:12]}), {versions}, {model['date']}"
        )
    parts += [f"- {name.replace('_', ' ')}: {rule}" for name, rule in comparison["rules"].items()]
    parts += ["", "### Models\n"]
    for model in comparison["models"]:
        parts.append(f"- {plain(model['label'])}: " + "; ".join(f"{k}: {plain(v)}" for k, v in facts(model)[1:]))
    return "\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown takes as it is: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(str(text).split()))


def safe(table: Table) -> Table:
    """A table whose cells are taken as they are."""
    rows = [[plain(cell) for cell in row] for row in table.rows]
    return Table(plain(table.title), [plain(cell) for cell in table.head], rows, plain(table.caption))
