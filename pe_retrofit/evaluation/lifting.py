"""A patched model without its patch for a while, and afterwards exactly as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ..errors import UnsupportedError
from ..installing.strength import carry_over
from ..patchers.family import find_host
from ..patching import STATE, apply_saved, unpatch_model
from ..positions import STRENGTH
from ..proof import probe

TOKENS = 16


@contextmanager
def lifted(model: Any) -> Iterator[Any]:
    """The model without patch and adapter while the block lasts; learned parameters come back as they were.

    Raises:
        UnsupportedError: the patch is of a kind that cannot be put back exactly (a lengthened table of positions, a
            forced kernel); name a stock model instead.
    """
    host = find_host(model)
    patches = list(getattr(host.base, STATE, []))
    forced = [a.kernel for a in patches if a.kernel not in (None, "auto")]
    names = {entry["name"] for a in patches for entry in a.entries}
    if forced or ("learned" in names and host.table is not None):
        what = f"kernel={forced[0]!r}" if forced else "a lengthened table of positions"
        raise UnsupportedError(
            f"The patch cannot be lifted and put back exactly: it has {what}. Give the stock model "
            "itself: against=stock."
        )
    blocks = [{"encodings": a.entries, "layers": None if a.all_layers else a.layers} for a in patches]
    learned = {name: p for name, p in host.base.named_parameters() if ".position_encoding." in f".{name}"}
    kept = {name: (p.detach().clone(), p.requires_grad) for name, p in learned.items()}
    strength = host.base.__dict__.get(STRENGTH)
    proofs = [copy.copy(a.proof) for a in patches]
    before = probe(host, TOKENS)
    adapter = model.disable_adapter() if hasattr(model, "disable_adapter") and hasattr(model, "peft_config") else None
    unpatch_model(model)
    try:
        with adapter or nullcontext():
            yield model
    finally:
        apply_saved(model, blocks)
        with torch.no_grad():
            for name, parameter in host.base.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name][0])
                    parameter.requires_grad_(kept[name][1])
        for applied, proof in zip(getattr(host.base, STATE), proofs, strict=True):
            applied.proof = proof
        carry_over(host.base, strength)
        if not torch.equal(before, probe(host, TOKENS)):
            raise UnsupportedError("The patch was lifted and put back, and the model differs. Please load it again.")
