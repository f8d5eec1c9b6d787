"""Adapter-only checkpoints: peft's files, and ``position_encoding.json``, which says what they belong to.

An adapter holds LoRA and the position parameters. It means something only on a base that is patched as it was in
training, so the marker beside it names the patches and the base (:class:`~pe_retrofit.hub.base_identity.BaseIdentity`),
and :func:`load_adapter` refuses anything else. Other loaders do not read the marker. peft's own
``PeftModel.from_pretrained`` and ``AutoPeftModel*`` refuse a base without the right patch all the same, because the
saved ``adapter_config.json`` asks for its stamp (:mod:`pe_retrofit.installing.stamp`): "Target modules
{'patched_by_pe_retrofit_...'} not found in the base model". Where all patches are RoPE scalings that transformers'
config can say, there is no stamp: such a base may be a plain model, which any tool loads with that config.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..folders import written_whole
from ..installing.applied import PATCHES
from ..installing.saved import apply_saved
from ..patchers.family import find_host
from .adapter_files import guard, write_weights
from .base_identity import BaseIdentity, differences, identify

FILE = "position_encoding.json"
VERSION = 2
"""Of the marker: 1 had no ``base``."""

MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Marker:
    """What ``position_encoding.json`` says.

    Attributes:
        patches: of the base, ``encodings`` and ``layers`` each; empty for an adapter of an unpatched model.
        base: the base model; None in markers of schema version 1.
        native: the config values the patches amount to, where transformers' config says it all; else None.
    """

    patches: list[dict[str, Any]]
    base: BaseIdentity | None = None
    native: dict[str, Any] | None = None


def save_adapter(model: Any, folder: str | Path, tokenizer: Any = None) -> Path:
    """Save an adapter, the position parameters and what they belong to; whole or not at all.

    Args:
        model: a ``PeftModel`` with a LoRA adapter.
        folder: replaced as a whole.
        tokenizer: saved beside it, if given.

    Returns:
        The folder.

    Raises:
        UnsupportedError: there is no adapter, or it would not hold the model's learned positions.
        OSError: the disk is full; nothing has changed.
    """
    from safetensors import SafetensorError

    target = Path(folder).expanduser().absolute()
    try:
        with written_whole(target) as work:
            write_adapter(model, work)
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
    except SafetensorError as error:
        raise OSError(f"The adapter cannot be written to {target}: {error}") from error
    return target


def write_adapter(model: Any, work: Path) -> None:
    """The files of :func:`save_adapter`, without the tokenizer, into a folder that exists."""
    if not hasattr(model, "peft_config"):
        raise UnsupportedError(
            f"{type(model).__name__} has no adapter; save it whole with save_pretrained, or add one with "
            "pe_retrofit.training.add_lora."
        )
    patches = patches_of(model)
    write_weights(model, work, owns_positions=not _from_patched_files(model))
    if patches and native_of(model) is None:
        guard(model, work, patches)
    write_patches(work, model)


def patches_of(model: Any) -> list[dict[str, Any]]:
    """What a model is patched with, in JSON values; empty without a patch."""
    applied = getattr(find_host(model).base, PATCHES, [])
    found: list[dict[str, Any]] = json.loads(
        json.dumps([{"encodings": a.entries, "layers": None if a.all_layers else a.layers} for a in applied])
    )
    return found


def native_of(model: Any) -> dict[str, Any] | None:
    """The config values that say all of a model's patches; None without a patch, or where they cannot."""
    host = find_host(model)
    applied = getattr(host.base, PATCHES, [])
    if not applied or not all(a.native for a in applied):
        return None
    return _plain(host)


def write_patches(folder: Path, model: Any) -> None:
    """Write the marker beside an adapter of ``model``."""
    written = {
        "schema_version": VERSION,
        "patches": patches_of(model),
        "native": native_of(model),
        "base": identify(model).to_plain(),
    }
    (folder / FILE).write_text(json.dumps(written, indent=1), encoding="utf-8")


def read_marker(folder: Path) -> Marker:
    """What :func:`write_patches` wrote; nothing is patched without a file.

    Raises:
        ConfigError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        return Marker([])
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        patches = [{"encodings": list(p["encodings"]), "layers": p["layers"]} for p in found["patches"]]
        version = found["schema_version"]
        if isinstance(version, int) and version > VERSION:
            raise UnsupportedError(
                f"{path} has schema_version {version}, and this pe_retrofit reads up to {VERSION}. Upgrade it: pip "
                "install -U pe_retrofit."
            )
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"schema_version is {version!r}")
        base = None if version == 1 else BaseIdentity.from_plain(found["base"])
        native = None if version == 1 or found["native"] is None else dict(found["native"])
    except UnsupportedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}). Save the adapter anew.") from error
    return Marker(patches, base, native)


def prepare_base(model: Any, folder: Path, *, patch: bool) -> Marker:
    """Make sure that a model is what an adapter was trained on.

    Args:
        model: not patched, or patched already with the same.
        folder: of the adapter.
        patch: patch an unpatched one.

    Returns:
        What the adapter's marker says.

    Raises:
        ConfigError: the marker is damaged.
        UnsupportedError: the model is not patched and may not be, is patched with something else, or is another model.
    """
    marker, there = read_marker(folder), patches_of(model)
    scaled = (
        marker.native is not None and not there and marker.native == json.loads(json.dumps(_plain(find_host(model))))
    )
    if marker.base is not None and (lines := differences(marker.base, model, scaled=scaled)):
        told = "".join(f"\n  - {line}" for line in lines)
        raise UnsupportedError(
            f"The adapter {folder.name!r} belongs to {_named(marker.base)}, and the model is another:{told}\n"
            "Load that base, or leave it out: load_adapter loads it by the name in the adapter's config."
        )
    if not marker.patches or marker.patches == there or scaled:  # scaled: in the config of a plain model
        return marker
    if there:
        raise UnsupportedError(
            f"The adapter {folder.name!r} was trained with {_said(marker.patches)}, and the model is patched with "
            f"{_said(there)}. Name the adapter's folder alone: its encoding is put on by itself."
        )
    if not patch:
        raise UnsupportedError(
            f"The adapter {folder.name!r} was trained with {_said(marker.patches)}, and the model is not patched. Let "
            "it be patched with load_adapter(..., patch=True), or leave the base out."
        )
    apply_saved(model, marker.patches)
    return marker


def _plain(host: Any) -> dict[str, Any]:
    return {key: getattr(host.config, key, None) for key in ("rope_parameters", "max_position_embeddings")}


def _from_patched_files(model: Any) -> bool:
    """Whether the base was loaded from a patched checkpoint, which holds its position parameters."""
    from .modeling import MarkedModel

    return any(isinstance(module, MarkedModel) for module in model.modules())


def _named(base: BaseIdentity) -> str:
    return f"{base.name or 'a model'}{f'@{base.revision}' if base.revision else ''} ({base.model_type})"


def _said(patches: list[dict[str, Any]]) -> str:
    where = ["all layers" if p["layers"] is None else f"layers {p['layers']}" for p in patches]
    return "; ".join(f"{json.dumps(p['encodings'])} on {w}" for p, w in zip(patches, where, strict=True))
