"""What was done to a model, as data, and the small steps that all installing is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..patchers import rotation
from ..patchers.family import Host
from ..proof import Proof
from ..sites import Installed

CHILD = "position_encoding"
"""Name of the child module that carries what is installed on an attention, or on the base model."""

KERNEL = "_position_encoding_kernel"

PATCHES = "_position_encoding_patches"
"""Attribute of the base model that lists its patches."""


@dataclass
class Applied:
    """One patch on a model, with all that is needed to take it back.

    Attributes:
        entries: the spec as JSON.
        names: the spec in words.
        layers: layers concerned.
        all_layers: whether these are all.
        native: transformers' own config says it all; a saved model is a plain one.
        kernel: the kernel the user forced, or ``auto``; None when no kernel of ours is involved.
        proof: what the patch changed.
        context: positions are handed down to the layers.
    """

    entries: list[dict[str, Any]]
    names: str
    layers: list[int]
    all_layers: bool
    native: bool = True
    kernel: str | None = None
    proof: Proof | None = None
    handles: list[Any] = field(default_factory=list)
    config_before: dict[str, Any] = field(default_factory=dict)
    attention_before: str | None = None
    rotary_before: nn.Module | None = None
    table_before: nn.Embedding | None = None
    table_trained: bool = True
    buffers_before: dict[str, Tensor] = field(default_factory=dict)
    children: list[int] = field(default_factory=list)
    input_child: bool = False
    context: bool = False


def add_child(host: Host, applied: Applied, layer: int, name: str, module: nn.Module) -> None:
    parent = host.attentions[layer]
    if not hasattr(parent, CHILD):
        setattr(parent, CHILD, Installed().train(parent.training))
    getattr(parent, CHILD)[name] = module.train(parent.training)
    if layer not in applied.children:
        applied.children.append(layer)


def like(module: Any, host: Host, layer: int) -> Any:
    """A new module where the layer's parameters are, in their dtype."""
    reference = host.reference_parameter(layer)
    return module.to(device=reference.device, dtype=reference.dtype)


def edit_config(host: Host, applied: Applied, values: dict[str, Any]) -> None:
    for key, value in values.items():
        applied.config_before[key] = getattr(host.config, key)
        setattr(host.config, key, value)


def replace_rotation(
    host: Host,
    applied: Applied,
    layers: list[int],
    inv_freq: list[float] | None = None,
    scaling: float = 1.0,
    through: str | None = None,
    *,
    later: bool = False,
) -> None:
    hook = rotation.ReplaceRotation(inv_freq, scaling, through, later=later)
    for layer in layers:
        applied.handles.append(host.attentions[layer].register_forward_pre_hook(hook, with_kwargs=True))
