"""What this machine computes fast."""

from __future__ import annotations

import platform

import torch


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """The dtype to compute in: bfloat16, but float32 on a CPU without instructions for bfloat16.

    On x86 these are AMX and AVX512-BF16. Without them torch takes bfloat16 products apart in software, which was 7 to
    140 times slower than float32 where it was measured (two AMD EPYC without AVX-512).
    """
    if device.partition(":")[0] != "cpu":
        return torch.bfloat16
    if platform.machine().lower() in ("x86_64", "amd64"):
        capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        capable = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if capable else torch.float32
