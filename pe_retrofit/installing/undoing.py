"""Take a patch back, and drop compiled code that was traced with it."""

from __future__ import annotations

import torch
from torch import nn

from ..patchers import rotation, table
from ..patchers.family import Host
from .applied import CHILD, KERNEL, Applied


def undo(host: Host, applied: Applied) -> None:
    """Bring back what ``applied`` says was there, however far installing came."""
    for handle in applied.handles:
        handle.remove()
    for layer in applied.children:
        for name in (CHILD, KERNEL):
            if hasattr(host.attentions[layer], name):
                delattr(host.attentions[layer], name)
    if applied.input_child:
        delattr(host.base, CHILD)
    for key, value in applied.config_before.items():
        setattr(host.config, key, value)
    if applied.rotary_before is not None:
        rotation.restore_rotary(host, applied.rotary_before)
    if applied.table_before is not None:
        table.restore_table(host, applied.table_before)
        applied.table_before.weight.requires_grad_(applied.table_trained)
        table.restore_buffers(host, applied.buffers_before)
    if applied.attention_before is not None:
        host.base.set_attn_implementation(applied.attention_before)


def forget_compiled(model: nn.Module) -> None:
    """Drop compiled code if a part of the model is compiled: it was traced without, or with, the hooks of a patch.

    torch can only drop all there is in the process; what is still needed is compiled again at its next call.
    """
    for module in model.modules():
        own = vars(module)
        traced = hasattr(own.get("forward"), "_torchdynamo_orig_callable") or own.get("_compiled_call") is not None
        if traced or own.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules:
            torch.compiler.reset()
            return
