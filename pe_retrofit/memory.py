"""Peak memory of a stretch of work, and whether an error means that memory ran out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Bytes in use at most (``peak``), and that less what was in use before (``extra``), once the block has ended.

    On CUDA of the device, on Linux of the process; elsewhere the mapping stays empty.
    """
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


def exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out; PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _release_free_memory() -> None:
    """Give freed memory back, so that one measurement's leftovers do not count as the next one's."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
