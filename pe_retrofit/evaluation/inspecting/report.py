"""The summary of an inspection, and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...config import finite
from ...plots import thousands
from ..tables import Table, number

FILE = "inspect.json"

MEASURES = {
    "entropy": "entropy (nats)",
    "entropy_normalised": "entropy over uniform's",
    "sink_mass": "attention on sinks",
    "mean_distance": "mean distance (tokens)",
    "largest": "largest share on one other key",
    "ahead": "attention on later tokens",
}


def summary(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows ``{"measure", "words", "model", "stock", "difference"}``: means over all layers and heads.

    ``difference`` is at the stock model's length, ``model`` at the whole one.
    """
    attention = results["attention"]
    stock, compared = attention.get("stock"), attention.get("model_at_stock_length", attention["model"])
    rows = []
    for name, words in MEASURES.items():
        if name == "ahead" and not np.any(attention["model"][name]):
            continue
        mine = float(np.mean(attention["model"][name]))
        theirs = None if stock is None else float(np.mean(stock[name]))
        change = None if theirs is None else float(np.mean(compared[name])) - theirs
        rows.append({"measure": name, "words": words, "model": mine, "stock": theirs, "difference": change})
    made = results["generation"] or {}
    if made:
        mine, theirs = made["model"]["repetition"], made.get("stock", {}).get("repetition")
        change = None if theirs is None else mine - theirs
        rows.append(
            {
                "measure": "repetition",
                "words": "repeated 4-grams generated",
                "model": mine,
                "stock": theirs,
                "difference": change,
            }
        )
    return rows


def table(results: Mapping[str, Any]) -> Table:
    """The summary for the terminal."""
    rows = [
        (row["words"], number(row["stock"]), number(row["model"]), number(row["difference"]))
        for row in results["summary"]
    ]
    length, shorter = results["length"], results["stock_length"]
    caption = "Means over layers and heads."
    if shorter is not None and shorter < length:
        caption += (
            f" Stock reads at most {thousands(shorter)} tokens, the model read {thousands(length)}; "
            "the difference is at stock's length."
        )
    drift = results["drift"]
    if drift is not None:
        caption += " " + drift_words(drift)
    title = f"{results['model']['name']}, {thousands(length)} tokens"
    return Table(title, ("", "stock", "model", "difference"), rows, caption)


def drift_words(drift: Mapping[str, Any]) -> str:
    """Drift in a sentence."""
    if drift["status"] != "ok":
        return f"Drift skipped: {drift['reason']}."
    if "cosine" in drift:
        return (
            f"Drift: mean cosine of hidden states {drift['cosine']:.4f}, of their means {drift['cosine_of_means']:.4f}."
        )
    words = (
        f"Drift: KL {drift['kl']:.3g} nats per token, first choices agree on {drift['agreement']:.1%}, largest change "
        f"of a logit {drift['largest_change']:.3g}"
    )
    if "nll" in drift:
        words += f", nll {drift['nll']:.3f} (stock {drift['stock_nll']:.3f})"
    return words + "."


def write(results: dict[str, Any], folder: Path) -> list[str]:
    """Write pictures and ``inspect.json``; a reader sees the old file or the new one, never half of it.

    Returns:
        Names of the files.
    """
    from .pictures import draw

    folder.mkdir(parents=True, exist_ok=True)
    names = [FILE, *(path.name for path in draw(results, folder))]
    fresh = folder / (FILE + ".new")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(_short(finite({**results, "files": names})), ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(folder / FILE)
    return names


def _short(value: Any) -> Any:
    """Six significant digits: a model has tens of thousands of these numbers."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
