"""Write a folder whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError


def check_target(out: Path, overwrite: bool, source: Path | None) -> Path:
    """The absolute target, if it may be written.

    Args:
        out: what the user asked for.
        overwrite: a saved model there may be replaced.
        source: folder of the model being read, or None.

    Raises:
        ConfigError: with what is in the way.
    """
    target = out.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file; name a folder.")
    if source is not None and (target == source.resolve() or target in source.resolve().parents):
        raise ConfigError(f"--out {str(out)!r} holds the model being read; name another folder.")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise ConfigError(f"--out {str(out)!r} is not empty; name another folder, or replace it with --overwrite.")
        if not (target / "config.json").is_file():
            raise ConfigError(
                f"--out {str(out)!r} is not empty and holds no config.json, so it is no saved model, and --overwrite "
                "would delete what is in it. Remove it yourself, or name another folder."
            )
    return target


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place at the end; after an error nothing has changed.

    Raises:
        OSError: the disk is full, or the place cannot be written; the old folder is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".writing", dir=target.parent))
    try:
        yield work
        _open_up(work)
        _swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_up(work: Path) -> None:
    """Usual permissions: mkdtemp and safetensors let only the owner in."""
    umask = os.umask(0)
    os.umask(umask)
    work.chmod(0o777 & ~umask)
    for path in work.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _swap(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``; what was there is deleted only after that worked."""
    if not target.exists():
        work.rename(target)
        return
    old = work.with_suffix(".old")
    target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
