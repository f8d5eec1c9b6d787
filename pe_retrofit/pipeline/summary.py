"""What a run came to: one row per state of the model, with perplexity and retrieval by length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.tables import number, percent
from .store import Store

VIEWS = ("by_position", "fixed_tail", "sliding", "")
"""Which variant of a task is shown: the first it has."""


def summary(store: Store) -> dict[str, Any]:
    """The results of a run in JSON values.

    Returns:
        ``columns``, each a task, variant and length; ``rows``, each a stage with its values by column, the seconds of
        the stage and the tokens trained on; ``saved``.
    """
    evaluated = {name.partition("_")[2]: s for name, s in store.steps.items() if name.startswith("evaluate_")}
    columns: list[dict[str, Any]] = []
    for evaluation in evaluated.values():
        for task, rows in evaluation["result"]["rows"].items():
            variant = _shown(rows)
            for row in rows:
                column = {"task": task, "variant": variant, "length": row["length"], "metric": _metric(row)}
                if row["variant"] == variant and column not in columns:
                    columns.append(column)
    tasks = list(dict.fromkeys(column["task"] for column in columns))
    columns.sort(key=lambda column: (tasks.index(column["task"]), column["length"]))
    stages = ["stock", *(name for name in store.steps if not name.startswith("evaluate_") and name != "save")]
    found = []
    for stage in stages:
        step: dict[str, Any] | None = store.steps.get(stage)
        values = evaluated.get(stage)
        if step is None and values is None:
            continue
        asked = None if values is None else values["result"]["rows"]
        found.append(
            {
                "stage": stage,
                "seconds": None if step is None else step["seconds"],
                "tokens": None if step is None or stage == "calibrate" else step["result"].get("tokens"),
                "values": None if asked is None else [_value(asked, column) for column in columns],
            }
        )
    return {"name": store.recipe.name, "columns": columns, "rows": found, "saved": store.done("save")}


def markdown(found: Mapping[str, Any]) -> str:
    """The same as a table."""
    head = ["model", *(_title(column) for column in found["columns"]), "tokens", "minutes"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in found["rows"]:
        values = row["values"] or [None] * len(found["columns"])
        cells = [
            percent(value) if column["metric"] == "score" else number(value)
            for column, value in zip(found["columns"], values, strict=True)
        ]
        tokens = "" if row["tokens"] is None else f"{row['tokens']:,}"
        minutes = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        title = "stock" if row["stage"] == "stock" else f"+ {row['stage']}"
        lines.append([title, *cells, tokens, minutes])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _shown(rows: Any) -> str:
    there = [row["variant"] for row in rows]
    return next((view for view in VIEWS if view in there), there[0] if there else "")


def _metric(row: Mapping[str, Any]) -> str:
    return "perplexity" if "tokens" in row else "score"


def _value(rows: Mapping[str, Any], column: Mapping[str, Any]) -> Any:
    for row in rows.get(column["task"], ()):
        if (row["variant"], row["length"]) == (column["variant"], column["length"]):
            return row["mean"]
    return None


def _title(column: Mapping[str, Any]) -> str:
    unit = " %" if column["metric"] == "score" else ""
    return f"{column['task']}{unit} at {column['length']:,}"
