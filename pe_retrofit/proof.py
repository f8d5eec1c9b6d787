"""Proof that a patch did something: the base model's output before and after, on a few tokens at far positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError
from .patchers.family import Host

TOKENS = 24
SEED = 20231116


@dataclass(frozen=True)
class Proof:
    """What was measured.

    Attributes:
        identity: the output was bit-equal to the original's within the trained length.
        max_change: largest absolute change of the last hidden state there.
        relative_change: that change over the root mean square of the original.
        beyond: the largest change at up to four times the trained length; None when not measured.
    """

    identity: bool
    max_change: float
    relative_change: float
    beyond: float | None = None


def probe(host: Host, length: int) -> Tensor:
    """Last hidden state ``[1, n, hidden_size]`` on random tokens at positions spread over ``length``, on the CPU.

    Few tokens at far positions see long distances at the cost of few tokens. Random state and training mode stay as
    they were.
    """
    base = host.base
    count = min(TOKENS, length)
    vocabulary = base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (1, count), generator=torch.Generator().manual_seed(SEED))
    positions = torch.linspace(0, length - 1, count).round().long()[None] + host.reserved_rows * (
        host.table is not None
    )
    device = base.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),  # a mask, or far positions would count as packed sequences
        "position_ids": positions.to(device),
    }
    known = inspect.signature(type(base).forward).parameters
    if "use_cache" in known:
        inputs["use_cache"] = False
    modes = [(module, module.training) for module in base.modules()]
    try:
        base.eval()
        with torch.no_grad():
            return base(**inputs).last_hidden_state.detach().float().cpu()
    finally:
        for module, mode in modes:
            module.training = mode


def prove(
    name: str,
    before: Tensor,
    after: Tensor,
    *,
    may_be_identity: bool,
    must_change_beyond: bool,
    beyond: tuple[Tensor, Tensor] | None,
    layers: Sequence[int],
    tolerance: float = 0.01,
) -> Proof:
    """Compare, and refuse a patch without effect.

    Raises:
        UnsupportedError: nothing changed although something should have, something changed although nothing should
            have (beyond ``tolerance``, relative: another kernel rounds differently), or the output is not finite.
    """
    if not torch.isfinite(after).all():
        raise UnsupportedError(f"With {name!r} the model's output is not finite; the patch was taken back.")
    change = (after - before).abs().max().item()
    far = (beyond[1] - beyond[0]).abs().max().item() if beyond else None
    if not far and (must_change_beyond or (change == 0.0 and not may_be_identity)):
        raise UnsupportedError(
            f"Patching with {name!r} changed nothing in layers {list(layers)}: they have no such encoding to replace, "
            "or the options amount to what the model already does. The patch was taken back."
        )
    rms = before.square().mean().sqrt().item()
    if may_be_identity and not change <= tolerance * rms:
        raise UnsupportedError(
            f"{name!r} must leave the output as it is within the trained length, yet it changed by {change:.3g} (its "
            f"root mean square is {rms:.3g}): this model computes its attention otherwise than the supported families. "
            "The patch was taken back."
        )
    return Proof(change == 0.0, change, change / rms if rms else 0.0, far)
