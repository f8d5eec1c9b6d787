"""How much of a model's patch is in force, read by its hooks at every call, and what they do in between.

One :class:`Strength` per model, shared by its modules. The value in force during a forward pass travels with that pass,
so that gradient checkpointing recomputes what was computed.
"""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedError
from ..positions import STRENGTH, Positions

_MARK = "_position_encoding_strength"
"""On a cache: the strength it was filled with."""


class Strength:
    """Of one model.

    Args:
        attention: the implementation of the model's attention before; empty where the patch did not change it.
        rotary: the rotary module as it was before; None without rotation.
        types: the layer type that says which frequencies a layer has, by layer; None where all have the same.
    """

    def __init__(self, attention: str, rotary: nn.Module | None, types: list[str | None]) -> None:
        self.value = 1.0
        self.attention = attention
        self.rotary = rotary
        self.types = types
        self.checkpoints = False
        """Whether saving is for going on later, so that it may happen at any strength."""
        self.handles: list[Any] = []

    def nowhere(self) -> Positions:
        """What travels with a pass of the model as it was before: no positions are needed."""
        nothing = torch.empty(1, 0, dtype=torch.long)
        return Positions(nothing, nothing, 0, True, strength=0.0, native_attention=self.attention)

    def native(self, layer: int | None = None, kind: str | None = None) -> tuple[Tensor, float]:
        """Frequencies ``[n]`` and scaling of a layer (or of a layer type) before."""
        return frequencies(self.rotary, kind if layer is None else self.types[layer])

    def turned(
        self, like: Tensor, positions: Positions, layer: int, inv_freq: list[float] | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of a layer between its own frequencies and others, laid out as the model does.

        Args:
            like: of their dtype and device.
            inv_freq, scaling: the others; None: no rotation.
        """
        kind, strength = self.types[layer], positions.strength
        memo = ("between", kind, inv_freq and tuple(inv_freq), scaling, strength, like.dtype, like.device)
        if memo not in positions.shared:
            native = self.native(kind=kind)[0]
            new = torch.zeros_like(native) if inv_freq is None else torch.tensor(inv_freq, device=native.device)
            rotary = self.between(kind, new, scaling, strength)
            more = {} if kind is None else {"layer_type": kind}
            with torch.autocast(like.device.type, enabled=False):
                positions.shared[memo] = rotary.forward(like, positions.query.to(like.device), **more)
        return positions.shared[memo]

    def between(self, kind: str | None, inv_freq: Tensor, scaling: float, strength: float) -> nn.Module:
        """The rotary module with ``(1 - strength)`` times its own frequencies plus ``strength`` times others."""
        native, own = self.native(kind=kind)
        prefix = "" if kind is None else f"{kind}_"
        made: Any = copy.copy(self.rotary)
        blended = torch.lerp(native.float(), inv_freq.to(native.device).float(), strength)
        made.__dict__["_buffers"] = {**made._buffers, f"{prefix}inv_freq": blended}
        made.__dict__[f"{prefix}attention_scaling"] = own + strength * (scaling - own)
        return made


def frequencies(rotary: Any, kind: str | None) -> tuple[Tensor, float]:
    """Frequencies ``[n]`` and factor on cos and sin of a rotary module, for a layer type where it has several."""
    prefix = "" if kind is None else f"{kind}_"
    return getattr(rotary, f"{prefix}inv_freq"), float(getattr(rotary, f"{prefix}attention_scaling", 1.0))


class RotaryBefore:
    """Forward hook of a rotary module that was made from an edited config: the one before, or one between."""

    def __init__(self, state: Strength) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        state, strength = self.state, self.state.value
        if strength == 1.0 or state.rotary is None:
            return None
        if strength == 0.0:
            return state.rotary.forward(*args, **kwargs)  # past the hooks, of which this is one
        kind = kwargs.get("layer_type", args[2] if len(args) > 2 else None)
        return state.between(kind, *frequencies(module, kind), strength).forward(*args, **kwargs)


class TableBefore:
    """Forward hook of a position table that was lengthened: the rows it had."""

    def __init__(self, before: nn.Embedding) -> None:
        self.before = before

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor | None:
        if module.__dict__[STRENGTH].value == 1.0:
            return None
        rows = self.before.weight
        rows = module.weight[: len(rows)] if rows.is_meta else rows.to(module.weight)
        return functional.embedding(args[0], rows, self.before.padding_idx)


class CacheGuard:
    """Hooks of a base model: a cache is used at the strength it was filled with."""

    def __init__(self, base: nn.Module) -> None:
        self.names = list(inspect.signature(type(base).forward).parameters)[1:]

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        at = self.names.index("past_key_values") if "past_key_values" in self.names else len(args)
        cache = _holder(kwargs.get("past_key_values", args[at] if at < len(args) else None))
        state = module.__dict__.get(STRENGTH)
        if state is None or cache is None or torch.compiler.is_compiling():
            return
        filled = getattr(cache, _MARK, 1.0)
        if not int(cache.get_seq_length()):
            setattr(cache, _MARK, state.value)
        elif filled != state.value:
            raise UnsupportedError(
                f"The cache was filled while {_words(filled)} was in force, and now {_words(state.value)} is: its keys "
                "do not fit. Start a new cache after changing the strength."
            )

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: a cache that the model made itself."""
        cache, state = _holder(getattr(output, "past_key_values", None)), module.__dict__.get(STRENGTH)
        if cache is not None and state is not None and not torch.compiler.is_compiling():
            setattr(cache, _MARK, state.value)


def _words(strength: float) -> str:
    return {0.0: "the original encoding", 1.0: "the new encoding"}.get(strength, f"a strength of {strength:g}")


def _holder(cache: Any) -> Any:
    cache = getattr(cache, "self_attention_cache", cache)
    return cache if hasattr(cache, "get_seq_length") else None


def refuse_saving(module: Any, prefix: str, keep_vars: bool) -> None:
    """State dict pre-hook of a base model: a model half-way is not what its config says."""
    state = module.__dict__.get(STRENGTH)
    if state is None or state.value == 1.0 or state.checkpoints:
        return
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "save_pretrained":
        frame = frame.f_back
    if frame is not None:
        raise UnsupportedError(
            f"The model is to be saved at strength {state.value:g}, but its config says that the new encoding is fully "
            "in force, as it would be when the file is loaded. Call set_strength(model, 1.0) first; for the original "
            "model, unpatch_model(model)."
        )
