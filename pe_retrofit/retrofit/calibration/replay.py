"""Run single layers of a model on stored states, and look at the queries and keys of their attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.call import Call
from ...attention.interface import OBSERVER
from ...patchers.family import Host


@dataclass
class Arguments:
    """What a layer is called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Seen(Exception):  # noqa: N818  (no error: it ends a forward pass that has shown what was wanted)
    pass


@torch.no_grad()
def record(host: Host, ids: Tensor) -> tuple[list[Tensor], list[Arguments]]:
    """One forward over ``ids [1, n]``: the states ``[1, n, hidden_size]`` that enter each layer, and all else."""
    states: list[Tensor] = []
    others: list[Arguments] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        states.append(args[0] if args else rest.pop("hidden_states"))
        others.append(Arguments(args[1:], rest))

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in host.layers]
    cache = {"use_cache": False} if host.family.rotary else {}
    try:
        host.base(input_ids=ids, attention_mask=torch.ones_like(ids), **cache)
    finally:
        for handle in handles:
            handle.remove()
    return states, others


@torch.no_grad()
def run_layer(host: Host, layer: int, states: Tensor, others: Arguments) -> Tensor:
    """States ``[1, n, hidden_size]`` after a layer."""
    output = host.layers[layer](states, *others.args, **others.kwargs)
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def observe(host: Host, layer: int, states: Tensor, others: Arguments) -> Call:
    """The attention call of a layer on ``states``; nothing behind it is computed."""
    seen: list[Call] = []

    def keep(call: Call) -> None:
        seen.append(call)
        raise _Seen

    with _observed(host.attentions[layer], keep), suppress(_Seen):
        run_layer(host, layer, states, others)
    return seen[0]


@contextmanager
def _observed(attention: nn.Module, observer: Any) -> Iterator[None]:
    before = getattr(attention, OBSERVER, None)
    setattr(attention, OBSERVER, observer)
    try:
        yield
    finally:
        if before is None:
            delattr(attention, OBSERVER)
        else:
            setattr(attention, OBSERVER, before)
