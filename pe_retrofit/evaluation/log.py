"""The records of a run on disk, one JSON line each, so that nothing finished is ever lost or done twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError
from .task import Record


class SampleLog:
    """Records by task, in memory and, when there is a folder, in ``<role>.jsonl`` as they are made.

    With several processes each writes a file of its own, ``<role>.rank<i>.jsonl``; :meth:`merge` makes them one, in the
    order of the plan, so that the file is the same however many processes there were.

    A line that a kill cut short is dropped: its item runs again.
    """

    def __init__(self, folder: Path | None, role: str, rank: int = 0, world: int = 1) -> None:
        self.folder, self.role, self.rank, self.world = folder, role, rank, world
        self.done: dict[tuple[str, str], list[Record]] = {}
        self._stream: IO[str] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self._files():
                self._read(path)

    @property
    def path(self) -> Path | None:
        """The merged file."""
        return None if self.folder is None else self.folder / f"{self.role}.jsonl"

    def add(self, task: str, key: str, records: Sequence[Record]) -> None:
        """Keep the records of an item; on disk when this returns."""
        self.done[task, key] = list(records)
        if self.folder is None:
            return
        if self._stream is None:
            name = f"{self.role}.jsonl" if self.world == 1 else f"{self.role}.rank{self.rank}.jsonl"
            path = self.folder / name
            _drop_torn_line(path)
            self._stream = path.open("a", encoding="utf-8")
        self._stream.write(_line(task, key, records))
        self._stream.flush()

    def close(self) -> None:
        """Give the file back."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def reread(self) -> None:
        """Take in what other processes wrote."""
        for path in self._files():
            self._read(path)

    def merge(self, order: Iterable[tuple[str, str]]) -> None:
        """Write everything into one file, in this order (what is not in it comes last), and drop the parts."""
        if self.folder is None or self.path is None:
            return
        self.close()
        keys = list(dict.fromkeys([*order, *sorted(self.done)]))
        fresh = self.path.with_suffix(".jsonl.new")
        with fresh.open("w", encoding="utf-8") as stream:
            for task, key in keys:
                if (task, key) in self.done:
                    stream.write(_line(task, key, self.done[task, key]))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)
        for path in self._files():
            if path != self.path:
                path.unlink()

    def _files(self) -> list[Path]:
        assert self.folder is not None
        return sorted([*self.folder.glob(f"{self.role}.jsonl"), *self.folder.glob(f"{self.role}.rank*.jsonl")])

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end was cut short
            try:
                entry: Any = json.loads(line)
                self.done[entry["task"], entry["key"]] = list(entry["records"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"Line {number} of {path} is not a record of an evaluation ({error}). Use another folder, or "
                    "delete the file to start over."
                ) from error


def _line(task: str, key: str, records: Sequence[Record]) -> str:
    return json.dumps({"task": task, "key": key, "records": list(records)}, ensure_ascii=False) + "\n"


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as stream:
            stream.truncate(whole)
