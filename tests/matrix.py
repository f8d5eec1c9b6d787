"""The test matrix: every host of :mod:`hosts` with every encoding of :mod:`rows`.

A new encoding is one row of ``ENCODINGS``, a new family one row of ``HOSTS``; every generic test runs over
:func:`cells`. :func:`refusal` says which cells must be refused, and with what words.

There are more than a thousand cells. A plain run takes every encoding on one host of each family, and of the other
hosts a quarter of the cells, diagonally; ``PE_RETROFIT_MATRIX=whole`` (``make test-whole``) takes them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hosts import ENCODER, GQA, HOSTS, PAD, TRAINED, VOCAB, WINDOW, HostCase
from rows import ENCODINGS, EncodingCase, learned_parameters, randomise

__all__ = [
    "ENCODER",
    "ENCODINGS",
    "GQA",
    "HOSTS",
    "PAD",
    "TRAINED",
    "VOCAB",
    "WINDOW",
    "Cell",
    "EncodingCase",
    "HostCase",
    "cached_logits",
    "cells",
    "distance",
    "encoder_state",
    "learned_parameters",
    "logits",
    "randomise",
    "tokens",
]


def refusal(host: HostCase, encoding: EncodingCase) -> str | None:
    """A pattern the error must match where a cell has to be refused; None where it has to work."""
    subset = encoding.layers is not None or encoding.groups > 0
    if not host.causal and not encoding.encoder:
        return "holds for causal attention only"
    if encoding.gains and not host.rotates:
        return "gains=True of 'nope' takes the place of a rotation"
    if encoding.gains and host.native_nope:
        return "gains=True of 'nope' takes the place of a rotation, and Layer 1 has none"
    if not host.rotates:
        if encoding.scales:
            return "scales a rotation, and .* has none"
        if encoding.pieces:
            return "moves the positions of a rotation, and .* has none"
        if encoding.name == "native+learned":
            return "already has a learned table"
        if subset and not encoding.keeps:
            return "layers= cannot be chosen here"
        return None
    inside = encoding.turns or encoding.gains
    if (host.own_application and inside) or (host.own_layout and (inside or encoding.own_rotation)):
        return "rotate-half layout"
    if encoding.name in ("rope", "native+rope"):
        return "adding nothing changes nothing"
    if host.native_nope and encoding.name == "nope/2":
        return "changed nothing in layers"
    return None


@dataclass(frozen=True)
class Cell:
    """One host with one encoding."""

    host: HostCase
    encoding: EncodingCase

    @property
    def id(self) -> str:
        return f"{self.host.name}-{self.encoding.name}"

    @property
    def refusal(self) -> str | None:
        return refusal(self.host, self.encoding)

    @property
    def promises_identity(self) -> bool:
        """Whether the patched model must equal the original, bit by bit, within the trained length."""
        return {"": False, "always": True, "decoder": self.host.rotates, "encoder": not self.host.rotates}[
            self.encoding.identity
        ]

    @property
    def length(self) -> int:
        """How many tokens a test should take: beyond the trained length where the host can, far beyond for ``late``."""
        if self.encoding.late:
            return 80
        return 30 if not self.host.rotates and self.encoding.keeps else 40

    @property
    def relative(self) -> bool:
        """Whether a shift of all positions must change nothing."""
        if not self.encoding.relative or self.encoding.late:
            return False
        return self.host.rotates or not self.encoding.keeps

    @property
    def needs_positions(self) -> bool:
        """Whether positions of cached keys matter to us, and not to the host alone."""
        return self.encoding.has_kernels or self.encoding.late or self.encoding.heats

    @property
    def extends_table(self) -> bool:
        """Whether ``learned`` makes the host's own table longer, instead of adding one."""
        return not self.host.rotates and self.encoding.name == "learned"

    def patched(self, *, fill: bool = True, double: bool = False, **more: Any) -> Any:
        """A fresh patched model, in float64 with ``double``."""
        model = self.host.fresh()
        return self.encoding.patch(model.double() if double else model, fill=fill, **more)

    def patched_in_place(self, model: Any) -> Any:
        """``model``, patched as the encoding starts."""
        return self.encoding.patch(model, fill=False)


FAMILIES = ("llama", "gpt_neox", "bert")
"""The hosts that every run takes whole."""

SHARE = 4
"""A plain run takes each other host with every fourth encoding, and each encoding with every fourth of them."""

WHOLE = os.environ.get("PE_RETROFIT_MATRIX") == "whole"


def in_this_run(cell: Cell) -> bool:
    """Whether a cell that works is tested, and not left to the whole matrix."""
    if WHOLE or cell.host.name in FAMILIES:
        return True
    return (list(HOSTS).index(cell.host.name) + list(ENCODINGS).index(cell.encoding.name)) % SHARE == 0


def cells(want: Callable[[Cell], bool] = lambda cell: True, *, refused: bool = False) -> list[Any]:
    """This run's cells that work (or, ``refused``, all that must not) and satisfy ``want``."""
    every = [Cell(h, e) for h in HOSTS.values() for e in ENCODINGS.values() if e.hosts is None or h.name in e.hosts]
    chosen = [c for c in every if (c.refusal is not None) == refused and (refused or in_this_run(c))]
    return [pytest.param(c, id=c.id) for c in chosen if want(c)]


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """int64 ``[batch, length]``, without the padding token."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    """``[batch, length, vocabulary]`` without gradients; a decoder with cross attention gets a fixed encoder state."""
    with torch.no_grad():
        return model(input_ids=ids, **encoder_state(model, ids, inputs), **inputs).logits


def encoder_state(model: Any, ids: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a model with cross attention attends to: the same in every row."""
    if not getattr(model.config, "add_cross_attention", False):
        return {}
    rows = (ids if ids is not None else inputs["inputs_embeds"]).shape[0]
    state = torch.randn(1, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    return {"encoder_hidden_states": state.expand(rows, -1, -1).to(model.dtype)}


def cached_logits(
    model: Any, ids: torch.Tensor, chunks: Sequence[int], cache: Any = None, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of a decoder fed chunk by chunk through a cache."""
    assert sum(chunks) == ids.shape[1]
    parts, start = [], 0
    for size in chunks:
        piece = ids[:, start : start + size]
        more: dict[str, Any] = {}
        if position_ids is not None:
            more["position_ids"] = position_ids[:, start : start + size]
            more["attention_mask"] = torch.ones(ids.shape[0], start + size, dtype=torch.long)
        with torch.no_grad():
            state = encoder_state(model, piece, {})
            output = model(input_ids=piece, past_key_values=cache, use_cache=True, **state, **more)
        cache = output.past_key_values
        parts.append(output.logits)
        start += size
    return torch.cat(parts, dim=1)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest size of what is wanted."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert torch.isfinite(found).all()
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
