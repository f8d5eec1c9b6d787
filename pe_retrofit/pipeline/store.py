"""The folder of a run: whose it is, which steps are done, and what each came to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import finite
from ..errors import ConfigError
from .schema import Recipe

FILE = "run.json"
RECIPE = "recipe.yaml"
STEPS = "steps"
EVALUATE = "evaluate"
CHECKPOINTS = "finetune"
SUMMARY = "summary"
WRITTEN = (RECIPE, STEPS, EVALUATE, CHECKPOINTS, f"{SUMMARY}.json", f"{SUMMARY}.md")
"""What a run writes beside its ``run.json`` and the saved model."""

KIND = "pe_retrofit run"
SCHEMA_VERSION = 1


def write_json(path: Path, value: Any) -> None:
    """Write a file whole: a reader sees the old one or the new one.

    Raises:
        OSError: the disk is full, or the place cannot be written; the old file is as it was.
    """
    write_whole(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """As :func:`write_json`, for text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


class Store:
    """The folder of one run.

    Args:
        folder: of the run.
        recipe: what it runs.
        write: only the first of several processes does.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, write: bool = True) -> None:
        self.folder, self.recipe, self.write = folder, recipe, write
        self.steps: dict[str, dict[str, Any]] = {}

    def open(self) -> None:
        """Claim an empty folder, or go on with this run.

        Raises:
            ConfigError: the folder holds something else, or a run of another recipe; with what differs.
        """
        check_folder(self.folder, self.recipe)
        path = self.folder / FILE
        if path.exists():
            self.steps = read_run(path)["steps"]
        elif self.write:
            self._save()
            write_whole(self.folder / RECIPE, self.recipe.to_yaml())

    def done(self, step: str) -> dict[str, Any] | None:
        """What a finished step came to."""
        return self.steps[step]["result"] if step in self.steps else None

    def finish(self, step: str, result: Mapping[str, Any], seconds: float) -> None:
        """Mark a step as done."""
        self.steps[step] = {"seconds": round(seconds, 3), "finished": _now(), "result": finite(dict(result))}
        if self.write:
            write_json(self.folder / STEPS / f"{step}.json", self.steps[step])
            self._save()

    def snapshot(self, step: str) -> Path:
        """Where the changed weights after a step lie."""
        return self.folder / STEPS / f"{step}.safetensors"

    def _save(self) -> None:
        from ..evaluation.results import machine

        versions = machine(int(os.environ.get("WORLD_SIZE", "1")))["versions"]
        write_json(
            self.folder / FILE,
            {
                "kind": KIND,
                "schema_version": SCHEMA_VERSION,
                "name": self.recipe.name,
                "recipe": self.recipe.to_plain(),
                "versions": versions,
                "steps": self.steps,
            },
        )


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Whether a run may use this folder.

    Raises:
        ConfigError: it may not; with the reason and the way out.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder={str(folder)!r} is a file; name a folder.")
    path = folder / FILE
    if not path.exists():
        inside = [p.name for p in folder.iterdir() if not p.name.startswith(f".{FILE}")] if folder.is_dir() else []
        if inside:
            raise ConfigError(
                f"The folder {str(folder)!r} is not empty and holds no run (it has {', '.join(sorted(inside)[:3])}). "
                "Name another with run.folder=..."
            )
        return
    before = json.loads(json.dumps(read_run(path)["recipe"]))
    differing = differences(before, json.loads(json.dumps(recipe.to_plain())))
    if differing:
        raise ConfigError(
            f"The folder {str(folder)!r} holds a run of another recipe:"
            + "".join(f"\n  - {line}" for line in differing)
            + "\nName another with run.folder=..., or start over in it with --restart."
        )


def read_run(path: Path) -> dict[str, Any]:
    """A ``run.json``.

    Raises:
        ConfigError: it is none, or of a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Start over with --restart.") from error
    good = isinstance(value, dict) and value.get("kind") == KIND and isinstance(value.get("steps"), dict)
    if not good or not isinstance(value.get("recipe"), dict):
        raise ConfigError(f"{path} is no file of a run of `pe-retrofit train`. Name another folder with run.folder=...")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema_version {value.get('schema_version')!r}; this version reads 1.")
    return value


def restart(folder: Path, saved: str = "model") -> None:
    """Delete a run, and nothing but what runs write.

    Args:
        folder: of the run.
        saved: folder of the saved model within it.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / FILE).is_file():
        raise ConfigError(f"The folder {str(folder)!r} holds no run, so --restart will not delete what is in it.")
    for name in (*WRITTEN, saved):
        entry = folder / name
        if folder.resolve() not in entry.resolve().parents:
            continue  # saved elsewhere: the next run replaces it
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    (folder / FILE).unlink()  # last: what is left after an interruption is still a run


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """``finetune.max_steps: 100 became 200``, one line per value; the folder itself may differ."""
    if where == "run.folder" or before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict) and before.get("name") == after.get("name"):
        keys = list(dict.fromkeys([*before, *after]))
        found = []
        for key in keys:
            inner = f"{where}.{key}" if where else str(key)
            found += differences(before.get(key), after.get(key), inner)  # an option that is not set is not there
        return found
    return [f"{where}: {_brief(before)} became {_brief(after)}"]


def _brief(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
