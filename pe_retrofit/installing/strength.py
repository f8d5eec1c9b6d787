"""A patched model, with its patch partly in force or not at all: ``set_strength`` and ``original``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from .. import attention
from ..attention.native import IMPLEMENTATIONS
from ..errors import ConfigError, UnsupportedError
from ..patchers import handoff, rotation
from ..patchers.context import PositionContext
from ..patchers.family import Host, find_host
from ..patchers.strength import CacheGuard, RotaryBefore, Strength, TableBefore, refuse_saving
from ..patchers.table import ReplacedTable
from ..positions import FADING, STRENGTH
from .applied import PATCHES, Applied
from .between import prepare

M = TypeVar("M", bound=nn.Module)


def set_strength(model: M, value: float) -> M:
    """Put a patch partly in force: 0 is the model as it was before the patch, bit by bit, 1 is the patched model.

    In between, with strength ``s``: rotary frequencies (and factors on cos and sin) are ``(1 - s)`` times the model's
    own plus ``s`` times the new ones, which are 0 where the encoding removes the rotation; a position table that is
    removed counts ``1 - s``, what is added to the input, to the logits or to the scores ``s``; temperatures are
    ``1 + s (t - 1)``. The value holds until it is set again, for this model alone. A cache belongs to the strength it
    was filled with.

    Args:
        model: a patched model, or a model (of peft, or any wrapper) that holds one.
        value: strength in ``[0, 1]``.

    Returns:
        The same model.

    Raises:
        ConfigError: ``value`` is no number in ``[0, 1]``.
        UnsupportedError: the model is not patched, its encoding has nothing between 0 and 1 (piecewise rotations,
            windows, a lengthened position table), or its attention implementation before was neither ``sdpa`` nor
            ``eager``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"The strength of a patch is a number from 0 (original) to 1 (patched), got {value!r}.")
    bases = patched_bases(model)
    if not bases:
        raise UnsupportedError("The model is not patched, so there is no strength to set. Call patch_model first.")
    states = [attach(base) for base in bases] if value != 1 else [b.__dict__.get(STRENGTH) for b in bases]
    if 0 < value < 1:
        for base in bases:
            prepare(find_host(base), base.__dict__[PATCHES], float(value))
    for state in states:
        if state is not None:
            state.value = float(value)
    return model


def strength_of(model: nn.Module) -> float:
    """How much of the patch of a model is in force; 1 unless :func:`set_strength` or :func:`original` said otherwise.

    Raises:
        UnsupportedError: the model is not patched.
    """
    bases = patched_bases(model)
    if not bases:
        raise UnsupportedError("The model is not patched, so its patch has no strength.")
    state = bases[0].__dict__.get(STRENGTH)
    return 1.0 if state is None else float(state.value)


@contextmanager
def original(model: M) -> Iterator[M]:
    """The model as it was before its patch, while the block lasts: bit by bit, with the weights it has now.

    Nothing is installed or removed, so it costs next to nothing: the original can be the teacher of the patched model
    at every step of a training. Weights changed since (an adapter, fine-tuned layers) stay changed; switch an adapter
    off beside it. Blocks nest, and gradients flow in the block as in the original model; with gradient checkpointing
    the backward pass may come after it.

    >>> with torch.no_grad(), model.disable_adapter(), original(model):
    ...     teacher = model(input_ids).logits

    Args:
        model: a patched model, or a model that holds one; one without a patch is its own original.

    Raises:
        UnsupportedError: the attention implementation before was neither ``sdpa`` nor ``eager``.
    """
    states = [attach(base) for base in patched_bases(model)]
    before = [state.value for state in states]
    try:
        for state in states:
            state.value = 0.0
        yield model
    finally:
        for state, value in zip(states, before, strict=True):
            state.value = value


def patched_bases(model: nn.Module) -> list[Any]:
    """The patched base models inside a model, whatever it is wrapped in."""
    return [module for module in model.modules() if module.__dict__.get(PATCHES)]


def attach(base: Any) -> Strength:
    """What says how much of a model's patch is in force; made at the first use."""
    if STRENGTH in base.__dict__:
        state: Strength = base.__dict__[STRENGTH]
        for module in base.modules():  # peft copies the modules it trains, and what they carry
            if module.__dict__.get(STRENGTH, state) is not state:
                module.__dict__[STRENGTH] = state
        return state
    host, patches = find_host(base), base.__dict__[PATCHES]
    state = Strength(_attention_before(host, patches), *_rotary_before(host, patches))
    try:
        _add_hooks(host, patches, state)
    except BaseException:
        for handle in state.handles:
            handle.remove()
        raise
    for module in (base, *host.attentions, *_tables(host)):
        module.__dict__[STRENGTH] = state
    torch.compiler.reset()  # code compiled before knows nothing of it, wherever the user keeps that code
    return state


