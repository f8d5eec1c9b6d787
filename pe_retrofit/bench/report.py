"""Results as a terminal table, JSON and a picture."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..plots import bar_chart

TITLES = {
    "prefill": "Prefill (whole model)",
    "decode": "Decode (one token after the prompt)",
    "train": "Training step (forward + backward, LoRA on the attention projections)",
    "attention": "Attention alone (one layer)",
}


def print_tables(results: dict[str, Any], console: Console) -> None:
    """One table per task."""
    for task, title in TITLES.items():
        rows = [row for row in results["rows"] if row["task"] == task]
        if not rows:
            continue
        table = Table(
            title=f"{title}: {results['model']}, {results['dtype']}, {results['device']}", title_justify="left"
        )
        for name in ("tokens", "variant", "seconds", "time / stock", "tokens/s", "peak MiB", "memory / stock"):
            table.add_column(name, justify="left" if name == "variant" else "right")
        for row in sorted(rows, key=lambda r: r["length"]):
            table.add_row(*_cells(row))
        console.print(table)


def save(results: dict[str, Any], out: Path) -> list[Path]:
    """Write ``bench.json`` and one picture per task; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    _write_whole(path, json.dumps(results, indent=2))
    paths = [path]
    for task, title in TITLES.items():
        rows = [r for r in results["rows"] if r["task"] == task and r.get("time_ratio") is not None]
        if rows:
            picture = out / f"bench_{task}.png"
            groups: dict[str, dict[str, float]] = {}
            for row in rows:
                groups.setdefault(f"{row['length']} tokens", {})[row["variant"]] = row["time_ratio"]
            bar_chart(
                groups,
                "",
                "time over stock",
                f"{title}: {results['model']}, {results['dtype']}",
                picture,
                log_y=max(row["time_ratio"] for row in rows) > 20,
                hlines={"stock": 1.0},
            )
            paths.append(picture)
    return paths


def _cells(row: dict[str, Any]) -> Sequence[str]:
    def number(key: str, form: str) -> str:
        return form.format(row[key]) if row.get(key) is not None else "-"

    if row["status"] != "ok":
        return (str(row["length"]), row["variant"], row["status"], "-", "-", "-", "-")
    seconds = row.get("seconds")
    return (
        str(row["length"]),
        row["variant"],
        f"{seconds:.3f}" if seconds is not None else "-",
        number("time_ratio", "{:.3f}x"),
        number("tokens_per_second", "{:.1f}"),
        number("peak_mib" if row["task"] != "attention" else "extra_mib", "{:.0f}"),
        number("memory_ratio", "{:.3f}x") if row["task"] != "attention" else "-",
    )


def _write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that the file is never half there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(name, path)
