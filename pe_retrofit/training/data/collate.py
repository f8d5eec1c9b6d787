"""Rows to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .packing import IGNORED


class Collator:
    """Puts rows under each other and pads them on the right to the longest.

    Padding has the label -100 and is masked. Where all rows are equally long and none needs a mask there is none, which
    is the fastest. Batches of packed rows carry ``use_cache=False``: with a cache transformers' models do not mask
    documents from each other.

    Args:
        pad: token for padding; None where rows are never padded.
        masks: rows differ in length, so that every batch has a mask.
        packed: rows hold several documents, which position ids tell apart.
    """

    def __init__(self, pad: int | None, *, masks: bool, packed: bool) -> None:
        self.pad = pad
        self.masks = masks
        self.packed = packed

    def __call__(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """``input_ids``, ``labels`` and what else the rows have, ``[b, n]`` each."""
        rows = [row for item in items for row in _single(item)]
        longest = max(len(row["input_ids"]) for row in rows)
        uneven = any(len(row["input_ids"]) < longest for row in rows)
        if self.masks or uneven:
            rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
        batch: dict[str, Any] = {
            key: torch.stack([self._padded(key, row[key], longest) for row in rows]) for key in rows[0]
        }
        return {**batch, "use_cache": False} if self.packed else batch

    def _padded(self, key: str, values: Tensor, length: int) -> Tensor:
        missing = length - len(values)
        if not missing:
            return values
        if key == "position_ids":  # masked, so any that the model knows
            fill = int(values[-1])
        else:
            fill = {"labels": IGNORED, "attention_mask": 0}.get(key, self.pad or 0)
        return torch.nn.functional.pad(values, (0, missing), value=fill)


def _single(item: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    item = {key: torch.as_tensor(values) for key, values in item.items()}
    if item["input_ids"].dim() == 1:
        yield item
    else:
        for i in range(len(item["input_ids"])):
            yield {key: values[i] for key, values in item.items()}
