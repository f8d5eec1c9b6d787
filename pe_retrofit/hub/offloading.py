"""Learned positions stay in memory when accelerate offloads the layers they belong to.

accelerate brings the weights of a module back while that module runs. An encoding is not run by the model but read by
the attention around it, so its weights, which are few, are brought back once and stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..sites import Installed


def keep_positions(model: nn.Module) -> None:
    """Bring the weights of all installed encodings back to the devices they run on, and take their hooks off."""
    for place in model.modules():
        if isinstance(place, Installed):
            for module in place.modules():
                hooks = list(_offloading(module.__dict__.get("_hf_hook")))
                if hooks:
                    _bring_back(module, hooks[0])


def _offloading(hook: Any) -> Iterator[Any]:
    for inner in getattr(hook, "hooks", [hook]):
        if getattr(inner, "offload", False) and inner.weights_map is not None:
            yield inner


def _bring_back(module: nn.Module, hook: Any) -> None:
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import set_module_tensor_to_device

    device = "cpu" if hook.execution_device is None else hook.execution_device
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.device.type == "meta":
            set_module_tensor_to_device(module, name, device, value=hook.weights_map[name], dtype=parameter.dtype)
    remove_hook_from_module(module)
