"""Common to all tests: offline, one thread, everything repeatable."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from torch.nn.attention import flex_attention

from pe_retrofit import registry

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it ends."""
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))


@pytest.fixture
def untraced_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without the trace that it makes of every new shape on a CPU: the same numbers, ten times faster."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
