"""The demo's results as tables, a picture and a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..plots import line_chart, thousands


def print_results(results: dict[str, Any], console: Console) -> None:
    """Tables for the terminal."""
    damage, generation = results["damage"], results["generation"]
    console.print(_length_table(results))

    table = Table(
        title=f"Before any training: perplexity on {damage['windows']} windows of {damage['window_length']} tokens",
        caption="Replacing the rotation needs healing; a zero table on top of it changes nothing.",
    )
    for name in ("encoding", "perplexity", "times unpatched"):
        table.add_column(name, justify="left" if name == "encoding" else "right")
    for row in damage["variants"]:
        note = " (exact identity)" if row["identity"] else ""
        table.add_row(row["label"] + note, f"{row['perplexity']:.4g}", f"{row['times_unpatched']:.3g}")
    console.print(table)

    console.print(f"[bold]Generation[/bold] ({generation['label']}, {generation['tokens_per_second']:.1f} tokens/s)")
    console.print(generation["prompt"], end="", style="dim", markup=False, highlight=False)
    console.print(generation["continuation"], markup=False, highlight=False)
    same = "equals" if generation["cached_equals_uncached"] else "[red]differs from[/red]"
    console.print(f"Decoding with the cache {same} decoding without ({generation['compared_tokens']} tokens, float32).")
    back = "is bit-exactly" if results["restored"] else "[red]is not[/red]"
    console.print(f"After unpatching the model {back} what it was. Took {results['seconds']:.0f} s.")


def print_extension(results: dict[str, Any], console: Console) -> None:
    """Tables of the extension suite."""
    console.print(_length_table(results))
    if "encoder" not in results:
        return
    encoder = results["encoder"]
    table = Table(
        title=f"An encoder of 512 positions reading {encoder['long']} tokens",
        caption="Cosine of short texts to the original; of long ones to the mean of their pieces; nearest text right.",
    )
    for name in ("encoding", "short texts", "long texts", "retrieved"):
        table.add_column(name, justify="left" if name == "encoding" else "right")
    for row in encoder["variants"]:
        note = f" ({row['note']})" if "note" in row else ""
        finite = "" if row["finite"] else " [red]not finite[/red]"
        figures = (f"{row['short_cosine']:.3f}", f"{row['long_cosine']:.3f}", f"{100 * row['accuracy']:.0f} %")
        table.add_row(row["label"] + note + finite, *figures)
    console.print(table)


def _length_table(results: dict[str, Any]) -> Table:
    length, trained = results["length"], results["model"]["trained_length"]
    table = Table(
        title=f"Perplexity of the last {length['tail']} tokens at each length (trained length {trained})",
        caption="Compare down a column: stretches of the text differ in difficulty.",
    )
    table.add_column("encoding")
    for n in length["lengths"]:
        table.add_column(thousands(n), justify="right")
    for row in length["variants"]:
        figures = [f"{cell['perplexity']:.4g}" for cell in row["cells"]] or [row["error"]]
        table.add_row(row["label"], *figures)
    return table


def save(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``demo.json`` and ``demo.png``, or ``extension.*``.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = results["kind"]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    series = {
        row["label"]: [(cell["length"], cell["perplexity"]) for cell in row["cells"]]
        for row in results["length"]["variants"]
    }
    picture = line_chart(
        series,
        "context length (tokens)",
        f"perplexity of the last {results['length']['tail']} tokens",
        f"{results['model']['name']} without any training",
        folder / f"{name}.png",
        log_y=True,
        x_format=thousands,
        vlines={"trained length": results["model"]["trained_length"]},
        emphasise=("unpatched",),
    )
    return [file, picture]
