"""Adapter-only folders say what the model under them was patched with: ``position_encoding.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import SCHEMA_VERSION
from ..errors import ConfigError, UnsupportedError
from ..patchers.family import find_host
from ..patching import STATE, apply_saved

FILE = "position_encoding.json"


def patches_of(model: Any) -> list[dict[str, Any]]:
    """What a model is patched with, in JSON values; empty without a patch."""
    applied = getattr(find_host(model).base, STATE, [])
    found: list[dict[str, Any]] = json.loads(
        json.dumps([{"encodings": a.entries, "layers": None if a.all_layers else a.layers} for a in applied])
    )
    return found


def write_patches(folder: Path, model: Any) -> None:
    """Write the file beside an adapter of ``model``; nothing where it is not patched."""
    if patches := patches_of(model):
        text = json.dumps({"schema_version": SCHEMA_VERSION, "patches": patches}, indent=1)
        (folder / FILE).write_text(text, encoding="utf-8")


def read_patches(folder: Path) -> list[dict[str, Any]]:
    """What :func:`write_patches` wrote; empty without a file.

    Raises:
        ConfigError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        patches = [{"encodings": list(p["encodings"]), "layers": p["layers"]} for p in found["patches"]]
        version = found["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}). Save the adapter anew.") from error
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema_version {version!r}; this version reads {SCHEMA_VERSION}.")
    return patches


def patch_for(model: Any, folder: Path) -> None:
    """Patch the base model of an adapter as it was when the adapter was trained.

    Args:
        model: not patched, or patched already with the same.
        folder: of the adapter.

    Raises:
        ConfigError: the file is damaged.
        UnsupportedError: the model is patched with something else.
    """
    wanted, there = read_patches(folder), patches_of(model)
    if not wanted or wanted == there:
        return
    if there:
        raise UnsupportedError(
            f"The adapter {str(folder)!r} was trained with {_said(wanted)}, and the model is patched with "
            f"{_said(there)}. Name the adapter's folder alone: its encoding is put on by itself."
        )
    apply_saved(model, wanted)


def _said(patches: list[dict[str, Any]]) -> str:
    where = ["all layers" if p["layers"] is None else f"layers {p['layers']}" for p in patches]
    return "; ".join(f"{json.dumps(p['encodings'])} on {w}" for p, w in zip(patches, where, strict=True))