def detach(base: nn.Module) -> None:
    """Undo :func:`attach`."""
    state = base.__dict__.get(STRENGTH)
    if state is None:
        return
    for handle in state.handles:
        handle.remove()
    for module in base.modules():
        for name in (STRENGTH, FADING):
            module.__dict__.pop(name, None)


def carry_over(base: Any, state: Strength | None) -> None:
    """Put a model whose patch was taken off and put back where it was."""
    if state is not None:
        new = attach(base)
        if 0 < state.value < 1:
            prepare(find_host(base), base.__dict__[PATCHES], state.value)
        new.value, new.checkpoints = state.value, state.checkpoints


def check_whole(base: nn.Module) -> None:
    """Refuse to patch a model whose earlier patch is not fully in force."""
    state = base.__dict__.get(STRENGTH)
    if state is not None and state.value != 1.0:
        raise UnsupportedError(
            f"The model is patched at strength {state.value:g}. Call set_strength(model, 1.0) before patching further."
        )


def _attention_before(host: Host, patches: list[Applied]) -> str:
    """The attention implementation that the patches replaced; empty where they replaced none."""
    before = next((a.attention_before for a in patches if a.attention_before is not None), "")
    if host.config._attn_implementation == attention.NAME and before and before not in IMPLEMENTATIONS:
        raise UnsupportedError(
            f"The model's attention ran on {before!r} before it was patched, and what that computed can be had again "
            f"only from {' or '.join(IMPLEMENTATIONS)}. Load it with attn_implementation='sdpa', then patch it."
        )
    return before


def _rotary_before(host: Host, patches: list[Applied]) -> tuple[nn.Module | None, list[str | None]]:
    """The rotary module before, which reads the config as it was before; and each layer's type for it."""
    rotary: Any = next((a.rotary_before for a in patches if a.rotary_before is not None), host.rotary)
    if rotary is None:
        return None, [None] * len(host.layers)
    edits: dict[str, Any] = {}
    for applied in reversed(patches):
        edits.update(applied.config_before)
    if edits:
        config = copy.copy(host.config)
        for key, value in edits.items():
            setattr(config, key, value)
        if any(buffer.is_meta for buffer in rotary.buffers()):
            rotary = rotation.make_rotary(type(rotary), config, host)
        rotary = copy.copy(rotary)
        rotary.__dict__["_buffers"] = dict(rotary._buffers)
        rotary.config = config
    typed = "layer_type" in inspect.signature(type(rotary).forward).parameters
    return rotary, list(host.config.layer_types) if typed else [None] * len(host.layers)


def _tables(host: Host) -> list[nn.Module]:
    """The position table; two of them where peft trains it."""
    return [] if host.table is None else [m for m in host.table.modules() if isinstance(m, nn.Embedding)]


class _Needed(PositionContext):
    """Hands down positions where the patch does without, while it is not fully in force."""

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if module.__dict__[STRENGTH].value == 1.0:
            return args, kwargs
        return super().before(module, args, kwargs)


def _add_hooks(host: Host, patches: list[Applied], state: Strength) -> None:
    base, add = host.base, state.handles.append
    guard = CacheGuard(base)
    add(base.register_forward_pre_hook(guard.before, with_kwargs=True, prepend=True))
    add(base.register_forward_hook(guard.after, with_kwargs=True))
    add(base.register_state_dict_pre_hook(refuse_saving))
    if host.rotary is not None and state.rotary is not host.rotary:
        add(host.rotary.register_forward_hook(RotaryBefore(state), with_kwargs=True))
    for applied in patches:
        if applied.table_before is not None:
            grown = [table for table in _tables(host) if not isinstance(table, ReplacedTable)]
            state.handles += [table.register_forward_hook(TableBefore(applied.table_before)) for table in grown]
    if not any(applied.context for applied in patches):
        _add_context(host, patches, state)


def _add_context(host: Host, patches: list[Applied], state: Strength) -> None:
    """Rotations that need no positions when fully in force (NoPE) need them, and the strength, otherwise."""
    context = _Needed(
        packs_by_position=host.family.packs_by_position,
        required=None,
        table_offset=None,
        encodings=" + ".join(applied.names for applied in patches),
        base=host.base,
    )
    state.handles.append(host.base.register_forward_pre_hook(context.before, with_kwargs=True))
    state.handles.append(host.base.register_forward_hook(context.after, with_kwargs=True))
    for block, parent in zip(host.layers, host.attentions, strict=True):
        state.handles += handoff.install(block, parent)
