"""Writing a card: pictures beside it, an existing one kept, every file whole."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .checking import read_bytes, read_text
from .metadata import MOST_BYTES, README

PREFIX = "evaluation-"
PNG = b"\x89PNG\r\n\x1a\n"
MOST_PICTURES = 16
MOST_PICTURE_BYTES = 8 * 2**20
_MARK = re.compile(r"<!-- pe-retrofit card, sha256 ([0-9a-f]{64}|unsigned) -->")
UNSIGNED = "<!-- pe-retrofit card, sha256 unsigned -->"
"""Stands in the template; :func:`sign` fills it in."""


def sign(card: Any) -> None:
    """Write into a card what it hashes to, so that a later call knows it as its own, unless somebody edited it."""
    card.text = card.text.replace(UNSIGNED, f"<!-- pe-retrofit card, sha256 {_digest(str(card))} -->")


def _digest(text: str) -> str:
    return hashlib.sha256(_MARK.sub(UNSIGNED, text.replace("\r\n", "\n")).encode()).hexdigest()


def is_ours(text: str) -> bool:
    """Whether a README was written here and left as it was, or is the form that peft writes and nobody filled in."""
    mark = _MARK.search(text)
    return (mark is not None and mark[1] == _digest(text)) or _is_blank_form(text)


def _is_blank_form(text: str) -> bool:
    from huggingface_hub import ModelCard, ModelCardData

    blank = str(ModelCard.from_template(ModelCardData(library_name="peft")).text)
    body = re.sub(r"\A\s*---\n.*?\n---\n", "", text.replace("\r\n", "\n"), count=1, flags=re.DOTALL)
    body = re.sub(r"### Framework versions\s+- PEFT [\w.]+\s*\Z", "", body)
    return body.split() == blank.split()


def check_target(folder: Path, overwrite: bool) -> None:
    """Whether the README may be written.

    Raises:
        ConfigError: there is one that was not written here, or was edited since.
    """
    path = folder / README
    if overwrite or not path.exists():
        return
    if not is_ours(read_text(path, MOST_BYTES)):
        raise ConfigError(
            f"{path} was not written by pe-retrofit, or was edited since. Replace it with --overwrite "
            "(overwrite=True), or keep what you need of it elsewhere first."
        )


def choose_pictures(found: list[Path]) -> tuple[dict[str, Path], int]:
    """Names within the folder of the model and where the pictures lie now, and how many were too many.

    Raises:
        ConfigError: one is no PNG, or too large.
    """
    chosen = {}
    for path in found[:MOST_PICTURES]:
        if not read_bytes(path, MOST_PICTURE_BYTES).startswith(PNG):
            raise ConfigError(f"{path} is no PNG picture. Remove it, or evaluate anew.")
        chosen[PREFIX + re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name)] = path
    return chosen, max(len(found) - MOST_PICTURES, 0)


def write(folder: Path, text: str, pictures: Mapping[str, Path]) -> list[Path]:
    """Write the pictures, then the README that shows them; each file appears whole.

    Raises:
        OSError: the disk is full, or the place cannot be written; what was there is as it was.
    """
    written = []
    for name, source in pictures.items():
        if source.resolve() != (folder / name).resolve():
            _whole(folder / name, read_bytes(source, MOST_PICTURE_BYTES))
        written.append(folder / name)
    _whole(folder / README, text.encode("utf-8"))
    return [folder / README, *written]


def _whole(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
