"""Write a folder whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        _settle(work)
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


def _settle(work: Path) -> None:
    """Bring the files to the disk, so that a power cut leaves no empty file under the final name."""
    for path in work.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _swap(work: Path, target: Path) -> None:
    """Put ``work`` in the place of ``target`` in one step, then delete what was there.

    A kill at any moment leaves the old folder or the new one under the name: Linux and macOS can exchange two names.
    Where a file system cannot, two renames follow each other, and a kill just between them leaves the old folder beside
    the name, as ``.NAME.*.old``.
    """
    if not target.exists():
        work.rename(target)
    elif _exchange(work, target):
        shutil.rmtree(work, ignore_errors=True)
    else:
        old = work.with_suffix(".old")
        target.rename(old)
        try:
            work.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    swap = 2  # RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        return bool(libc.renameat2(here, names[0], here, names[1], swap) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(*names, swap) == 0)
    return False
