"""What a machine computes fast."""

from __future__ import annotations

import pytest
import torch

from pe_retrofit.machine import fast_dtype


@pytest.mark.parametrize(("amx", "avx", "kind"), [(1, 0, "bfloat16"), (0, 1, "bfloat16"), (0, 0, "float32")])
def test_bfloat16_needs_instructions(amx: int, avx: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx))
    assert fast_dtype() == getattr(torch, kind)
    assert fast_dtype("cuda:0") == torch.bfloat16


def test_other_architectures_ask_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    wanted = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    assert fast_dtype() == wanted
