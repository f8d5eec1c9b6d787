"""Which models can stream: what positions mean to them must depend on distances alone."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..installing import Applied
from ..patchers.family import Host, find_host
from ..patchers.table import ReplacedTable
from ..patching import STATE
from ..registry import NATIVE, config_from_dict, get_encoding
from ..sites import LocalInput

SINKS = "lm_infinite"
"""The encoding for which the first tokens have to be kept."""

_GROWING = ("dynamic", "longrope")
"""Rotations of transformers that depend on the length of the whole text."""

_KINDS = ("full_attention", "sliding_attention")


def patches_of(host: Host) -> list[Applied]:
    """The patches on a model."""
    return list(getattr(host.base, STATE, []))


def require_decoder(model: Any) -> Host:
    """The host of a causal model whose layers all keep keys and values.

    Raises:
        UnsupportedError: an encoder, cross attention, or layers of another kind.
    """
    host = find_host(model)
    name = type(host.base).__name__
    if not host.causal():
        raise UnsupportedError(
            f"{name} attends to both sides, so there is no past to carry from segment to segment. Stream a decoder, "
            "such as a model of the Llama or GPT-NeoX family."
        )
    if getattr(host.config, "add_cross_attention", False):
        raise UnsupportedError(
            f"{name} also attends to an encoder (add_cross_attention=True), whose cache is of another kind. Load it "
            "with add_cross_attention=False to stream."
        )
    kinds = sorted(set(getattr(host.config, "layer_types", None) or ()) - set(_KINDS))
    if kinds or getattr(host.config, "attention_chunk_size", None) is not None:
        raise UnsupportedError(
            f"{name} has layers of type {kinds or 'chunked_attention'}; only {' and '.join(_KINDS)} can keep the last "
            "tokens. Use transformers' own cache for this model."
        )
    return host


def require_relative(model: Any) -> Host:
    """The host of a model in which adding a constant to all positions changes nothing.

    Only then do the keys and values of earlier tokens stay right while positions grow past any trained length.

    Raises:
        UnsupportedError: with the encoding that is not relative, and what to use instead.
    """
    host = require_decoder(model)
    _check_native(host)
    for applied in patches_of(host):
        for entry in applied.entries:
            if entry["name"] in NATIVE:
                continue
            kind = get_encoding(entry["name"])
            if entry["name"] == SINKS:
                raise UnsupportedError(
                    f"{SINKS!r} attends to the first tokens of the text, which a segment cache forgets. Use "
                    "pe_retrofit.streaming.SinkCache(model), which keeps them."
                )
            adds = kind.site == "input" and not issubclass(kind, LocalInput)
            if adds or not kind.is_relative(config_from_dict(entry)):
                why = "adds positions to the embeddings" if adds else "depends on absolute positions"
                raise UnsupportedError(
                    f"{entry['name']!r} {why}, which leave every trained range as the text goes on, so keys and values "
                    "of earlier segments cannot be reused. Patch with a relative encoding: the native rotation, "
                    "'yarn', 'ntk', 'linear', 'alibi', 't5' or 'nope'."
                )
    return host


def require_sinks(model: Any) -> tuple[Host, Any]:
    """The host of a model patched with ``lm_infinite`` in all layers, and the encoding of one of them.

    Raises:
        UnsupportedError: it is not, or has sliding-window layers of its own.
    """
    host = require_decoder(model)
    found = [a for a in patches_of(host) if any(e["name"] == SINKS for e in a.entries)]
    covered = {layer for applied in found for layer in applied.layers}
    if covered != set(range(len(host.layers))):
        where = f"only in layers {sorted(covered)}" if covered else "in no layer"
        raise UnsupportedError(
            f"SinkCache keeps the first and the last tokens only, which is exact for {SINKS!r} in all layers; this "
            f"model has it {where}. Call patch_model(model, {SINKS!r}) first, or use SegmentCache(model, memory=N)."
        )
    if windows(host):
        raise UnsupportedError(
            f"{type(host.base).__name__} has sliding-window layers, which do not see the first tokens that SinkCache "
            "keeps. Use SegmentCache with a relative encoding."
        )
    entries = [e for a in patches_of(host) for e in a.entries if e["name"] not in NATIVE]
    inputs = [e["name"] for e in entries if get_encoding(e["name"]).site == "input"]
    if inputs:
        raise UnsupportedError(
            f"{inputs[0]!r} acts on the embeddings, by what SinkCache does not keep. Patch with {SINKS!r} alone."
        )
    options = [e for e in entries if e["name"] == SINKS]
    if any(o != options[0] for o in options):
        raise UnsupportedError(f"The layers have {SINKS!r} with different options; patch all of them with the same.")
    installed: Any = host.attentions[0]
    turns = [getattr(m, "encoding", None) for m in installed.position_encoding.values()]
    return host, next(e for e in turns if e is not None and e.config.name == SINKS)


def windows(host: Host) -> list[int | None]:
    """The sliding window of each layer, None where a layer attends to all; empty when no layer has one."""
    from transformers import DynamicCache

    found = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=host.config).layers]
    return found if any(w is not None for w in found) else []


def require_count(name: str, value: Any, low: int) -> int:
    """A whole number of tokens.

    Raises:
        ConfigError: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number of tokens, at least {low}.")
    return value


def _check_native(host: Host) -> None:
    name = type(host.base).__name__
    if host.family.table is not None:
        table = host.table
        silent = isinstance(table, ReplacedTable) and not table.keeps_rows
        if not silent or hasattr(table, "position_encoding"):
            raise UnsupportedError(
                f"{name} adds a table of positions to the embeddings, which ends, and keys and values of earlier "
                "segments hold it. Replace it by a relative encoding first: patch_model(model, 'alibi') or 't5'."
            )
        return
    rotating = set(range(len(host.layers)))
    for applied in patches_of(host):
        names = {e["name"] for e in applied.entries}
        if not names & set(NATIVE) and not any(get_encoding(n).site == "rotation" and n != "nope" for n in names):
            rotating -= set(applied.layers)
    for layer in sorted(rotating):
        rope = host.rope_of(layer)
        if rope.get("rope_type") in _GROWING:
            raise UnsupportedError(
                f"The rotation of {name} (rope_type={rope['rope_type']!r}) depends on the length of the whole text, so "
                "keys of earlier segments no longer fit. Patch with 'yarn', 'ntk' or 'linear', or reload with plain "
                "rope_parameters."
            )
        if rope.get("llama_4_scaling_beta") or getattr(host.config, "attn_temperature_tuning", False):
            raise UnsupportedError(
                f"{name} scales its queries by their absolute position, so that streaming past its trained length "
                "changes what it computes. Turn it off in the config (attn_temperature_tuning=False, no "
                "llama_4_scaling_beta) to stream."
            )
