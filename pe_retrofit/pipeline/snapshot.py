"""What a stage changed, and nothing else: the tensors that differ from the model as it was loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

KIND = "pe_retrofit snapshot"


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A SHA-256 of every tensor of a model's state."""
    return {name: _digest(tensor) for name, tensor in model.state_dict().items()}


def changed(state: Mapping[str, Tensor], before: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of ``state`` that ``before`` does not hold, each storage once.

    Args:
        state: of the model now, perhaps wrapped by peft.
        before: :func:`fingerprints` of the model as it was loaded.
    """
    found: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:  # tied weights
            continue
        seen.add(place)
        if before.get(plain_name(name)) != _digest(tensor):
            found[name] = tensor
    return found


def plain_name(name: str) -> str:
    """A name of a model wrapped by peft, as it was before."""
    name = name.removeprefix("base_model.model.")
    for part in (".base_layer", ".original_module", ".modules_to_save.default"):
        name = name.replace(part, "")
    return name


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a snapshot whole or not at all.

    Args:
        path: ``.safetensors``.
        tensors: from :func:`changed`.
        about: JSON values, kept in the file's header.

    Raises:
        OSError: the disk is full; nothing has changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        metadata = {"kind": KIND, "about": json.dumps(dict(about))}
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, fresh, metadata=metadata)
        with fresh.open("rb") as stream:
            os.fsync(stream.fileno())
        fresh.replace(path)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def about(path: Path) -> dict[str, Any]:
    """What :func:`save` was told.

    Raises:
        ConfigError: the file is missing, damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"The snapshot {path} cannot be read: {error}. Start the run over with --restart.") from error
    if metadata.get("kind") != KIND:
        raise ConfigError(f"{path} is no snapshot of a run. Start the run over with --restart.")
    found: dict[str, Any] = json.loads(metadata["about"])
    return found


def restore(model: nn.Module, path: Path) -> None:
    """Put the tensors of a snapshot into a model of the same structure, bit for bit.

    Raises:
        ConfigError: the file is damaged, or of a model of another structure.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"The snapshot {path} cannot be read: {error}. Start the run over with --restart.") from error
    own = model.state_dict(keep_vars=True)
    wrong = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    if wrong:
        raise ConfigError(
            f"The snapshot {path} is of another model: {len(wrong)} tensors such as {wrong[0]!r} have no place here. "
            "Was the model or a package changed since? Start the run over with --restart."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            place = own[name]
            place.data = tensor.to(place.device)  # keeps the snapshot's dtype


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    head = f"{data.dtype} {tuple(data.shape)}".encode()
    return hashlib.sha256(head + bytes(1) + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
