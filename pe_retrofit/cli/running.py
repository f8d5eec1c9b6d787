"""What long-running verbs share: the progress bar on stderr, and text from a file or the Hub."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float, float], None]]:
    """A bar with the time left; only the first of several processes draws it."""
    import os

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    shown = os.environ.get("RANK", "0") == "0"
    # the stream is named, because loading silences whatever sys.stderr is at that moment
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not shown) as progress:
        task = progress.add_task("starting", total=None)

        def report(what: str, done: float, total: float) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield report


def source_text(name: str) -> Any:
    """The text a user names."""
    from ..sources import load_text

    return load_text(name)
