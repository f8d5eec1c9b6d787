"""Caches of bounded size, for any call that takes ``past_key_values``, ``generate`` included."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache

from ..errors import ConfigError
from ..installing import CHILD
from ..sites import Installed
from .checks import patches_of, require_count, require_relative, require_sinks, windows
from .layers import ForgetfulLayer


class SegmentCache(Cache):
    """Transformer-XL's memory: keys and values of the last ``memory`` tokens, with the gradient stopped.

    A pass over a segment of ``q`` tokens attends to the memory and, causally, to the segment; then the last ``memory``
    tokens of both are kept. Positions go on growing, distances stay below ``memory + q``, size stays the same. With
    ``memory`` at least the length of the text a stream equals one pass over all of it. Sliding-window layers keep no
    more than their window.

    Transformer-XL projects the remembered states anew and trains these projections too; here keys and values themselves
    are remembered, which is the same as long as the weights are. Pretrained models often lean on the first tokens of a
    text: train them by segments, or use ``lm_infinite`` and :class:`SinkCache`, which keep those.

    For every relative encoding. A 2D ``attention_mask`` (left padding) must cover all tokens seen. A prompt given to
    ``generate`` is one segment; feed a long one with :func:`~pe_retrofit.streaming.stream` first. transformers
    computes rotations in float32 from absolute positions: angles are off by up to 0.004 radians at 100,000 tokens, and
    by ten times that at a million.

    Args:
        model: a decoder, patched or not.
        memory: tokens to keep, ``>= 0``.

    Source: Dai, Yang, Yang, Carbonell, Le, Salakhutdinov, "Transformer-XL: Attentive Language Models Beyond a
    Fixed-Length Context", 2019, arXiv 1901.02860, section 3.2.

    Raises:
        UnsupportedError: the model's positions are not relative, or it is no decoder.
        ConfigError: ``memory`` is no whole number of tokens, or less than an input encoding looks back.
    """

    def __init__(self, model: Any, memory: int) -> None:
        memory = require_count("memory", memory, 0)
        host = require_relative(model)
        for encoding in getattr(host.base, CHILD, Installed()).values():
            reach = getattr(encoding, "reach", 0)
            if memory < reach:
                raise ConfigError(
                    f"memory={memory} is less than the {reach} tokens before each one that {encoding.config.name!r} "
                    f"looks at. Use memory={reach} or more."
                )
        widths = windows(host) or [None] * len(host.layers)
        super().__init__(layers=[ForgetfulLayer(memory, window=width) for width in widths])
        self.memory = memory


class SinkCache(Cache):
    """The cache of ``lm_infinite``: the first ``sinks`` tokens and the last ``window``, and nothing between.

    Keys are kept unrotated. Positions are counted anew within what is held: the window moves up to where every first
    token is still further away than ``max(W, L)``, beyond which all distances to it count as ``L``. So angles stay
    small however long the text is. Equal to ``lm_infinite`` without a cache: the same tokens are attended to, at the
    same distances. Rows must be of equal length: padding would take the place of the first tokens.

    Args:
        model: a decoder patched with ``lm_infinite`` in all layers.
        sinks, window: tokens, those of the encoding by default; others are refused.

    Source: Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", 2023, arXiv
    2308.16137; Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks", 2023, arXiv
    2309.17453.

    Raises:
        UnsupportedError: the model is not patched with ``lm_infinite`` in all layers, or has sliding windows.
        ConfigError: ``sinks`` or ``window`` differ from the encoding's.
    """

    def __init__(self, model: Any, sinks: int | None = None, window: int | None = None) -> None:
        host, encoding = require_sinks(model)
        self.sinks, self.window = encoding.config.sinks, encoding.window
        for name, given, own in (("sinks", sinks, self.sinks), ("window", window, self.window)):
            if given is not None and given != own:
                raise ConfigError(
                    f"{name}={given!r} differs from the {name}={own} that the model was patched with. Leave it out, or "
                    f"patch again with patch_model(model, 'lm_infinite', {name}={given!r})."
                )
        super().__init__(layers=[ForgetfulLayer(self.window - 1, self.sinks) for _ in host.layers])
        alone = all(len(applied.entries) == 1 for applied in patches_of(host))  # nothing else reads the positions
        self.reach = max(self.window, encoding.limit) if alone else None
