"""Results as tables: rows of text, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plots import thousands


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: of the table.
        head: column names; the first column is text, the others are numbers.
        rows: cells.
        caption: how to read it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


VIEWS = {
    "by_position": "perplexity of the last tokens before each length",
    "fixed_tail": "perplexity of the same last tokens, given that much context",
    "sliding": "perplexity in sliding windows",
}


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One table per task and variant: the stock model, the model, and what lies between them, by length."""
    for name, task in results["tasks"].items():
        variants = list(dict.fromkeys(row["variant"] for row in task["by_length"]))
        for variant in variants:
            rows = [row for row in task["by_length"] if row["variant"] == variant]
            what = VIEWS.get(variant, variant)
            yield _table(results, task, rows, f"{task['title']}{': ' + what if what else ''}")
        if not variants:
            yield Table(f"{task['title']} ({name})", ("status", "reason"), [(task["status"], task.get("reason", ""))])


def _table(results: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    unit = task.get("unit", "tokens")
    head = ["" if unit == "tokens" else unit, *(thousands(row["length"]) for row in rows)]
    scored = task["metric"] == "score"
    show = percent if scored else number
    lines: list[list[str]] = []
    if results["stock"] is not None:
        lines.append(["stock", *(show((row.get("stock") or {}).get("mean")) for row in rows)])
    lines.append([results["model"]["name"], *(show(row["mean"]) for row in rows)])
    lines.append(["  95 %", *(interval(row["ci95"], show) for row in rows)])
    if results["stock"] is not None:
        kind = "difference" if scored else "ratio"
        sign = signed if scored else (lambda v: "-" if v is None else f"{v:.3f}x")
        lines.append(["minus stock" if scored else "over stock", *(sign(row.get(kind)) for row in rows)])
        lines.append(["  95 %, paired", *(interval(row.get(f"{kind}_ci95"), sign) for row in rows)])
    if scored and any(row["nll"] is not None for row in rows):
        lines.append(["nll of the answer", *(number(row["nll"]) for row in rows)])
    if any("agreement" in row for row in rows):
        lines.append(["generated agrees", *(percent(row.get("agreement")) for row in rows)])
    caption = "Percent." if scored else "Compare down a column: stretches of a text differ in difficulty."
    if task.get("effective_length"):
        caption += f" Effective length: {thousands(task['effective_length'])}."
    elif "effective_length_reason" in task:
        caption += f" No effective length: {task['effective_length_reason']}."
    if task.get("note"):
        caption += f" {task['note']}"
    if task.get("reason"):
        caption += f" {task['status']}: {task['reason']}"
    problems = task.get("stock_run", {}).get("problems", {})
    if problems:
        caption += f" No stock at {', '.join(thousands(int(n)) for n in problems)}: {next(iter(problems.values()))}"
    return Table(title, head, lines, caption)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    rows = [table.head, rule, *table.rows]
    lines = "\n".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"**{table.title}**\n\n{lines}\n\n{table.caption}\n"


def show(table: Table, console: Any) -> None:
    """A table on the terminal."""
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, caption=table.caption, title_justify="left", caption_justify="left")
    for i, name in enumerate(table.head):
        drawn.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)


def number(value: float | None) -> str:
    """Four significant digits, a dash for nothing."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share times 100."""
    return "-" if value is None else f"{100 * value:.0f}"


def signed(value: float | None) -> str:
    """A share times 100 with its sign."""
    return "-" if value is None else f"{round(100 * value) or 0:+d}"


def interval(values: Sequence[float] | None, show: Any) -> str:
    """``low to high``."""
    return "-" if values is None else f"{show(values[0])} to {show(values[1])}"
