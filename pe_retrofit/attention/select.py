"""Which kernel runs a call: from what the encodings declare, the call needs and the device has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..sites import BiasEncoding, RelativeScore, ScoreEncoding
from .blockwise import blockwise_attention
from .call import Call
from .dense import dense_attention
from .flex import flex_attention_kernel
from .fused import fused_attention
from .keyed import keyed_attention
from .merged import merged_attention
from .recomputed import recomputed
from .reference import eager_attention
from .separable import separable_attention
from .skewed import skewed_attention
from .toeplitz import toeplitz_attention

KERNELS: dict[str, Callable[[Call], Tensor]] = {
    "separable": separable_attention,
    "toeplitz": toeplitz_attention,
    "skewed": skewed_attention,
    "merged": merged_attention,
    "keyed": keyed_attention,
    "dense": dense_attention,
    "blockwise": blockwise_attention,
    "flex": flex_attention_kernel,
    "eager": lambda call: eager_attention(call)[0],
}
"""Kernels by name, as ``patch_model(..., kernel=...)`` takes them."""

GENERAL = ("blockwise", "eager")
"""Kernels that run every call."""

WITHOUT_GRADIENT = ("skewed", "merged", "keyed")
"""Kernels whose backward pass is the blockwise reference, recomputed."""


def obstacle(kernel: str, call: Call) -> str | None:
    """Why a kernel cannot run a call, in words; None when it can."""
    special = [
        word
        for word, present in (("soft-capping", call.softcap is not None), ("attention sinks", call.sinks is not None))
        if present
    ]
    if kernel in GENERAL:
        return None
    if call.scores and kernel not in ("skewed", "keyed"):
        return "it knows no scores of queries and keys"
    if call.pieces and kernel != "merged":
        return "it knows no piecewise rotation"
    if kernel == "skewed":
        return _skewed_obstacle(call, special)
    if kernel == "keyed":
        return _keyed_obstacle(call, special)
    if kernel == "merged":
        return _merged_obstacle(call, special)
    if kernel == "dense":
        return _dense_obstacle(call, special)
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


def _skewed_obstacle(call: Call, special: Sequence[str]) -> str | None:
    if not call.scores or not all(isinstance(e, RelativeScore) and not e.has_values for e in call.scores):
        return "scores of the distance, without value vectors, are needed"
    if call.shift is None:
        return "positions that grow by one per token are needed"
    if call.dropout:
        return "it has no dropout"
    return f"it has no {' or '.join(special)}" if special else None


def _keyed_obstacle(call: Call, special: Sequence[str]) -> str | None:
    if not call.scores or any(type(e).key_bias is ScoreEncoding.key_bias for e in call.scores):
        return "scores of the key alone are needed"
    if call.biases or call.pieces:
        return "it knows no biases and no piecewise rotation"
    if call.dropout:
        return "it has no dropout"
    return f"it has no {' or '.join(special)}" if special else None


def _merged_obstacle(call: Call, special: Sequence[str]) -> str | None:
    if not call.pieces:
        return "a piecewise rotation over more tokens than its first piece holds is needed"
    if call.biases or call.scores:
        return "it adds no biases or scores"
    if call.dropout:
        return "it has no dropout"
    if call.query.device.type != "cpu":
        return "it runs on the CPU"
    return f"it has no {' or '.join(special)}" if special else None


def _dense_obstacle(call: Call, special: Sequence[str]) -> str | None:
    if not call.biases:
        return "a bias is needed"
    if call.dropout:
        return "it has no dropout"
    if call.query.device.type != "cpu" and call.query.dtype in (torch.float16, torch.bfloat16):
        return "PyTorch's fused attention takes a float32 bias in half precision on the CPU only"
    return f"it has no {' or '.join(special)}" if special else None


def order(device_type: str, *, training: bool) -> tuple[str, ...]:
    """Kernels from the fastest to the most general, on a kind of device."""
    if device_type == "cuda":
        return ("separable", "flex", "dense", "blockwise")
    return (
        ("separable", "toeplitz", "dense", "blockwise") if training else ("toeplitz", "separable", "dense", "blockwise")
    )


def choose(call: Call) -> str:
    """Name of the fastest kernel that can run a call."""
    if call.pieces or call.scores:
        names: tuple[str, ...] = ("merged", "skewed", "keyed", "blockwise")
    else:
        names = order(call.query.device.type, training=call.trains_bias or call.dropout > 0)
    return next(name for name in names if obstacle(name, call) is None)


def candidates(
    biases: Sequence[BiasEncoding],
    device_type: str,
    *,
    scores: Sequence[ScoreEncoding] = (),
    pieces: bool = False,
    training: bool = False,
) -> list[str]:
    """Kernels that what the encodings declare allows, in the order they are tried.

    Args:
        biases, scores: what is added to the scores.
        pieces: whether the rotation is piecewise.
    """
    if scores or pieces:
        declared = {
            "merged": pieces and not biases and not scores and device_type == "cpu",
            "skewed": not pieces and all(isinstance(e, RelativeScore) and not e.has_values for e in scores),
            "keyed": not (pieces or biases) and all(type(e).key_bias is not ScoreEncoding.key_bias for e in scores),
        }
        return [*(name for name, fits in declared.items() if fits), "blockwise"]
    declared = {
        "separable": bool(biases) and all(encoding.slopes() is not None for encoding in biases),
        "toeplitz": all(encoding.toeplitz for encoding in biases),
        "flex": all(encoding.toeplitz for encoding in biases),
    }
    return [name for name in order(device_type, training=training) if declared.get(name, True)]


def run(call: Call, kernel: str = "auto") -> Tensor:
    """Output ``[b, h, q, d]`` of a call.

    Raises:
        UnsupportedError: a kernel was forced that cannot run the call.
    """
    if _plain(call):
        return fused_attention(call)
    if kernel == "auto":
        kernel = choose(call)
    elif (reason := obstacle(kernel, call)) is not None:
        raise UnsupportedError(
            f"kernel={kernel!r} cannot run this call: {reason}. Use kernel='auto' or 'blockwise', which runs all."
        )
    if kernel in ("toeplitz", "separable", "flex", "eager") or call.dropout:
        return KERNELS[kernel](call)
    heard = replace(
        call,
        biases=[encoding for encoding in call.biases if not encoding.silent],
        scores=[encoding for encoding in call.scores if not encoding.silent],
    )
    if not call.trains:
        return _forward(heard, kernel)
    if kernel in WITHOUT_GRADIENT or len(heard.biases) + len(heard.scores) < len(call.biases) + len(call.scores):
        return recomputed(
            lambda again: _forward(replace(again, biases=heard.biases, scores=heard.scores), kernel), call
        )
    return KERNELS[kernel](call)


def _plain(call: Call) -> bool:
    """Whether nothing is asked for that PyTorch's attention lacks."""
    special = call.softcap is not None or call.sinks is not None
    return not (call.biases or call.scores or call.pieces or special)


def _forward(call: Call, kernel: str) -> Tensor:
    if _plain(call):
        return fused_attention(call)
    return KERNELS[choose(call) if obstacle(kernel, call) else kernel](call)
