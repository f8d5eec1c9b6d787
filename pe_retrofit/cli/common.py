"""What the verbs share: their errors, and keeping stdout clean for ``--json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import typer


class CommandError(Exception):
    """Something outside the user's input went wrong; the message is shown without a traceback, exit code 1."""


def print_json(value: Any) -> None:
    """JSON on stdout; numbers that JSON does not know become null."""
    from ..config import finite

    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False))


@contextmanager
def clean_stdout(wanted: bool) -> Iterator[None]:
    """While libraries work: what they print goes to stderr, so that stdout holds the JSON alone."""
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def name_files(written: Sequence[Path]) -> str:
    """Files that were written, in words; pictures are counted."""
    files = [str(path) for path in written if path.suffix != ".png"]
    pictures = [path for path in written if path.suffix == ".png"]
    return ", ".join(files) + (f", {len(pictures)} pictures in {pictures[0].parent}" if pictures else "")


def say(title: str, text: str, style: str = "dim") -> None:
    """A line on stdout: a title, and what there is to say; never broken, so that paths can be copied."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text.assemble((f"{title:<11}", style), text), soft_wrap=True)
