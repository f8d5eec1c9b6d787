"""The results of measured streams as a table, a picture and a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import plots

MB = 1e6


def print_results(results: dict[str, Any], console: Console) -> None:
    """One table: a row per stretch of the text, two columns per encoding; memory is that of the whole process."""
    streams = results["streams"]
    settings, model = results["settings"], results["model"]
    table = Table(
        title=f"{model['name']}, trained on {model['trained_length']:,} tokens, reading {_last(results):,}",
        caption=f"Segments of {settings['segment']:,} tokens, {settings['memory']:,} remembered.",
    )
    table.add_column("up to\ntoken", justify="right", no_wrap=True)
    for stream in streams:
        table.add_column(f"{stream['encoding']}\nperplexity", justify="right", no_wrap=True)
        table.add_column("memory\nMB", justify="right", no_wrap=True)
    for cells in zip(*(stream["rows"] for stream in streams), strict=True):
        line = [f"{cells[0]['stop']:,}"]
        for cell in cells:
            line += [_number(cell["perplexity"]), _megabytes(cell["resident_bytes"])]
        table.add_row(*line)
    console.print(table)
    for stream in streams:
        console.print(
            f"{stream['encoding']}: perplexity {_number(stream['perplexity'])} over {stream['tokens']:,} tokens; the "
            f"cache keeps {stream['kept_tokens']:,} of them in {stream['rows'][-1]['cache_bytes'] / MB:.1f} MB; "
            f"{stream['tokens'] / max(stream['seconds'], 1e-3):,.0f} tokens/s.",
            highlight=False,
            soft_wrap=True,
        )


def save(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``streaming.json`` and ``streaming.png``.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "streaming.json"
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return [file, _draw(results, folder / "streaming.png")]


def _draw(results: dict[str, Any], path: Path) -> Path:
    trained = {"trained length": float(results["model"]["trained_length"])}
    with plots.figure(8.0, 6.5, nrows=2, ncols=1, sharex=True) as (drawn, (upper, lower)):
        for n, stream in enumerate(results["streams"]):
            colour = plots.COLOURS[n % len(plots.COLOURS)]
            rows = [row for row in stream["rows"] if row["perplexity"] is not None]
            upper.plot(
                [row["stop"] for row in rows],
                [row["perplexity"] for row in rows],
                label=stream["encoding"],
                color=colour,
                marker=plots.MARKERS[n % len(plots.MARKERS)] if len(rows) <= 40 else None,
                markersize=5,
            )
            known = [point for point in stream["memory"] if point["resident_bytes"] is not None]
            lower.plot([p["token"] for p in known], [p["resident_bytes"] / MB for p in known], color=colour)
        values = [r["perplexity"] for s in results["streams"] for r in s["rows"] if r["perplexity"] is not None]
        if values and max(values) > 20 * min(values):
            upper.set_yscale("log")
            plots.plain_log_ticks(upper)
        else:
            upper.set_ylim(bottom=0)
        lower.margins(y=0.15)
        lower.set_ylim(bottom=0)
        last = _last(results)
        for axes in (upper, lower):
            axes.set_xlim(0, last * 1.02)
            if trained["trained length"] <= last:
                plots.mark(axes, trained, None)
        upper.set(ylabel="perplexity", title=f"{results['model']['name']}: a stream of {last:,} tokens")
        lower.set(xlabel="tokens read", ylabel="memory in use (MB)")
        lower.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        plots.legend(upper, len(results["streams"]))
        return plots.save(drawn, path)


def _last(results: dict[str, Any]) -> int:
    """Length of the streams in tokens."""
    return int(results["streams"][0]["rows"][-1]["stop"])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _megabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / MB:,.0f}"
