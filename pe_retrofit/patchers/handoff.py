"""Layers that take keyword arguments and drop them (StableLM, Nemotron): how the positions reach the attention.

They travel with ``position_embeddings``, which every such layer passes on, and so survive gradient checkpointing, where
the forward of a layer runs again on its old arguments, possibly after other passes.
"""

from __future__ import annotations

import dis
import inspect
from typing import Any

from torch import nn

from ..positions import KEYWORD


class Carrier(tuple):
    """``(cos, sin)`` with the positions that would get lost."""

    positions: Any


def drops_keywords(layer: nn.Module) -> bool:
    """Whether a layer's forward has ``**kwargs`` that it never reads."""
    forward = inspect.unwrap(type(layer).forward)
    name = next((p.name for p in inspect.signature(forward).parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if name is None:
        return False
    for instruction in dis.get_instructions(forward):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if instruction.opname.startswith("LOAD") and name in names:
            return False
    return True


def pack(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the layer."""
    embeddings = kwargs.get("position_embeddings")
    if isinstance(embeddings, tuple) and KEYWORD in kwargs:
        carrier = Carrier(embeddings)
        carrier.positions = kwargs[KEYWORD]
        kwargs = {**kwargs, "position_embeddings": carrier}
    return args, kwargs


def unpack(attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the layer's attention."""
    embeddings = kwargs.get("position_embeddings")
    if isinstance(embeddings, Carrier):
        kwargs = {**kwargs, KEYWORD: embeddings.positions, "position_embeddings": tuple(embeddings)}
    return args, kwargs


def install(layer: nn.Module, attention: nn.Module) -> list[Any]:
    """Handles of the hooks a layer needs; none where it passes everything on."""
    if not drops_keywords(layer):
        return []
    return [
        layer.register_forward_pre_hook(pack, with_kwargs=True),
        attention.register_forward_pre_hook(unpack, with_kwargs=True, prepend=True),
    ]
