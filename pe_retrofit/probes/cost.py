"""What a forward pass costs: the largest tensor on the way, and time. In float32, as models run."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..patchers.family import find_host
from .lab import TRAINED, Lab

PATIENCE = 2.0
"""Seconds of a forward pass from which on times are compared at a shorter length, and for comparing them."""

ROUNDS = 8
"""Passes of each model whose times are compared; the shortest of them counts."""


def finite(lab: Lab, count: int) -> bool:
    """Whether the output over ``count`` tokens is finite."""
    return _run(lab, count)[0]


def largest_tensor(lab: Lab, count: int) -> int:
    """Numbers in the largest tensor that a forward pass over ``count`` tokens allocates."""
    return _run(lab, count)[1]


def power(small: int, large: int, short: int, long: int) -> float:
    """``p`` where ``large / small = (long / short)^p``."""
    return math.log(large / small) / math.log(long / short)


@torch.no_grad()
def _run(lab: Lab, count: int) -> tuple[bool, int]:
    """Whether the output is finite, and the largest tensor on the way to it; once per length."""
    if count not in lab.runs:
        start = time.perf_counter()
        with _Largest() as seen:
            output = lab.single[1](input_ids=lab.tokens(count)).last_hidden_state
        lab.slow |= time.perf_counter() - start > PATIENCE
        lab.runs[count] = bool(torch.isfinite(output).all()), seen.largest
    return lab.runs[count]


def time_ratio(lab: Lab, count: int) -> tuple[float, int]:
    """Shortest time of a forward pass over the unpatched model's, and the length: less where it takes long."""
    limit = TRAINED if find_host(lab.stock).table is not None else 4 * TRAINED if lab.slow else count
    count = min(count, limit)
    ids = lab.tokens(count)
    best = [math.inf, math.inf]
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for place, model in enumerate(lab.single):
            start = time.perf_counter()
            with torch.no_grad():
                model(input_ids=ids)
            best[place] = min(best[place], time.perf_counter() - start)
        if time.perf_counter() - begin > PATIENCE:
            break
    return best[1] / best[0], count


class _Largest(TorchDispatchMode):
    """Notes the largest storage that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and item.device.type != "meta":
                self.largest = max(self.largest, item.untyped_storage().nbytes() // item.element_size())
        return result
