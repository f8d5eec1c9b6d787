"""The tasks as a Markdown table for the README, from the registry."""

from __future__ import annotations

from . import tasks as _tasks  # noqa: F401  (registers them)
from .task import GROUPS, NEEDS, list_tasks

BEGIN, END = "<!-- tasks: generated -->", "<!-- tasks: end -->"


def markdown() -> str:
    """One row per task, and the groups, without the markers."""
    rows = [["task", "what a sample is and how it is scored", "for", "source"], ["---"] * 4]
    for name, task in list_tasks().items():
        needs = NEEDS[task.needs].removeprefix("a ").removeprefix("an ")
        rows.append([f"`{name}`", task.recipe, needs, task.source or "-"])
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    groups = "; ".join(f"`{name}`: {', '.join(members())}" for name, members in GROUPS.items())
    return f"{table}\n\nGroups: {groups}; `all`: everything the model can do."
