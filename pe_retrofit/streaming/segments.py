"""A text cut into segments, each with what is to be predicted from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigError
from .checks import require_count

IGNORED = -100
"""A target that does not count."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a text.

    Attributes:
        start, stop: which tokens of the input these are.
        input_ids: int64 ``[b, stop - start]``.
        targets: int64 ``[b, stop - start]``, the token that follows each; :data:`IGNORED` does not count. The last
            target of a segment is the first token of the next one, so no prediction is lost between segments.
    """

    start: int
    stop: int
    input_ids: Tensor
    targets: Tensor


def segments(input_ids: Tensor, labels: Tensor | None = None, length: int = 512) -> Iterator[Segment]:
    """Cut ``[b, n]`` into segments of ``length`` tokens; the last may be shorter.

    Args:
        input_ids: int64 ``[b, n]``.
        labels: int64 ``[b, n]``, the tokens themselves with :data:`IGNORED` where they do not count, as transformers
            takes them; ``input_ids`` by default.
        length: tokens per segment, ``>= 1``.

    Raises:
        ConfigError: shapes that do not fit, or ``length < 1``.
    """
    length = require_count("length", length, 1)
    labels = input_ids if labels is None else labels
    if input_ids.dim() != 2 or labels.shape != input_ids.shape:
        raise ConfigError(
            f"input_ids of shape {tuple(input_ids.shape)} and labels of shape {tuple(labels.shape)}: both must be "
            "[batch, tokens], of the same size."
        )
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return _cut(input_ids, targets, length)


def _cut(input_ids: Tensor, targets: Tensor, length: int) -> Iterator[Segment]:
    for start in range(0, input_ids.shape[1], length):
        stop = min(start + length, input_ids.shape[1])
        yield Segment(start, stop, input_ids[:, start:stop], targets[:, start:stop])


def segment_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods of the targets that count, in nats: one number, float32 or wider.

    Args:
        logits: ``[b, l, vocabulary]``.
        targets: int64 ``[b, l]``, of :class:`Segment`.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = targets.to(logits.device)
    return functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def counted(targets: Tensor) -> int:
    """How many targets count."""
    return int((targets != IGNORED).sum())
