"""``training.jsonl``: one line per logged step, the same after an interruption as without one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ..config import finite

FILE = "training.jsonl"


class Journal:
    """The lines of a run.

    Args:
        folder: of the run.
        writes: whether this process writes them.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.path = folder / FILE
        self.writes = writes
        self.rows: list[dict[str, Any]] = []
        self._seconds, self._started = 0.0, time.monotonic()

    def rewind(self, step: int) -> None:
        """Forget what came after a step, as when training goes on from it."""
        kept = [row for row in _read(self.path) if row.get("step", 0) <= step] if step else []
        self.rows = kept
        self._seconds = max((float(row.get("seconds") or 0) for row in kept), default=0.0)
        self._started = time.monotonic()
        if self.writes:
            beside = self.path.with_name(f".{FILE}.{os.getpid()}.tmp")
            with beside.open("w", encoding="utf-8") as stream:
                stream.writelines(_line(row) for row in kept)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.path)

    def start(self) -> None:
        """Begin to count time."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time trained, over all sessions."""
        return self._seconds + time.monotonic() - self._started

    def add(self, row: dict[str, Any]) -> None:
        """Append a line, in one write."""
        row = {**row, "seconds": round(self.seconds, 3)}
        self.rows.append(row)
        if self.writes:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, _line(row).encode())
            finally:
                os.close(handle)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite(row)) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a kill may have cut the last one."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
