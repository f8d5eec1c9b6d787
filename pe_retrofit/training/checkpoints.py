"""Checkpoints that are whole or are not there: written beside, listed in a manifest, renamed at the end.

A checkpoint is a folder ``checkpoint-<step>`` whose ``manifest.json`` names every file with its size and SHA-256. It is
the last file written, and the folder gets its name after that, so a killed run leaves either all of it or a folder that
nothing ever reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MANIFEST = "manifest.json"
WRITING = ".writing"
"""Folder inside a run's folder where a checkpoint is written."""

RUN = "run.json"
VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_HARMLESS = {"keep", "report_to"}


def seal(folder: Path) -> None:
    """Bring all files of a folder to the disk, and then write its manifest.

    Raises:
        OSError: the disk is full.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path, sync=True)}
    write_json(folder / MANIFEST, {"version": VERSION, "files": files})


def publish(work: Path, target: Path) -> None:
    """Give a sealed folder its name. What had the name (a broken checkpoint) goes."""
    if target.exists():
        aside = work.parent / f"{target.name}.replaced"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    work.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(work.parent, ignore_errors=True)


def problems_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None when it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        version = manifest["version"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__})"
    if version != VERSION:
        return f"its {MANIFEST} is of version {version!r}, and this version of pe_retrofit reads {VERSION}"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != sha256:
            return f"{name} has changed since it was written"
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - set(files) - {MANIFEST}
    return f"{sorted(extra)[0]} is not in its {MANIFEST}" if extra else None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of what is named like a checkpoint, in the order of steps."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def last_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The last whole checkpoint of a run, and a sentence for each later one that is not."""
    skipped: list[str] = []
    for _, path in reversed(checkpoints(folder)):
        problem = problems_of(path)
        if problem is None:
            return path, skipped
        skipped.append(f"{path.name} is skipped: {problem}")
    return None, skipped


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints; each loses its manifest first."""
    for _, path in checkpoints(folder)[:-keep]:
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def settle_run(folder: Path, about: dict[str, Any], *, resume: bool) -> None:
    """Note what a run is, or see that it is the same as before.

    Args:
        folder: of the run.
        about: sections of plain JSON values.
        resume: whether an existing run may go on.

    Raises:
        ConfigError: the folder holds a run that differs, with every difference named; or one that must not go on.
    """
    path = folder / RUN
    if not path.exists():
        if checkpoints(folder):
            raise ConfigError(f"{str(folder)!r} holds checkpoints and no {RUN}, so they are of an unknown run. Choose "
                              "another folder.")  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        return
    if not resume:
        raise ConfigError(f"{str(folder)!r} holds a run already, and resume=False was said. Choose another folder.")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is not valid JSON ({error}). Choose another folder.") from error
    lines = differences(before, json.loads(json.dumps(about)))
    if lines:
        listed = "".join(f"\n  - {line}" for line in lines)
        raise ConfigError(
            f"The run in {str(folder)!r} was started with other options, so it cannot go on with these. Use the same "
            f"ones or another folder. What differs:{listed}"
        )


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """``section.key: old became new``, one line for each value that differs and matters."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [k for k in dict.fromkeys([*before, *now]) if k not in _HARMLESS]
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if before == now else [f"{name}: {json.dumps(before)[:200]} became {json.dumps(now)[:200]}"]


def write_json(path: Path, value: Any) -> None:
    """Write beside, bring to the disk, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _digest(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
        if sync:
            os.fsync(stream.fileno())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
