"""Find the base model in whatever the user holds, and the family it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedError
from ..sites import HostShape
from .bert import BERT, DISTILBERT
from .descriptor import Family
from .gpt_neox import GPT_NEOX
from .llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA, GPT_NEOX, BERT, DISTILBERT)


def follow(module: Any, path: str) -> Any:
    """The attribute at a dotted path, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


@dataclass
class Host:
    """A base model and its family.

    Attributes:
        base: the base model (``LlamaModel``, not ``LlamaForCausalLM``).
        family: its descriptor.
    """

    base: Any  # a PreTrainedModel; its attributes are found by name
    family: Family

    @property
    def config(self) -> Any:
        return self.base.config

    @cached_property
    def layers(self) -> list[nn.Module]:
        return list(follow(self.base, self.family.layers))

    @cached_property
    def attentions(self) -> list[nn.Module]:
        return [follow(layer, self.family.attention) for layer in self.layers]

    @property
    def rotary(self) -> nn.Module | None:
        return follow(self.base, self.family.rotary) if self.family.rotary else None

    @property
    def table(self) -> nn.Embedding | None:
        return follow(self.base, self.family.table) if self.family.table else None

    @property
    def reserved_rows(self) -> int:
        """Rows of the position table before position 0 (RoBERTa keeps ``padding_idx + 1``)."""
        padding = getattr(self.table, "padding_idx", None)
        return 0 if padding is None else int(padding) + 1

    @property
    def rope_sets(self) -> dict[str | None, dict[str, Any]]:
        """``rope_parameters`` by layer type; one entry ``None`` where all layers share them."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        nested = {k: v for k, v in rope.items() if isinstance(v, dict)}
        return {**nested} if nested else {None: dict(rope)}

    def rope_of(self, layer: int) -> dict[str, Any]:
        """``rope_parameters`` of one layer."""
        sets = self.rope_sets
        return sets[None] if None in sets else sets[self.config.layer_types[layer]]

    def shape(self, layer: int = 0, *, max_positions: int | None = None) -> HostShape:
        """The numbers encodings need, for one layer."""
        config, attention = self.config, self.attentions[layer]
        heads = config.num_attention_heads
        head_dim = next(
            (v for n in ("head_dim", "head_size", "attention_head_size") if (v := getattr(attention, n, None))),
            config.hidden_size // heads,
        )
        rotary = 0
        if self.family.rotary:
            fraction = self.rope_of(layer).get("partial_rotary_factor") or 1.0
            # transformers' proportional type keeps whole heads; every other type shrinks the rotated part
            whole = self.rope_of(layer).get("rope_type") == "proportional"
            rotary = head_dim if whole else int(head_dim * fraction)
        width = self.table.weight.shape[1] if self.table is not None else config.hidden_size
        trained = max_positions or config.max_position_embeddings - (self.reserved_rows if self.table else 0)
        return HostShape(heads, head_dim, rotary, width, trained, self.causal(layer))

    def causal(self, layer: int = 0) -> bool:
        """Whether a layer attends causally."""
        return bool(getattr(self.attentions[layer], "is_causal", True)) and getattr(self.config, "is_causal", True)

    def reference_parameter(self, layer: int = 0) -> torch.Tensor:
        """A parameter whose device and dtype new parameters of a layer should have."""
        for parameter in self.attentions[layer].parameters():
            if parameter.is_floating_point():
                return parameter
        dtype = self.base.dtype if self.base.dtype.is_floating_point else torch.float32
        return torch.empty(0, device=self.base.device, dtype=dtype)


def unwrap(model: Any) -> nn.Module:
    """The module behind known wrappers; refuses what cannot be patched.

    Raises:
        TypeError: not a module.
        UnsupportedError: a compiled model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"A transformers model is needed, got {type(model).__name__}: {model!r:.80}. Load it first, e.g. with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    if hasattr(model, "_orig_mod"):
        raise UnsupportedError(
            "The model is compiled: a patch would not reach the compiled code. Patch the original "
            "(model._orig_mod) and compile it afterwards."
        )
    return model


def find_host(model: Any) -> Host:
    """The base model inside ``model`` and its family.

    Raises:
        UnsupportedError: no family fits, or several base models are inside; with the list of families.
    """
    model = unwrap(model)
    found: list[Host] = []
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        family = next((f for f in FAMILIES if _fits(module, f)), None)
        if family is not None:
            found.append(Host(module, family))
    known = "; ".join(f"{f.name}: {f.examples}" for f in FAMILIES)
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} fits no supported family. Supported, with everything built like them: {known}."
        )
    if len(found) > 1:
        names = ", ".join(type(h.base).__name__ for h in found)
        raise UnsupportedError(
            f"{type(model).__name__} holds several models that could be meant ({names}). Patch the one you mean, "
            f"e.g. patch_model(model.encoder, ...). Families: {known}."
        )
    return found[0]


def _fits(module: PreTrainedModel, family: Family) -> bool:
    layers = follow(module, family.layers)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    if family.rotary and not isinstance(follow(module, family.rotary), nn.Module):
        return False
    if family.table:
        table = follow(module, family.table)
        if not isinstance(getattr(table, "original_module", table), nn.Embedding):  # peft's, where it is trained
            return False
    for layer in layers:
        attention = follow(layer, family.attention)
        if not isinstance(attention, nn.Module):
            return False
    return True
