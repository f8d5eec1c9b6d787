"""A patch partly in force, or not at all: over the whole matrix, and in between against numbers worked out here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from matrix import Cell, cells, logits, tokens

from pe_retrofit.installing.strength import original, set_strength


@pytest.mark.parametrize("cell", cells())
def test_original_is_the_unpatched_model(cell: Cell) -> None:
    stock, model = cell.host.fresh(), cell.patched()
    ids = tokens(2, min(cell.length, 30))
    patched = logits(model, ids)
    with original(model):
        assert torch.equal(logits(model, ids), logits(stock, ids))
        with original(model):
            pass
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        assert torch.equal(logits(model, ids, attention_mask=mask), logits(stock, ids, attention_mask=mask))
    assert torch.equal(logits(model, ids), patched)
    set_strength(model, 0)
    assert torch.equal(logits(model, ids), logits(stock, ids))
    set_strength(model, 1.0)
    assert torch.equal(logits(model, ids), patched)
