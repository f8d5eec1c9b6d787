"""The results file of a run: everything needed to read, compare and repeat it, in one JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..config import finite
from ..errors import ConfigError
from ..status import status
from .cells import by_length, cells
from .integrity import complaints, integrity
from .judging import RULES, effective_length, judge
from .log import SampleLog
from .runner import Outcome
from .setting import Setting
from .subject import Subject
from .task import Record, Task

SCHEMA_VERSION = 1
FILE = "results.json"
KIND = "evaluation"


def about(subject: Subject, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model, for the results."""
    state = status(subject.model)
    config = subject.host.config
    return {
        "name": subject.name,
        **(source or {}),
        "class": type(subject.model).__name__,
        "model_type": config.model_type,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "context_length": subject.trained_length,
        "dtype": str(subject.host.base.dtype).removeprefix("torch."),
        "attention": state.attention,
        "encoding": [
            {"encodings": patch.options, "layers": patch.layers, "kernel": patch.kernel} for patch in state.patches
        ],
        "native_encoding": _native(subject),
        "adapter": bool(getattr(subject.model, "peft_config", None)),
        "tokenizer": {"class": type(subject.tokenizer).__name__, "vocabulary": len(subject.tokenizer)},
        "device": subject.device.type,
        "weights": subject.weights,
        "integrity": integrity(subject),
    }


def _native(subject: Subject) -> Any:
    """The encoding in the model's own config."""
    if not subject.host.family.rotary:
        return "table of positions"
    sets = subject.host.rope_sets
    return sets.get(None, sets)


def machine(world: int) -> dict[str, Any]:
    """Where and with what it ran."""
    names = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"pe_retrofit": __version__, "python": platform.python_version(), **installed},
        "device": {"threads": torch.get_num_threads(), "machine": platform.machine(), "processes": world},
    }


def task_results(
    task: Task,
    setting: Setting,
    outcome: Outcome,
    log: SampleLog,
    stock: tuple[Outcome, SampleLog] | None,
    trained: int,
) -> dict[str, Any]:
    """One task's part of the file."""
    mine = _records(task, outcome, log)
    others = None if stock is None else _records(task, stock[0], stock[1])
    lengths = sorted({record["actual_length"] for record in mine})
    found: dict[str, Any] = {
        "text": setting.to_dict()["text"],
        **task.describe(setting),
        "target_lengths": list(setting.lengths),
        "actual_lengths": [lengths[0], lengths[-1]] if lengths else [],
        "truncated": 0,  # by construction: a prompt that does not fit is refused, never cut
        "n": len(mine),
        "cells": cells(mine, others, task.metric),
        "by_length": by_length(mine, others, task.metric),
        **_status(outcome, mine),
        **_cost(outcome),
    }
    if stock is not None:
        found["stock_run"] = {**_status(stock[0], others or []), **_cost(stock[0])}
    if task.metric == "score" and task.unit == "tokens":
        rows = [row for row in found["by_length"] if row["variant"] == ""] or found["by_length"]
        if others is None:
            reference = rows
        else:
            reference = [{"length": row["length"], **row["stock"]} for row in rows if row["stock"]]
        value, reason = effective_length(rows, reference, trained)
        found["effective_length"] = value
        if reason:
            found["effective_length_reason"] = reason
    return found


def assemble(
    setting: Setting,
    model: Mapping[str, Any],
    stock: Mapping[str, Any] | None,
    tasks: Mapping[str, Any],
    *,
    trained: int,
    state: str,
    world: int,
) -> dict[str, Any]:
    """The whole file."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "status": state,
        "date": now,
        "model": {**model, "trained_length": trained},
        "stock": stock,
        "seed": setting.seed,
        "setting": setting.to_dict(),
        **machine(world),
        "intervals": "95 %, percentile bootstrap of 2000 resamples; paired where two models are compared",
        "rules": RULES,
        "tasks": dict(tasks),
    }
    broken = complaints(model.get("integrity", {}))
    if stock is not None:
        verdict = judge(tasks, trained)
        results["verdict"] = {**verdict, "words": [*broken, *verdict["words"]], "broken": bool(broken)}
    elif broken:
        results["verdict"] = {"words": broken, "broken": True}
    return results


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``results.json``; a reader sees the old file or the new one, never half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / (FILE + ".new")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(finite(results), indent=1, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    path = folder / FILE
    fresh.replace(path)
    return path


def read(path: str | Path) -> dict[str, Any]:
    """The results of a run, from its folder or file.

    Raises:
        ConfigError: there is none, it is no results file of an evaluation, or of a newer version.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} is no results folder of `pe-retrofit eval`: {error}") from error
    if not isinstance(results, dict) or results.get("kind") != KIND or not isinstance(results.get("tasks"), dict):
        raise ConfigError(f"{file} is not a results file of `pe-retrofit eval`.")
    version = results.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ConfigError(f"{file} has schema_version {version!r}; this pe_retrofit reads 1 to {SCHEMA_VERSION}.")
    return results


def _records(task: Task, outcome: Outcome, log: SampleLog) -> list[Record]:
    return [record for key in outcome.order for record in log.done.get((task.name, key), [])]


def _status(outcome: Outcome, records: Sequence[Record]) -> dict[str, Any]:
    if not outcome.problems:
        return {"status": "ok"} if records else {"status": "skipped", "reason": "nothing was run"}
    kind = "error" if outcome.failed else "skipped"
    reasons = {str(length): reason for length, reason in sorted(outcome.problems.items())}
    first = next(iter(reasons.values()))
    return {"status": kind if outcome.failed or not records else "ok", "reason": first, "problems": reasons}


def _cost(outcome: Outcome) -> dict[str, Any]:
    seconds = round(outcome.seconds, 3)
    speed = outcome.tokens / seconds if outcome.tokens and seconds else None
    return {
        "seconds": seconds,
        "tokens_read": outcome.tokens,
        "tokens_per_second": None if speed is None else round(speed, 1),
        "peak_memory_bytes": outcome.peak_bytes,
    }
