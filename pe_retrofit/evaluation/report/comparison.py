"""Runs side by side, as data: what compare.json holds and every table and picture is made from."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..judging import effective_length
from ..results import read
from ..tables import VIEWS
from .questions import check_questions
from .verdicts import headline

SCHEMA_VERSION = 1
KIND = "comparison"


@dataclass(frozen=True)
class Run:
    """The results of a run.

    Attributes:
        label: in tables; unique within a comparison.
        folder: name of its folder.
        results: as :func:`~pe_retrofit.evaluation.results.read` returns them.
    """

    label: str
    folder: str
    results: Mapping[str, Any]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Runs from their folders or files, labelled by their models' names (with the folder where that is ambiguous).

    Raises:
        ConfigError: no run is named, one twice, or something is no results file of an evaluation.
    """
    if not paths:
        raise ConfigError("Name one or more folders that `pe-retrofit eval` wrote.")
    places = [Path(path).resolve() for path in paths]
    twice = [str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"{twice[0]!r} is named twice; name each run once.")
    found = [(place if place.is_dir() else place.parent, read(path)) for path, place in zip(paths, places, strict=True)]
    for path, (_, results) in zip(paths, found, strict=True):
        _check_file(path, results)
    names = [results["model"]["name"] for _, results in found]
    runs: list[Run] = []
    for (folder, results), name in zip(found, names, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({folder.name})"
        while label in {run.label for run in runs}:
            label += "'"
        runs.append(Run(label, folder.name, results))
    return runs


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything the runs share and do not share.

    Returns:
        Plain JSON values: ``models`` (stock models first), ``tasks`` with ``views``, each a table of models by lengths
        with a gap (None) where a run has nothing; ``notes`` on what to know when reading it.

    Raises:
        ConfigError: the runs did not ask the same questions.
    """
    dropped = check_questions([(run.label, run.results) for run in runs])
    stocks = _stocks(runs)
    notes = [f"{task}, {view}, is not compared: {reason}." for (task, view), reason in dropped.items()]
    notes += _notes(runs, stocks)
    names = dict.fromkeys(name for run in runs for name in run.results["tasks"])
    tasks = [_task(name, runs, stocks, {view for task, view in dropped if task == name}) for name in names]
    first = runs[0].results
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "models": [*_stock_models(runs, stocks), *(_model(run) for run in runs)],
        "notes": [*notes, *_drift(tasks, runs, stocks)],
        "intervals": first.get("intervals", ""),
        "rules": first.get("rules", {}),
        "tasks": tasks,
    }


def _check_file(path: str | Path, results: Mapping[str, Any]) -> None:
    needed = ("model", "stock", "seed", "setting", "status", "date", "versions", "device")
    missing = [key for key in needed if key not in results]
    for name, task in results["tasks"].items():
        keys = ("title", "metric", "version", "by_length", "cells", "target_lengths")
        missing += [f"tasks.{name}.{key}" for key in keys if not isinstance(task, dict) or key not in task]
    if missing or not isinstance(results["model"], dict) or "name" not in results["model"]:
        raise ConfigError(f"The results of {str(path)!r} lack {', '.join(missing) or 'model.name'}; evaluate again.")


def _stock_key(about: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(str(about.get(key)) for key in ("base", "class", "parameters", "dtype", "trained_length"))


def _stocks(runs: Sequence[Run]) -> dict[tuple[Any, ...], str]:
    """Labels of the different stock models."""
    found: dict[tuple[Any, ...], str] = {}
    for run in runs:
        about = run.results["stock"]
        if about is None or _stock_key(about) in found:
            continue
        found[_stock_key(about)] = f"stock of {run.label}"
    if len(found) == 1:
        return dict.fromkeys(found, "stock")
    return found


def _label_of_stock(run: Run, stocks: Mapping[tuple[Any, ...], str]) -> str | None:
    about = run.results["stock"]
    return None if about is None else stocks[_stock_key(about)]


def _stock_models(runs: Sequence[Run], stocks: Mapping[tuple[Any, ...], str]) -> list[dict[str, Any]]:
    found = {}
    for run in runs:
        label = _label_of_stock(run, stocks)
        if label is not None and label not in found:
            about = run.results["stock"]
            found[label] = {"label": label, "role": "stock", **_lengths(about, run.results), "about": about}
    return list(found.values())


def _model(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "label": run.label,
        "role": "run",
        "folder": run.folder,
        **_lengths(results["model"], results),
        "headline": headline(results.get("verdict")),
        "verdict": results.get("verdict"),
        **{key: results[key] for key in ("status", "date", "seed", "setting", "versions", "device")},
        "about": results["model"],
    }


def _lengths(about: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    trained = about.get("trained_length") or results["model"].get("trained_length")
    return {"trained_length": trained, "context_length": about.get("context_length")}


def _notes(runs: Sequence[Run], stocks: Mapping[tuple[Any, ...], str]) -> list[str]:
    notes = []
    if len(stocks) > 1:
        notes.append(
            "The runs have different stock models; each is compared with its own, and differences to stock are not "
            "differences to one another."
        )
    alone = [run.label for run in runs if run.results["stock"] is None]
    if alone and len(runs) > len(alone):
        notes.append(f"Evaluated without a stock model: {', '.join(alone)}.")
    for run in runs:
        if run.results["status"] != "complete":
            notes.append(f"The run of {run.label} is not complete: {run.results['status']}. What is missing is a dash.")
    return notes


def _task(name: str, runs: Sequence[Run], stocks: Mapping[tuple[Any, ...], str], dropped: set[str]) -> dict[str, Any]:
    holders = [run for run in runs if name in run.results["tasks"]]
    parts = {run.label: run.results["tasks"][name] for run in holders}
    first = next(iter(parts.values()))
    variants = dict.fromkeys(row["variant"] for part in parts.values() for row in part["by_length"])
    keys = ("version", "metric", "unit", "recipe", "source", "options", "decoding", "text")
    return {
        "name": name,
        "title": first["title"],
        **{key: first[key] for key in keys if key in first},
        "status": {
            label: {"status": part.get("status", "ok"), "reason": part.get("reason", "")}
            for label, part in parts.items()
        },
        "cost": {
            label: {key: part.get(key) for key in ("seconds", "tokens_per_second", "peak_memory_bytes")}
            for label, part in parts.items()
        },
        "effective_length": _effective(holders, parts, stocks),
        "views": [_view(variant, holders, parts, stocks) for variant in variants if variant not in dropped],
    }


def _effective(
    holders: Sequence[Run], parts: Mapping[str, Mapping[str, Any]], stocks: Mapping[tuple[Any, ...], str]
) -> dict[str, Any]:
    """Effective length or the reason why there is none, by label."""
    found: dict[str, Any] = {}
    for run in holders:
        part, label = parts[run.label], _label_of_stock(run, stocks)
        if part["metric"] != "score":
            continue
        rows = [row for row in part["by_length"] if row["variant"] == ""] or part["by_length"]
        own = [{"length": row["length"], **row["stock"]} for row in rows if row.get("stock")]
        if label is not None and own:
            value, reason = effective_length(own, own, run.results["model"]["trained_length"])
            before = found.get(label)
            if before is None or (value or 0) > (before["length"] or 0):
                found[label] = {"length": value, "reason": reason}
        value, reason = part.get("effective_length"), part.get("effective_length_reason", "")
        found[run.label] = {"length": value, "reason": reason}
    return found


def _view(
    variant: str,
    holders: Sequence[Run],
    parts: Mapping[str, Mapping[str, Any]],
    stocks: Mapping[tuple[Any, ...], str],
) -> dict[str, Any]:
    """One table: models by lengths, and by depths where depths were varied."""
    flat: dict[str, dict[int, Any]] = {}
    deep: dict[str, dict[tuple[Any, int], float | None]] = {}
    for run in holders:
        label, part = _label_of_stock(run, stocks), parts[run.label]
        mine = [row for row in part["by_length"] if row["variant"] == variant]
        for row in mine:
            if label is not None and row.get("stock"):
                flat.setdefault(label, {}).setdefault(row["length"], _cell(row["stock"], None))
        for row in [row for row in part["cells"] if row["variant"] == variant and row.get("depth") is not None]:
            deep.setdefault(run.label, {})[row["depth"], row["length"]] = row["mean"]
            if label is not None and row.get("stock"):
                deep.setdefault(label, {}).setdefault((row["depth"], row["length"]), row["stock"]["mean"])
        kind = "ratio" if part["metric"] == "perplexity" else "difference"
        flat.setdefault(run.label, {}).update({row["length"]: _cell(row, kind) for row in mine})
    ordered = [label for label in dict.fromkeys(stocks.values()) if label in flat]
    ordered += [run.label for run in holders if run.label in flat]
    lengths = sorted({length for row in flat.values() for length in row})
    depths = sorted({depth for row in deep.values() for depth, _ in row})
    return {
        "variant": variant,
        "title": VIEWS.get(variant, variant.replace("_", " ")),
        "lengths": lengths,
        "depths": depths,
        "rows": [{"label": label, "cells": [flat[label].get(n) for n in lengths]} for label in ordered],
        "grids": {
            label: [[deep[label].get((depth, n)) for n in lengths] for depth in depths]
            for label in ordered
            if label in deep and len(depths) > 1
        },
    }


def _cell(row: Mapping[str, Any], change: str | None) -> dict[str, Any]:
    """A mean with its interval, and what lies between it and stock: a ratio of perplexities, a difference of scores."""
    return {
        **{key: row.get(key) for key in ("n", "mean", "ci95", "nll")},
        "not_finite": row.get("not_finite", 0),
        "change": None if change is None else row.get(change),
        "change_ci95": None if change is None else row.get(f"{change}_ci95"),
    }


def _drift(tasks: Sequence[Mapping[str, Any]], runs: Sequence[Run], stocks: Mapping[tuple[Any, ...], str]) -> list[str]:
    """Stock is shown once; say so where the runs have other numbers for the same stock model."""
    worst = 0.0
    shown = {
        (task["name"], view["variant"], row["label"], n): cell["nll"]
        for task in tasks
        for view in task["views"]
        for row in view["rows"]
        for n, cell in zip(view["lengths"], row["cells"], strict=True)
        if cell is not None
    }
    for run in runs:
        label = _label_of_stock(run, stocks)
        for name, task in run.results["tasks"].items():
            for row in task["by_length"]:
                mine = (row.get("stock") or {}).get("nll")
                other = shown.get((name, row["variant"], label or "", row["length"]))
                if mine is not None and other is not None:
                    worst = max(worst, abs(mine - other))
    if worst <= 0.01:
        return []
    return [
        f"The runs have different numbers for the same stock model (nll apart by up to {worst:.3g}): other versions, "
        "devices or kernels. The first run's are shown; differences are each run's own."
    ]
