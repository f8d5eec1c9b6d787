"""The input site: token embeddings changed by position."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..positions import Positions
from .encoding import C, Encoding, HostShape


class InputEncoding(Encoding[C], nn.Module):
    """Adds ``p[i]`` to the token embeddings (on encoders: takes the place of the position table).

    Attributes:
        needs_length: :meth:`forward` takes a second argument, how many tokens the text has that a token belongs to:
            int64 ``[...]``, like the positions. Known for whole texts only, so a cache cannot be continued.
    """

    site = "input"
    needs_length: ClassVar[bool] = False

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__()
        self.config = config
        self.host = host

    def forward(self, position_ids: Tensor) -> Tensor:
        """``[..., hidden_size]`` for int64 positions ``[...]``, in the parameters' dtype."""
        raise NotImplementedError

    def fit(self, target: Tensor | None, *, keeps_native: bool, embedding_rms: float) -> None:
        """Retrofit initialisation.

        Args:
            target: ``[n, hidden_size]`` rows of the position table this encoding replaces; None when it adds to a model
                without one.
            keeps_native: the native encoding stays, so the start must be an exact identity.
            embedding_rms: root mean square of the model's token embeddings.
        """


class ScalarInput(InputEncoding[C]):
    """One number per position along one fixed direction: ``x_i + a p_i u``.

    ``u = (1, -1, 1, -1, ...)`` has mean zero, so that the normalisation of BERT's embeddings does not remove it. ``a``
    (parameter ``gate``) is learned and starts at ``scale`` times the root mean square of the token embeddings. ``p_i``
    and the product with ``a`` are float32 at least.
    """

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__(config, host)
        self.gate = nn.Parameter(torch.zeros(1))

    def along(self, values: Tensor) -> Tensor:
        """``a p u``, ``[..., hidden_size]`` in the parameters' dtype, for ``p`` float32 or wider ``[...]``."""
        wide = torch.promote_types(self.gate.dtype, torch.float32)
        sign = torch.ones(self.host.hidden_size, dtype=wide, device=values.device)
        sign[1::2] = -1
        return ((self.gate.to(wide) * values.to(wide))[..., None] * sign).to(self.gate.dtype)

    @torch.no_grad()
    def fit(self, target: Tensor | None, *, keeps_native: bool, embedding_rms: float) -> None:
        self.gate.fill_(getattr(self.config, "scale", 1.0) * embedding_rms)


def more_arguments(encoding: InputEncoding, positions: Positions) -> tuple[Tensor, ...]:
    """What an encoding's forward takes besides the positions.

    Raises:
        UnsupportedError: it needs the length of the text, and the pass continues a cache.
    """
    if not encoding.needs_length:
        return ()
    if not isinstance(positions.first_query, int) or positions.first_query:
        raise UnsupportedError(
            f"{encoding.config.name!r} divides by the length of the text, which grows with every token, so what a "
            "cache holds would have to change. Read the whole text in one pass, with use_cache=False."
        )
    return (text_lengths(positions).to(positions.query.device),)


def text_lengths(positions: Positions) -> Tensor:
    """Real tokens of the text that each token belongs to, for a pass without a past: int64 ``[b or 1, q]``.

    A text ends where the next real token's position is not larger (packing). Padding counts as part of the text before
    it, without adding to its length.
    """
    query = positions.query
    length = query.shape[1]
    real = torch.ones_like(query, dtype=torch.bool) if positions.real is None else positions.real[:, :length]
    query = query.expand(real.shape[0], -1)
    index = torch.arange(length, device=query.device).expand_as(query)
    last = torch.where(real, index, -1).cummax(1).values  # index of the last real token so far
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    begins = real & (before >= 0) & (query <= query.gather(1, before.clamp_min(0)))
    text = begins.long().cumsum(1)
    counts = torch.zeros_like(query).scatter_add_(1, text, real.long())
    return counts.gather(1, text)
