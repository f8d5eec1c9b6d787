"""Fold an adapter into its base: one model, patched, with the learned positions, that needs no peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..loading import Source, load_model, load_tokenizer
from .adapter_loading import adapter_folder, base_source, put_on
from .adapters import patches_of, prepare_base
from .saving import first_output, probe_tokens, save_model

TOLERANCES = {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}
"""How far merged logits may be from the adapter's, relative to the largest: merged weights are rounded to the dtype."""


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    code: bool = True,
    tell: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Merge an adapter, save the model, load it again, and compare its logits with the adapter's.

    Args:
        adapter: folder, or id of a repository on the Hub.
        out: folder, replaced as a whole.
        base: hub id, folder or GGUF file of the base model; by default the one that the adapter names.
        dtype: ``auto`` (as the base is stored), ``float32``, ``bfloat16`` or ``float16``; merged weights are rounded to
            it.
        revision: of the adapter on the Hub.
        trust_remote_code: run code that the base model brings along.
        code: see :func:`~pe_retrofit.hub.save_model`.
        tell: called with what goes on, in words.

    Returns:
        What was done, in JSON values.

    Raises:
        ConfigError, UnsupportedError: see :func:`~pe_retrofit.hub.load_adapter`; the base is quantised; or the merged
            model gives other logits. Nothing is written.
        OSError: the disk is full; nothing is kept.
    """
    folder = adapter_folder(adapter, revision)
    source = base_source(folder, trust_remote_code, base=base)
    tell(f"loading {source.name}")
    model, _ = load_model(source, dtype)
    _refuse_quantised(model, source)
    prepare_base(model, folder, patch=True)
    tell("putting the adapter on")
    wrapped = put_on(model, folder)
    ids = probe_tokens(wrapped)
    expected = first_output(wrapped, ids)
    tell("merging")
    merged = wrapped.merge_and_unload(safe_merge=True)
    kind = str(merged.dtype).removeprefix("torch.")
    largest = float(expected.abs().max())
    apart = float((first_output(merged, ids) - expected).abs().max()) / largest
    allowed = TOLERANCES.get(kind, TOLERANCES["float32"])
    if not apart <= allowed:
        raise UnsupportedError(
            f"The merged model gives other logits than the adapter (difference {apart:.3g} of the largest logit, where "
            f"{allowed:g} is allowed in {kind}), so nothing was written."
            + ("" if kind == "float32" else " Merge with dtype float32, which rounds less.")
        )
    tell("saving, and loading what was saved")
    tokenizer, missing = _tokenizer(folder, source)
    saved = save_model(merged, out, tokenizer, code=code, trust_remote_code=trust_remote_code)
    return {
        "adapter": str(adapter),
        "base": source.name,
        "dtype": kind,
        "patches": patches_of(merged),
        "merge_difference": apart,
        "tolerance": allowed,
        "tokenizer": "saved" if tokenizer is not None else f"none: {missing}",
        "saved": saved,
    }


def _refuse_quantised(model: Any, source: Source) -> None:
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise UnsupportedError(
            f"The base {source.name!r} is quantised, and an adapter folded into rounded weights is rounded with them. "
            "Name the model it was made from instead, which is merged in full: --base ORG/MODEL --dtype bfloat16 "
            "(base='ORG/MODEL', dtype='bfloat16'), and quantise the result."
        )


def _tokenizer(folder: Path, source: Source) -> tuple[Any, str]:
    """Of the adapter, or else of its base."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return load_tokenizer(Source(str(folder), {}))
    return load_tokenizer(source)
