"""The folder of a run: whose it is, and that what lies in it answers the questions of this run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .log import SampleLog
from .runner import Plan
from .setting import Setting
from .task import Task

MODEL, STOCK = "model", "stock"
SAMPLES = "samples"
RUN = "run.json"

DECISIVE = ("name", "revision", "class", "dtype", "encoding", "adapter", "weights")
"""What makes a model the same model."""


def claim(
    folder: Path, model: Mapping[str, Any], against: str | None, setting: Setting, tasks: Sequence[Task], *, write: bool
) -> None:
    """Mark a folder as this run's, or refuse one that holds another's.

    Lengths, samples, depths and tasks may grow from one call to the next; what changes an answer may not.

    Args:
        folder: of the run.
        model: as the results describe it.
        against: name of the stock model.
        setting, tasks: of the run.
        write: only the first of several processes does.

    Raises:
        ConfigError: with all that differs.
    """
    mine: dict[str, Any] = {
        "model": {key: model.get(key) for key in DECISIVE},
        "against": against,
        "seed": setting.seed,
        "text": setting.text.sha256,
        "generate": setting.generate,
        "tasks": {task.name: [task.version, task.describe(setting)["options"]] for task in tasks},
    }
    mine = json.loads(json.dumps(mine))
    path = folder / RUN
    if path.exists():
        mine["tasks"] = {**_agreed(path, mine), **mine["tasks"]}
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".json.new")
        fresh.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)


def _agreed(path: Path, mine: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks a folder holds already, if it is of the same run."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}). Use another folder.") from error
    wrong = [key for key in ("against", "seed", "text", "generate") if before.get(key) != mine[key]]
    then = before.get("model", {})
    wrong += [f"model ({key})" for key in DECISIVE if then.get(key) != mine["model"][key]]
    tasks: dict[str, Any] = before.get("tasks", {})
    wrong += [
        f"options or version of {name}" for name, value in mine["tasks"].items() if tasks.get(name, value) != value
    ]
    if wrong:
        raise ConfigError(
            f"The folder {str(path.parent)!r} holds another run: {', '.join(wrong)} differ. Give another --out, or "
            "delete the folder."
        )
    return tasks


def check_samples(plans: Sequence[Plan], log: SampleLog) -> None:
    """Refuse records that answer other questions.

    Raises:
        ConfigError: with the first such item.
    """
    for name, item in ((plan.task.name, item) for plan in plans for item in plan.items):
        records = log.done.get((name, item.key), [])
        if any(record["sha"] != item.sha for record in records):
            raise ConfigError(
                f"The samples of {name!r} in {log.path} are not those of this run (item {item.key}): the "
                "tokenizer or the text has changed. Use another folder."
            )
