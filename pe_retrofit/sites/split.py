"""Tensor parallelism: each process has some of the heads, and the encoding's parameters whole.

What is added for these heads is cut from what the encoding says of all of them. Each process then knows the gradient of
its own heads alone, so the processes add up their gradients before these reach the parameters, which thereby stay the
same everywhere. This happens within the backward pass, so accumulated gradients, recomputed layers and every optimiser
find the whole gradient.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

QUERIES = ("q_proj", "query_key_value")
"""Names of the projection whose rows are the query heads, in order."""


@dataclass(frozen=True)
class Split:
    """The part of an attention that a process has.

    Attributes:
        heads: of the query heads.
        group: the processes that share the layer.
    """

    heads: slice
    group: Any


def split_of(attention: nn.Module, num_heads: int) -> Split | None:
    """Which query heads of ``num_heads`` this process has; None: all, or it cannot be told.

    Read off the mesh and the placement of the sharded query projection, never off shapes.
    """
    weight = _sharded_weight(attention)
    if weight is None:
        return None
    from torch.distributed.tensor import Shard

    mesh = weight.device_mesh
    if mesh.ndim != 1 or not isinstance(weight.placements[0], Shard) or weight.placements[0].dim != 0:
        return None
    total = weight.shape[0]
    rows = -(-total // mesh.size())  # of each process but the last ones, as torch.chunk deals them out
    first = min(total, mesh.get_local_rank() * rows)
    last = min(total, first + rows)
    per_head, rest = divmod(total, num_heads)
    if rest or first % per_head or last % per_head:
        return None
    return Split(slice(first // per_head, last // per_head), mesh.get_group())


def group_of(attention: nn.Module) -> Any:
    """The processes that share an attention whose query projection is sharded by rows; None: it is whole here."""
    weight = _sharded_weight(attention)
    return None if weight is None or weight.device_mesh.ndim != 1 else weight.device_mesh.get_group()


def _sharded_weight(attention: nn.Module) -> Any:
    for name in QUERIES:
        projection = getattr(attention, name, None)
        projection = getattr(projection, "base_layer", projection)  # LoRA's wrapper
        weight = getattr(projection, "weight", None)
        if hasattr(weight, "device_mesh") and hasattr(weight, "placements"):
            return weight
    return None


def synced(module: Any, group: Any) -> Any:
    """A view of a module whose parameters get the sum of the gradients of all processes of a group."""
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters()):
        return module
    return _synced(module, group, {})


def _synced(module: Any, group: Any, known: dict[nn.Parameter, Tensor]) -> Any:
    made = copy.copy(module)
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad and parameter not in known:
            known[parameter] = _SumOfGradients.apply(parameter, group)
    parameters = {n: known.get(p, p) if p is not None else None for n, p in module._parameters.items()}
    made.__dict__["_parameters"] = parameters
    made.__dict__["_modules"] = {n: _synced(m, group, known) for n, m in module._modules.items()}
    return made


class _SumOfGradients(torch.autograd.Function):
    """The tensor itself; its gradient is the sum of those of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None
