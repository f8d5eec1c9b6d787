"""The input site: token embeddings changed by position."""

from __future__ import annotations

from torch import Tensor, nn

from .encoding import C, Encoding, HostShape


class InputEncoding(Encoding[C], nn.Module):
    """Adds ``p[i]`` to the token embeddings (on encoders: takes the place of the position table)."""

    site = "input"

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
