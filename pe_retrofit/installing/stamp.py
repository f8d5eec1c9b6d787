"""A mark in the module tree of a patched model, which an adapter's files can ask for.

peft (0.21) reads nothing of ours, and loads an adapter onto an unpatched base without a word. One option of its own
config must find the module it names: ``trainable_token_indices``. An adapter that names the stamp there loads with
plain ``PeftModel.from_pretrained`` on a base that is patched the same way, and on no other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ..patchers.family import Host

PREFIX = "patched_by_pe_retrofit_"


class Stamp(nn.Module):
    """No parameters, no buffers, never called; it looks enough like an embedding of one token for peft to wrap it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(1, 1, device="cpu")  # no parameter, so it is in no state dict
        self.embedding_dim = self.infeatures = self.outfeatures = 1


def stamp_name(patches: list[dict[str, Any]]) -> str:
    """Name of the stamp of a model with these patches (``encodings`` and ``layers`` each)."""
    text = json.dumps([[p["encodings"], p["layers"]] for p in patches], sort_keys=True)
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:8]


def stamp(host: Host, patches: list[dict[str, Any]]) -> None:
    """Give the base model the stamp of its patches, instead of the one it had."""
    unstamp(host)
    host.base.add_module(stamp_name(patches), Stamp())


def unstamp(host: Host) -> None:
    """Take the stamp off."""
    for name in [n for n, _ in host.base.named_children() if n.startswith(PREFIX)]:
        delattr(host.base, name)
