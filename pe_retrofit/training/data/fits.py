"""Whether a model can be trained on rows like these; where words are not enough, it is tried on a few tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, UnsupportedError
from ...patchers.family import Host
from .options import DataOptions

TRIED = 8
"""Tokens of each of the two halves a model is tried on."""

CLOSE = 1e-3
"""Relative change up to which two runs of the same are the same, whatever the dtype rounds."""


def objective_for(options: DataOptions, host: Host, model: Any) -> str:
    """The objective, by default that of the model's kind.

    Raises:
        ConfigError: the model is of the other kind.
        UnsupportedError: it has no head for words.
    """
    causal = host.causal()
    kind = "a decoder, which sees the tokens it would predict with mlm" if causal else "an encoder, which sees them all"
    objective = options.objective
    if objective == "auto":
        objective = "causal" if causal else "mlm"
    if (objective == "mlm") == causal:
        allowed = "'causal' or 'completion'" if causal else "'mlm'"
        raise ConfigError(
            f"objective={objective!r} does not fit {type(host.base).__name__}: it is {kind}. Use {allowed}."
        )
    if not causal and options.packing == "packed":
        raise ConfigError(
            f"packing='packed' does not fit {type(host.base).__name__}, an encoder: it would attend across documents. "
            "Use 'padded' or 'windows'."
        )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        loader = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
        raise UnsupportedError(f"{type(model).__name__} has no language-modelling head. Load it with {loader}.")
    return objective


def longest(host: Host) -> int | None:
    """Positions in the model's table; None where no table limits it, as where an encoding took its place."""
    table = host.table
    if table is None or not getattr(table, "keeps_rows", True):
        return None
    return table.weight.shape[0] - host.reserved_rows


def check_length(options: DataOptions, host: Host) -> None:
    """Refuse rows that the model's position table does not hold.

    Raises:
        UnsupportedError: with the table's length and the way out.
    """
    limit = longest(host)
    name, wanted = "length", options.length
    if options.target_length is not None:
        name, wanted = "target_length", options.target_length
    if limit is not None and wanted > limit:
        raise UnsupportedError(
            f"{name}={wanted} is more than the {limit} positions in the table of {type(host.base).__name__}. Patch it "
            f"first, with 'learned' and max_positions={wanted} or with an encoding that replaces the table, such as "
            f"'alibi', or set {name} to at most {limit}."
        )


def offset(host: Host) -> int:
    """Rows of a position table before position 0 (RoBERTa)."""
    return host.reserved_rows if host.table is not None else 0


def check_positions(options: DataOptions, host: Host) -> None:
    """Try whether skipped positions do what they should: change something, and cut nothing off.

    Raises:
        UnsupportedError: the model does not look at position ids, or cuts a row where they jump.
    """
    assert options.target_length is not None
    if not _runs(host):
        return
    ids = _tokens(host)
    near = torch.arange(2 * TRIED)[None] + offset(host)
    far = near + (torch.arange(2 * TRIED) >= TRIED) * max(0, options.target_length - 2 * TRIED)
    ones = torch.ones_like(ids)
    with _evaluating(host):
        skipped = _states(host, ids, position_ids=far, attention_mask=ones)
        plain = _states(host, ids, position_ids=near, attention_mask=ones)
        other = _states(host, _changed(ids), position_ids=far, attention_mask=ones)
    if options.target_length > 2 * TRIED and torch.equal(skipped[:, TRIED:], plain[:, TRIED:]):
        raise UnsupportedError(
            f"positions={options.positions!r} changes nothing: {type(host.base).__name__}, as it is patched, does not "
            "look at position ids. Use positions='normal'."
        )
    if not _differ(skipped[:, TRIED:], other[:, TRIED:]):
        raise UnsupportedError(
            f"positions={options.positions!r} does not fit {type(host.base).__name__}: what comes after a jump of the "
            "positions does not depend on what comes before, so it would learn nothing about long distances. Use "
            "positions='normal'."
        )


def check_packing(host: Host) -> None:
    """Try whether the model keeps packed documents apart.

    transformers' decoders mask where position ids restart, without a mask and a cache, with eager, sdpa and flex
    attention; so do ours. Flash attention does only in batches of one row, and a few models do not at all.

    Raises:
        UnsupportedError: a document's output depends on the one before it.
    """
    name = str(host.config._attn_implementation)
    ways = "Use packing='padded', which has one document per row."
    if "flash" in name:
        raise UnsupportedError(
            f"packing='packed' does not fit the attention implementation {name!r}, which keeps documents apart only in "
            f"batches of one row. Call model.set_attn_implementation('sdpa'). {ways}"
        )
    if not host.family.packs_by_position:
        raise UnsupportedError(f"packing='packed' does not fit {type(host.base).__name__}. {ways}")
    if not _runs(host):
        return
    ids = _tokens(host).expand(2, -1)
    positions = (torch.arange(2 * TRIED) % TRIED)[None].expand(2, -1)
    with _evaluating(host):
        one = _states(host, ids, position_ids=positions)
        other = _states(host, _changed(ids), position_ids=positions)
    if _differ(one[:, TRIED:], other[:, TRIED:]):
        raise UnsupportedError(
            f"packing='packed' does not fit {type(host.base).__name__} with the attention implementation {name!r}, as "
            f"it is patched: what it makes of a document depends on the one packed before it. {ways}"
        )


def _runs(host: Host) -> bool:
    """Whether the model can be tried here and now."""
    return host.base.get_input_embeddings().weight.device.type != "meta"


def _tokens(host: Host) -> Tensor:
    vocabulary = host.base.get_input_embeddings().weight.shape[0]
    return torch.randint(0, vocabulary, (1, 2 * TRIED), generator=torch.Generator().manual_seed(0))


def _changed(ids: Tensor) -> Tensor:
    """Another first half."""
    return torch.cat((ids[:, :TRIED].flip(1), ids[:, TRIED:]), dim=1)


def _states(host: Host, ids: Tensor, **inputs: Tensor) -> Tensor:
    device = host.base.get_input_embeddings().weight.device
    given: dict[str, Any] = {key: value.to(device) for key, value in {"input_ids": ids, **inputs}.items()}
    if "use_cache" in inspect.signature(type(host.base).forward).parameters:
        given["use_cache"] = False
    return host.base(**given).last_hidden_state.float().cpu()


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > CLOSE * one.square().mean().sqrt())


@contextmanager
def _evaluating(host: Host) -> Iterator[None]:
    modes = [(module, module.training) for module in host.base.modules()]
    try:
        host.base.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
