"""A comparison as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...plots import thousands
from ..charts import title_of
from ..tables import Table, interval, number, percent, signed

MAIN_VIEWS = ("fixed_tail", "by_position", "")


def ratio(value: float | None) -> str:
    """``1.021x``."""
    if value is None:
        return "-"
    return f"{value:.3f}x" if value < 2 else f"{value:.3g}x" if value < 100 else f"{value:,.0f}x"


def formats(task: Mapping[str, Any]) -> tuple[Callable[[Any], str], Callable[[Any], str]]:
    """How a task's means and changes are written."""
    return (number, ratio) if task["metric"] == "perplexity" else (percent, signed)


def main_view(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The view that stands for the task in the overview."""
    views = {view["variant"]: view for view in task["views"]}
    return next((views[name] for name in MAIN_VIEWS if name in views), next(iter(views.values()), None))


def cell_text(task: Mapping[str, Any], cell: Mapping[str, Any] | None) -> str:
    """``26.8 (1.02x)``: the mean, and what lies between it and stock."""
    if cell is None:
        return "-"
    value, change = formats(task)
    shown = "not finite" if cell["not_finite"] else value(cell["mean"])
    return shown if cell["change"] is None else f"{shown} ({change(cell['change'])})"


def effective_text(task: Mapping[str, Any], label: str) -> str:
    """Effective length of a model in a task."""
    found = task["effective_length"].get(label)
    return "-" if found is None or found["length"] is None else thousands(found["length"])


def overview(comparison: Mapping[str, Any]) -> Table:
    """Rows: stock and each run. Columns: task by length, effective lengths, and the verdict."""
    shown = [(task, view) for task in comparison["tasks"] if (view := main_view(task)) is not None]
    head, lines = [""], {model["label"]: [model["label"]] for model in comparison["models"]}
    for task, view in shown:
        head += [f"{task['name']} {thousands(n)}" for n in view["lengths"]]
        cells = {row["label"]: row["cells"] for row in view["rows"]}
        for label, line in lines.items():
            line += [cell_text(task, cell) for cell in cells.get(label, [None] * len(view["lengths"]))]
        if task["effective_length"]:
            head.append(f"{task['name']} effective")
            for label, line in lines.items():
                line.append(effective_text(task, label))
    head.append("verdict")
    for model in comparison["models"]:
        lines[model["label"]].append(model["headline"]["text"] if "headline" in model else "")
    return Table("Overview", head, list(lines.values()), CAPTION)


CAPTION = (
    "Perplexity (in brackets: over stock's); scores in percent (in brackets: minus stock's, in points). Effective "
    "length: the largest that keeps 0.9 of stock's score at its trained length."
)


def task_tables(comparison: Mapping[str, Any]) -> Iterator[Table]:
    """One per task and view: each model's means, changes and intervals by length."""
    for task in comparison["tasks"]:
        value, change = formats(task)
        for view in task["views"]:
            lines: list[Sequence[str]] = []
            for row in view["rows"]:
                cells = row["cells"]
                lines.append(
                    [row["label"], *(cell_text(task, cell) for cell in cells), effective_text(task, row["label"])]
                )
                spans = [cell and cell["ci95"] for cell in cells]
                if any(spans):
                    lines.append(["  95 %", *(interval(span, value) for span in spans), ""])
                spans = [cell and cell["change_ci95"] for cell in cells]
                if any(spans):
                    kind = "over stock" if task["metric"] == "perplexity" else "minus stock"
                    lines.append([f"  {kind}, 95 % paired", *(interval(span, change) for span in spans), ""])
            head = ["", *(thousands(n) for n in view["lengths"]), "effective"]
            title = title_of(task, view)
            if task["metric"] == "perplexity":
                head, lines = head[:-1], [line[:-1] for line in lines]
            yield Table(title, head, lines, "")
        problems = [(label, s["status"], s["reason"]) for label, s in task["status"].items() if s["reason"]]
        if problems:
            yield Table(f"{task['title']}: what could not be done", ("model", "status", "reason"), problems)
