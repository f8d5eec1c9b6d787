"""Shifted sparse attention (LongLoRA's S2-Attn) while training: cheaper attention over long rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..attention.grouped import GROUP
from ..attention.within import attending
from ..errors import ConfigError, UnsupportedError
from ..patchers.family import find_host


@contextmanager
def shifted_sparse(model: Any, *, group: int) -> Iterator[None]:
    """Within, the model attends in groups of tokens while it is in training mode, half of the heads in shifted groups.

    In evaluation mode it attends to everything, also within. The model may be patched or not; distances inside a group
    are the true ones. Keep the backward pass within too, for gradient checkpointing runs the forward again. A fade that
    is still at strength 0 computes the original attention, over everything.

    Args:
        model: a decoder (Llama or GPT-NeoX family), wrapped by peft or not.
        group: tokens per group, even; it has to divide the length of every row. LongLoRA took a quarter of it.

    Raises:
        ConfigError: ``group`` is not an even number of at least 2.
        UnsupportedError: the model is an encoder, or does not let its attention be chosen; and, from the forward pass,
            where a row is padded, packed, or no multiple of ``group``, or there is a cache.

    The teacher of a distillation runs in evaluation mode, so it attends to everything too.

    Source: Chen et al., LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models, 2023, arXiv 2309.12307.
    Its published code lets the first tokens of the shifted heads see the last ones; here they are groups of their own.
    """
    check_shifted(model, group)
    host = find_host(model)
    groups = [group] * len(host.attentions)
    with attending(host.base, host.attentions, GROUP, groups, "it cannot attend in groups. Train it without."):
        yield


def check_shifted(model: Any, group: int) -> None:
    """Refuse what :func:`shifted_sparse` refuses before a forward pass: a wrong group, an encoder."""
    if isinstance(group, bool) or not isinstance(group, int) or group < 2 or group % 2:
        raise ConfigError(f"group={group!r} must be an even whole number of at least 2: half of it is the shift.")
    host = find_host(model)
    if not host.causal() or host.rotary is None:
        raise UnsupportedError(
            f"Shifted sparse attention is for decoders with rotary embeddings, and {type(host.base).__name__} is not "
            "one. Train it without."
        )
