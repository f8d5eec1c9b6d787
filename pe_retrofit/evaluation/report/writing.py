"""Write a comparison or a single run's report into a folder; a reader sees the old file or the new one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import finite
from ..charts import write_pictures
from .comparison import Run, compare
from .html import html
from .markdown import markdown

PICTURES = "pictures"


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """``compare.json``, ``compare.md``, ``compare.html`` and ``pictures/*.png``; returns what was written."""
    return [
        write_text(folder / "compare.json", json.dumps(finite(comparison), indent=1, ensure_ascii=False) + "\n"),
        write_text(folder / "compare.md", markdown(comparison, title="Comparison")),
        write_text(folder / "compare.html", html(comparison)),
        *write_pictures(comparison, folder / PICTURES),
    ]


def write_run(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """``table.md``, ``report.html`` and ``pictures/*.png`` of one run; returns what was written."""
    results = finite(results)
    comparison = compare([Run(results["model"]["name"], folder.name, results)])
    return [
        write_text(folder / "table.md", markdown(comparison)),
        write_text(folder / "report.html", html(comparison)),
        *write_pictures(comparison, folder / PICTURES),
    ]


def write_text(path: Path, text: str) -> Path:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path
