"""LoRA on a model that was sharded as it was loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from .devices import kind_of


def check_lora(model: nn.Module, modules_to_save: Sequence[str] | None) -> None:
    """Refuse what peft cannot put on a sharded model; call it before ``get_peft_model``.

    Args:
        model: as it was loaded, sharded or not.
        modules_to_save: of the ``LoraConfig``.

    Raises:
        UnsupportedError: modules are to be trained whole, of which peft makes copies, and FSDP2 has sharded them.
    """
    if modules_to_save and (kind_of(model) or "").startswith("fsdp2"):
        raise UnsupportedError(
            f"modules_to_save={list(modules_to_save)} makes peft copy these modules, and FSDP2 has sharded the model "
            "already: copies of shards are never gathered. Add LoRA to the whole model and shard it then (accelerate's "
            "FSDP2 does so), or choose DDP, or an encoding without learned parameters."
        )


def mend_lora(model: nn.Module, *, redraw: bool = True) -> int:
    """Make peft's LoRA layers fit the shards of a tensor-parallel model; on any other model nothing is done.

    peft (0.21) makes the part of an adapter that lies along a sharded dimension as wide as one shard, and leaves it
    saying so, where transformers' hooks read the whole width: the first forward pass of an adapted ``o_proj`` or
    ``down_proj`` fails. The widths are set right here. It also draws each shard of ``lora_A`` by itself, from the same
    numbers everywhere and for too narrow an input; one draw for the whole replaces that.

    Call it after ``get_peft_model`` on every process, with the same random state on all of them.

    Args:
        model: wrapped by peft.
        redraw: give ``lora_A`` of layers that are sharded along their input new random numbers; False where an adapter
            was loaded.

    Returns:
        How many layers were mended.
    """
    from torch.distributed.tensor import DTensor

    count = 0
    for module in model.modules():
        plan = getattr(getattr(module, "base_layer", None), "_hf_tp_plan", None)
        if plan not in ("colwise", "rowwise") or not hasattr(module, "lora_A"):
            continue
        base: Any = module.base_layer
        for first, last in zip(_values(module.lora_A), _values(module.lora_B), strict=True):
            first.in_features, last.out_features = base.in_features, base.out_features
            if redraw and isinstance(first.weight, DTensor):
                _draw(first.weight)
            count += 1
    return count


@torch.no_grad()
def _draw(weight: Any) -> None:
    """peft's start of ``lora_A``, for the whole of it: each process takes its shard of the same numbers."""
    from torch.distributed.tensor import distribute_tensor

    local = weight.to_local()
    whole = torch.empty(weight.shape, dtype=local.dtype, device=local.device)
    nn.init.kaiming_uniform_(whole, a=math.sqrt(5))
    local.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local())


def _values(modules: Any) -> list[Any]:
    return list(modules.values())
