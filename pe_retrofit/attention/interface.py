"""The one function registered with transformers' ``AttentionInterface``, and its mask.

An attention module that carries ``position_encoding`` (what to apply, by name) goes to our kernels; one that
does not is computed as transformers' own ``sdpa`` would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UnsupportedError
from ..positions import FADING, KEYWORD, Positions
from ..sites import BiasEncoding, RotationEncoding, ScoreEncoding
from ..sites.partial import partial
from .call import Call
from .gain import QueryGain
from .grouped import GROUP, grouped
from .heads import of_this_process
from .late import LateRotation
from .native import native_attention
from .piecewise import PiecewiseRotation
from .reference import eager_attention
from .scale import LogitScale
from .select import run

NAME = "pe_retrofit"
"""The attention implementation's name in a model's config."""

OBSERVER = "_position_encoding_observer"
"""Attribute of an attention module: called with each :class:`Call` before it runs, which it must leave as it is."""


def register() -> None:
    """Register function and mask under :data:`NAME`. Both are needed: without the mask padding would be ignored."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' models call it.

    Args:
        module: the attention module; its ``position_encoding`` says what to apply.
        query, key, value: ``[b, h, q, d]`` and ``[b, g, k, d]``.
        attention_mask: bool or float ``[b or 1, 1, q, k]``, or None (causal by ``module.is_causal``).
        softcap, s_aux: Gemma 2's soft-cap and gpt-oss's sinks ``[h]``.

    Returns:
        ``[b, q, h, d]`` and, with ``output_attentions=True``, the weights ``[b, h, q, k]``.

    Raises:
        UnsupportedError: a foreign ``position_bias``, a paged cache, or a model that does not pass on the positions.
    """
    context: Positions | None = kwargs.get(KEYWORD)
    strength = 1.0 if context is None else context.strength
    observer = getattr(module, OBSERVER, None)
    if context is not None and strength == 0.0 and context.native_attention:
        given = {**kwargs, "dropout": dropout, "scaling": scaling, "is_causal": is_causal, "softcap": softcap}
        if observer is not None:
            observed = (query, key, value, attention_mask, dropout, scaling, is_causal, softcap, s_aux)
            observer(_normalise(module, *observed, None, []))
        return native_attention(
            context.native_attention, module, query, key, value, attention_mask, s_aux=s_aux, **given
        )
    for name in ("position_bias", "cache"):
        if kwargs.get(name) is not None:
            raise UnsupportedError(
                f"attention implementation {NAME!r} got {name!r}, which it would have to ignore. "
                "Use unpatch_model(model) first, or pass neither."
            )
    kernel = getattr(module, "_position_encoding_kernel", "auto")
    carried = getattr(module, "position_encoding", {}).values()
    installed = [m for m in carried if kernel != "auto" or not _adds_nothing(m)]
    installed = of_this_process(module, installed, query)
    if strength != 1.0:
        installed = _weaker(module, installed, strength)
    weights_wanted = bool(kwargs.get("output_attentions")) or (context is not None and context.weights)
    group = module.__dict__.get(GROUP) if module.training else None
    needless = softcap is None and s_aux is None and not weights_wanted and observer is None and group is None
    if not installed and needless:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    positions = context if installed else None
    if installed and positions is None:
        raise UnsupportedError(
            f"{type(module).__name__} was called without the positions its encoding needs: the model does not pass "
            f"keyword arguments on to its attention, or the layer was called on its own. Call the whole model."
        )
    call = _normalise(
        module, query, key, value, attention_mask, dropout, scaling, is_causal, softcap, s_aux, positions, installed
    )
    turn = next((m for m in installed if isinstance(m, (LateRotation, PiecewiseRotation))), None)
    weights: list[Tensor] = []

    def attend(call: Call) -> Tensor:
        if observer is not None:
            observer(call)
        if group is not None and weights_wanted:
            raise UnsupportedError(
                "output_attentions=True is not available with shifted sparse attention, where no head sees the whole "
                "text. Ask without attentions, or in evaluation mode."
            )
        if group is not None:
            return grouped(call, group, lambda part: run(part, kernel))
        if not weights_wanted:
            return run(call, kernel)
        if weights:
            raise UnsupportedError(
                f"output_attentions=True is not available with {turn.name if turn else 'this encoding'!r} here: it "
                "scores each group of queries with a rotation of its own. Ask without attentions."
            )
        output, found = eager_attention(call)
        weights.append(found)
        return output

    output = turn(call, attend) if turn is not None else attend(call)
    return output.transpose(1, 2).contiguous(), weights[0] if weights else None


def _weaker(module: nn.Module, installed: list[Any], strength: float) -> list[Any]:
    """What acts on a layer while its patch is partly in force; nothing at 0."""
    if strength == 0.0:
        return []
    fading = module.__dict__.get(FADING)
    parts = [partial(m, strength) if isinstance(m, (BiasEncoding, ScoreEncoding)) else m for m in installed]
    return parts if fading is None else [*parts, fading]


def _adds_nothing(item: nn.Module) -> bool:
    """What is zero and stays so, or does not act here: the layer is then computed exactly as without it."""
    if isinstance(item, RotationEncoding):  # it acted on cos and sin already
        return True
    return isinstance(item, (BiasEncoding, ScoreEncoding)) and item.silent and not item.trains


def _masks_break(positions: Positions, mask: Tensor | None) -> bool:
    """Whether the model masks packed sequences from each other, which few models forget (gpt-oss, AFMoE)."""
    if positions.packed is None:
        return True
    if mask is None:
        return False
    if "packed" not in positions.shared:
        row, first = positions.packed
        across = mask[row if mask.shape[0] > 1 else 0, 0, first, first - 1]
        masked = ~across if mask.dtype == torch.bool else across <= torch.finfo(mask.dtype).min / 2
        positions.shared["packed"] = bool(masked)
    return positions.shared["packed"]


def _normalise(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    softcap: float | None,
    sinks: Tensor | None,
    positions: Positions | None,
    installed: list[nn.Module],
) -> Call:
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4):
        raise UnsupportedError(
            f"An attention mask of type {type(mask).__name__} cannot be combined with a position encoding; pass a 2D "
            "padding mask or a 4D mask [batch, 1, queries, keys]."
        )
    q, k = query.shape[2], key.shape[2]
    limit: int | None = None
    if mask is None and causal and q > 1:
        if k > q:  # an empty static cache: the keys after the queries are slots without content
            key, value, k = key[:, :, :q], value[:, :, :q], q
        limit = 0
    if mask is not None and mask.shape[-1] > k:
        mask = mask[..., :k]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    strength = 1.0 if positions is None else positions.strength
    for item in installed:
        if isinstance(item, LogitScale):
            scale *= item.common(strength)

    layer = getattr(module, "layer_idx", None)
    shift: int | None = None
    if positions is None:
        index = torch.arange(max(q, k), device=query.device)[None]
        positions = Positions(index[:, :q], index[:, :k], 0, True)
        query_positions, key_positions = positions.query, positions.tokens
    else:
        query_positions = positions.query.to(query.device)
        key_positions = positions.keys(layer, k).to(query.device)
        if positions.contiguous and isinstance(positions.first_query, int) and _masks_break(positions, mask):
            shift = positions.first_query - positions.first_key(layer)
    for item in installed:
        if isinstance(item, LogitScale):
            query = item.scale(query, query_positions, strength)
        elif isinstance(item, QueryGain):
            query = item.turn(query, strength)
    return Call(
        query=query,
        key=key,
        value=value,
        mask=mask,
        causal=causal,
        limit=limit,
        scaling=scale,
        dropout=dropout,
        softcap=softcap,
        sinks=sinks,
        query_positions=query_positions,
        key_positions=key_positions,
        shift=shift,
        biases=[m for m in installed if isinstance(m, BiasEncoding)],
        positions=positions,
        scores=[m for m in installed if isinstance(m, ScoreEncoding)],
        first=positions.first_query - positions.first_key(layer),
    )
