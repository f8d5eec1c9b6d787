"""Have a model run through this package's attention function for a while, patched or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .interface import NAME, register


@contextmanager
def attending(
    base: Any, attentions: Sequence[nn.Module], attribute: str, values: Sequence[Any], otherwise: str
) -> Iterator[None]:
    """Within, a model attends through :data:`NAME`, and each attention module carries an attribute that it looks at.

    Args:
        base: of transformers.
        attentions: its attention modules.
        attribute: one that the attention function knows.
        values: one per attention module.
        otherwise: ends the sentence that refuses a model: what it cannot do.

    Raises:
        UnsupportedError: the model does not let its attention function be chosen.
    """
    before = base.config._attn_implementation or "eager"
    register()
    try:
        if before != NAME:
            base.set_attn_implementation(NAME)
        if base.config._attn_implementation != NAME:
            raise UnsupportedError(
                f"{type(base).__name__} does not let its attention function be chosen (no AttentionInterface), so "
                f"{otherwise}"
            )
        for attention, value in zip(attentions, values, strict=True):
            setattr(attention, attribute, value)
        yield
    finally:
        for attention in attentions:
            attention.__dict__.pop(attribute, None)
        if before != NAME:
            base.set_attn_implementation(before)
