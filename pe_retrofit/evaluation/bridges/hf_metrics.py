"""Score the answers of a run with a metric of the ``evaluate`` library."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config import finite
from ...errors import ConfigError, UnsupportedError

OWN = (
    "The tasks' own scores (contained, any_contained, exact match of forced answers) need nothing and are in the file."
)


def load_metric(name: str, *, trust_remote_code: bool = False) -> Any:
    """A metric of the ``evaluate`` library.

    Args:
        name: a folder with a metric script of the same name, or such a ``.py`` file, which works offline; or the name
            of a metric on the Hub (``rouge``, ``exact_match``), where almost all of them live.
        trust_remote_code: a metric is a script; one from the Hub is downloaded and run only with this.

    Raises:
        ConfigError: the Hub is meant and its code is not trusted, or the script cannot be loaded.
        UnsupportedError: ``evaluate`` is not installed, or the Hub cannot be reached and the metric is not in the
            cache.
    """
    try:
        import evaluate
    except ImportError as error:
        raise UnsupportedError(
            f"Metrics of other libraries need the package evaluate: pip install 'pe_retrofit[eval]'. {OWN}"
        ) from error
    path = Path(name)
    local = path.exists()
    if local and path.is_dir() and not (path / f"{path.resolve().name}.py").is_file():
        raise ConfigError(f"The folder {name!r} holds no metric script {path.resolve().name}.py.")
    if not local and not trust_remote_code:
        raise ConfigError(
            f"{name!r} is no folder or file, so it would be a metric on the Hub, whose script is downloaded and run. "
            f"If you trust it, set trust_remote_code=True; or name a folder with a metric script. {OWN}"
        )
    try:
        return evaluate.load(str(path.resolve()) if local else name)
    except Exception as error:  # whatever a script, or the lack of a network, raises
        if local:
            raise ConfigError(f"The metric script {name!r} cannot be loaded: {error}") from error
        raise UnsupportedError(
            f"The metric {name!r} lives on the Hugging Face Hub, which cannot be reached, and it is not in the cache "
            f"({type(error).__name__}: {error}). Name a folder with its script. {OWN}"
        ) from error


def score_samples(
    samples: str | Path, metric: Any, tasks: Sequence[str] | None = None, **options: Any
) -> dict[str, Any]:
    """The answers of a run, scored by another metric, for each task and length.

    Args:
        samples: a run's ``samples/model.jsonl`` or ``samples/stock.jsonl``.
        metric: of :func:`load_metric`; its predictions are the generated texts, and its references all references of a
            sample, or the only one where the metric takes a plain string.
        tasks: names of those to score; all that generated answers by default.
        **options: for the metric's ``compute``.

    Returns:
        ``{"metric", "samples", "cells": [{"task", "variant", "length", "n", "result"}]}``.

    Raises:
        ConfigError: the file is not one of samples, or holds no generated answers of these tasks.
        UnsupportedError: the metric takes one reference and a sample has several.
    """
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for task, record in _records(Path(samples)):
        if "generated" in record and "references" in record and (tasks is None or task in tasks):
            groups[task, record["variant"], record["length"]].append(record)
    if not groups:
        what = "" if tasks is None else f" of {', '.join(tasks)}"
        raise ConfigError(
            f"{str(samples)!r} holds no generated answers{what}. Tasks that force the answer also generate "
            "it with --generate."
        )
    cells = []
    for (task, variant, length), members in groups.items():
        predictions = [record["generated"] for record in members]
        found = metric.compute(predictions=predictions, references=_references(metric, members), **options)
        about = {"task": task, "variant": variant, "length": length, "n": len(members)}
        cells.append({**about, "result": finite(_plain(found))})
    return {"metric": metric.name, "samples": str(samples), "cells": cells}


def _references(metric: Any, members: Sequence[dict[str, Any]]) -> list[Any]:
    kinds = metric.features if isinstance(metric.features, list) else [metric.features]
    single = all(getattr(kind["references"], "dtype", None) == "string" for kind in kinds)
    if not single:
        return [record["references"] for record in members]
    several = next((record for record in members if len(record["references"]) != 1), None)
    if several is not None:
        raise UnsupportedError(
            f"The metric {metric.name!r} takes one reference, and the sample {several['key']} has "
            f"{len(several['references'])}. Choose a metric that takes several."
        )
    return [record["references"][0] for record in members]


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        return [(line["task"], record) for line in lines for record in line["records"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is no samples file of an evaluation: {error}") from error


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value
