"""Run a model over a text segment by segment: outputs, likelihoods, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from ..patchers.family import find_host
from .caches import SegmentCache
from .segments import IGNORED, Segment, counted, segment_loss, segments

CHUNK = 512
"""Rows of logits that are widened to float32 at a time."""


@dataclass(frozen=True)
class Streamed:
    """What a model said about one segment.

    Attributes:
        segment: the stretch of text.
        output: what the model returned: ``logits`` ``[b, l, vocabulary]`` and the rest.
        cache: the memory after this segment.
    """

    segment: Segment
    output: Any
    cache: Any


@dataclass(frozen=True)
class SegmentNll:
    """Likelihood of one segment.

    Attributes:
        start, stop: which tokens of the input.
        tokens: predictions that count.
        nll: sum of their negative log-likelihoods in nats, added up in float64.
    """

    start: int
    stop: int
    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        """``exp(nll / tokens)``; NaN without a prediction."""
        return math.exp(self.nll / self.tokens) if self.tokens else math.nan


@dataclass(frozen=True)
class TrainStep:
    """What a training step over a text did.

    Attributes:
        loss: mean negative log-likelihood over all predictions that count.
        tokens: their number.
        cache: the memory at the end; pass it to the next step when its text goes on where this one ended.
    """

    loss: float
    tokens: int
    cache: Any


def stream(
    model: Any,
    input_ids: Tensor,
    segment: int = 512,
    memory: int = 512,
    *,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> Iterator[Streamed]:
    """Run ``model`` over ``input_ids`` ``[b, n]`` by segments, each seeing the ``memory`` tokens before it.

    Size in use depends on ``segment + memory``, not on ``n``. Gradients of a segment do not reach earlier ones.

    Args:
        model: a decoder with a relative encoding.
        input_ids: int64 ``[b, n]``.
        segment: tokens per pass.
        memory: tokens kept between passes; not used when a cache is given.
        labels: see :func:`segments`; where ``attention_mask`` is 0 nothing is predicted, nor from there.
        attention_mask: ``[b, n]``, or ``[b, seen + n]`` with a cache that has seen tokens; 1 for real tokens.
        cache: a :class:`SegmentCache` or :class:`SinkCache` to go on with; a fresh ``SegmentCache`` by default.
        **kwargs: for every call of the model.

    Raises:
        UnsupportedError: the encoding is not relative, or gradient checkpointing is on while training.
        ConfigError: sizes that do not fit.
    """
    _check_checkpointing(model)
    labels = input_ids if labels is None else labels
    cache = SegmentCache(model, memory) if cache is None else cache
    seen = int(cache.get_seq_length())
    if attention_mask is not None:
        total = seen + input_ids.shape[1]
        if attention_mask.shape != (input_ids.shape[0], total):
            raise ConfigError(
                f"attention_mask of shape {tuple(attention_mask.shape)} must cover all tokens: {seen} that the cache "
                f"has seen and {input_ids.shape[1]} new ones, [{input_ids.shape[0]}, {total}]."
            )
        labels = _countable(labels, attention_mask)
    return _run(model, segments(input_ids, labels, segment), cache, seen, attention_mask, kwargs)


def _run(
    model: Any, parts: Iterator[Segment], cache: Any, seen: int, mask: Tensor | None, kwargs: dict[str, Any]
) -> Iterator[Streamed]:
    device = find_host(model).base.device
    for part in parts:
        more = dict(kwargs)
        if mask is not None:
            more["attention_mask"] = mask[:, : seen + part.stop].to(device)
        output = model(input_ids=part.input_ids.to(device), past_key_values=cache, use_cache=True, **more)
        yield Streamed(part, output, cache)


@torch.no_grad()
def stream_nll(
    model: Any, input_ids: Tensor, segment: int = 512, memory: int = 512, **more: Any
) -> Iterator[SegmentNll]:
    """Likelihood of a text, segment by segment; arguments as for :func:`stream`.

    >>> parts = list(stream_nll(model, input_ids, segment=1024, memory=2048))
    >>> perplexity(parts)
    """
    parts = stream(model, input_ids, segment, memory, **more)
    while True:
        with torch.no_grad():
            item = next(parts, None)
            if item is None:
                return
            logits, targets = item.output.logits.flatten(0, 1), item.segment.targets.flatten()
            nll = sum(
                segment_loss(logits[None, i : i + CHUNK], targets[None, i : i + CHUNK]).double().item()
                for i in range(0, len(targets), CHUNK)
            )
        yield SegmentNll(item.segment.start, item.segment.stop, counted(item.segment.targets), nll)


def perplexity(parts: Any) -> float:
    """Perplexity over several :class:`SegmentNll`; NaN without a prediction."""
    parts = list(parts)
    tokens = sum(part.tokens for part in parts)
    return math.exp(math.fsum(part.nll for part in parts) / tokens) if tokens else math.nan


def train_step(
    model: Any,
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    segment: int = 512,
    memory: int = 512,
    attention_mask: Tensor | None = None,
    cache: Any = None,
    backward: Callable[[Tensor], Any] | None = None,
) -> TrainStep:
    """Truncated back-propagation through time: forward and backward of one segment after the other.

    The gradients add up to those of the mean loss over all predictions, with the memory taken as constant. Only one
    segment's activations exist at a time. Zeroing gradients and stepping the optimiser are left to the caller.

    Args:
        model: a decoder with a relative encoding, in training mode.
        input_ids, labels, segment, memory, attention_mask, cache: as for :func:`stream`.
        backward: what to call with each segment's loss, e.g. ``accelerator.backward``; ``loss.backward()`` by default.

    Returns:
        The loss, and the memory to go on with.

    Raises:
        ConfigError: no label counts.
        UnsupportedError: as for :func:`stream`.
    """
    marked = input_ids if labels is None else labels
    if attention_mask is not None:
        marked = _countable(marked, attention_mask)
    tokens = counted(marked[:, 1:])
    if not tokens:
        raise ConfigError(f"No label counts: all of labels[:, 1:] are {IGNORED}. Give at least one token to predict.")
    cache = SegmentCache(model, memory) if cache is None else cache
    total = 0.0
    parts = stream(model, input_ids, segment, memory, labels=marked, attention_mask=attention_mask, cache=cache)
    for item in parts:
        loss = segment_loss(item.output.logits, item.segment.targets) / tokens
        total += loss.detach().double().item()
        if loss.requires_grad:
            loss.backward() if backward is None else backward(loss)
        del item, loss
    return TrainStep(total, tokens, cache)


def _countable(labels: Tensor, mask: Tensor) -> Tensor:
    """Labels without those of padding, and of what follows padding; the mask ends where the labels end."""
    real = mask[:, -labels.shape[1] :].to(labels.device) != 0
    told = torch.nn.functional.pad(real[:, :-1], (1, 0), value=True)
    return labels.masked_fill(~(real & told), IGNORED)


def _check_checkpointing(model: Any) -> None:
    names = ("gradient_checkpointing", "activation_checkpointing")
    if model.training and any(getattr(module, name, False) for module in model.modules() for name in names):
        raise UnsupportedError(
            "Gradient checkpointing is on, under which transformers' layers drop the cache, and with it the memory of "
            "earlier segments. Call model.gradient_checkpointing_disable(): one segment at a time needs little space, "
            "and shorter segments less."
        )
