"""Time and peak memory of one call."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


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
    with _peak(device) as peak:
        start = time.perf_counter()
        value = call()
        _wait(device)
        seconds = time.perf_counter() - start
    return Measured(seconds, peak.get("peak"), peak.get("extra"), value)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak(device: torch.device) -> Iterator[dict[str, int]]:
    found: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found["peak"] = torch.cuda.max_memory_allocated(device)
        found["extra"] = found["peak"] - before
    elif sys.platform == "linux" and CLEAR.exists():
        _release_free_memory()
        before = _status("VmRSS")
        CLEAR.write_text("5")  # resets the high-water mark of this process
        yield found
        found["peak"] = _status("VmHWM")
        found["extra"] = max(0, found["peak"] - before)
    else:
        yield found


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _release_free_memory() -> None:
    """Give freed memory back, so that one variant's leftovers do not count as the next one's."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
