"""Time and peak memory of one call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..memory import peak_memory


@dataclass
class Measured:
    """One measured call.

    Attributes:
        seconds: wall-clock time.
        peak_bytes: highest memory in use during the call, everything included; None where it cannot be measured.
        extra_bytes: the same less what was in use before the call.
        value: what the call returned.
    """

    seconds: float
    peak_bytes: int | None
    extra_bytes: int | None
    value: Any


def measure(call: Callable[[], Any], device: torch.device) -> Measured:
    """Run ``call`` once, with time and peak memory."""
    gc.collect()
    with peak_memory(device) as peak:
        start = time.perf_counter()
        value = call()
        _wait(device)
        seconds = time.perf_counter() - start
    return Measured(seconds, peak.get("peak"), peak.get("extra"), value)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
