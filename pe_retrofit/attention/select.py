"""Which kernel runs a call: from what the encodings declare, the call needs and the device has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..errors import UnsupportedError
from ..sites import BiasEncoding
from .blockwise import blockwise_attention
from .call import Call
from .flex import flex_attention_kernel
from .fused import fused_attention
from .reference import eager_attention
from .separable import separable_attention
from .toeplitz import toeplitz_attention

KERNELS: dict[str, Callable[[Call], Tensor]] = {
    "separable": separable_attention,
    "toeplitz": toeplitz_attention,
    "blockwise": blockwise_attention,
    "flex": flex_attention_kernel,
    "eager": lambda call: eager_attention(call)[0],
}
"""Kernels by name, as ``patch_model(..., kernel=...)`` takes them."""


def obstacle(kernel: str, call: Call) -> str | None:
    """Why a kernel cannot run a call, in words; None when it can."""
    special = [
        word
        for word, present in (("soft-capping", call.softcap is not None), ("attention sinks", call.sinks is not None))
        if present
    ]
    if kernel == "separable":
        if call.dropout and call.query.device.type == "cpu":
            return "PyTorch's fused CPU attention has no dropout"
        if not call.biases or any(encoding.slopes() is None for encoding in call.biases):
            return "a bias of the form -slope * distance under causal attention is needed"
        if not call.causal:
            return "causal attention is needed"
        if call.shift is None and not call.positions.ordered():
            return "positions that never decrease are needed"
    if kernel == "toeplitz":
        if not all(encoding.toeplitz for encoding in call.biases):
            return "a bias that depends on the distance alone is needed"
        if call.shift is None:
            return "positions that grow by one per token are needed"
        if call.dropout and (call.trains_bias or call.query.device.type == "cpu"):
            return "PyTorch's fused attention has no dropout on the CPU, nor with a gradient to the bias"
    if kernel == "flex":
        if not all(encoding.toeplitz for encoding in call.biases):
            return "a bias that depends on the distance alone is needed"
        if call.dropout:
            return "FlexAttention has no dropout"
        if call.sinks is not None:
            return "attention sinks are not supported by it"
    elif kernel in ("separable", "toeplitz") and special:
        return f"it has no {' or '.join(special)}"
    return None


def order(device_type: str, *, training: bool) -> tuple[str, ...]:
    """Kernels from the fastest to the most general, on a kind of device."""
    if device_type == "cuda":
        return ("separable", "flex", "blockwise")
    return ("separable", "toeplitz", "blockwise") if training else ("toeplitz", "separable", "blockwise")


def choose(call: Call) -> str:
    """Name of the fastest kernel that can run a call."""
    names = order(call.query.device.type, training=call.trains_bias or call.dropout > 0)
    return next(name for name in names if obstacle(name, call) is None)


def candidates(biases: Sequence[BiasEncoding], device_type: str, *, training: bool = False) -> list[str]:
    """Kernels that what the encodings declare allows, in the order they are tried."""
    declared = {
        "separable": bool(biases) and all(encoding.slopes() is not None for encoding in biases),
        "toeplitz": all(encoding.toeplitz for encoding in biases),
        "flex": all(encoding.toeplitz for encoding in biases),
    }
    return [name for name in order(device_type, training=training) if declared.get(name, True)]


def run(call: Call, kernel: str = "auto") -> Tensor:
    """Output ``[b, h, q, d]`` of a call.

    Raises:
        UnsupportedError: a kernel was forced that cannot run the call, or the heads are split over processes.
    """
    _check_whole(call)
    if not call.biases and call.softcap is None and call.sinks is None:
        return fused_attention(call)
    if kernel == "auto":
        kernel = choose(call)
    elif (reason := obstacle(kernel, call)) is not None:
        raise UnsupportedError(
            f"kernel={kernel!r} cannot run this call: {reason}. Use kernel='auto' or 'blockwise', which runs all."
        )
    return KERNELS[kernel](call)


def _check_whole(call: Call) -> None:
    """Refuse a part of the heads: slopes and tables hold one entry for each of them."""
    heads = call.query.shape[1]
    local = next((e.host.num_heads for e in call.biases if e.host.num_heads != heads), None)
    if local is not None or type(call.query).__name__ == "DTensor":
        raise UnsupportedError(
            f"The attention got {heads} query heads of the {local or heads} its encoding was made for, or sharded "
            "tensors: the model is split over processes (tensor or context parallel), which is not supported with a "
            "bias or a length-dependent rotation. Load it whole on each process, or use FSDP."
        )
