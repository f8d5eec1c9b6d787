"""The bias site: ``b[h, i, j]`` added to the attention logits, from positions alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from .encoding import C, Encoding, HostShape
from .lookup import Lookup, lookup
from .silence import Silence


class BiasEncoding(Encoding[C], Silence, nn.Module):
    """Adds ``b[h, i, j]`` to the attention logits, from positions alone (after scaling and soft-capping).

    A *relative* encoding overrides :meth:`bias` (a function of the distance ``i - j``) and gets the Toeplitz kernel.
    Another one overrides :meth:`bias_at`. Learned parameters are ordinary ``nn.Parameter`` of this module, which lives
    at ``<attention>.position_encoding.<name>``; constants are computed from the config when needed, never stored in
    non-persistent buffers (those come back uninitialised from ``from_pretrained``).
    """

    site = "bias"
    toeplitz: ClassVar[bool] = True

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__()
        self.config = config
        self.host = host

    @classmethod
    def faults(cls) -> list[str]:
        faults = super().faults()
        relative, general = cls.bias is not BiasEncoding.bias, cls.bias_at is not BiasEncoding.bias_at
        if not relative and not general:
            faults.append("override bias(), or bias_at() where the bias is no function of the distance")
        elif not relative and cls.toeplitz:
            faults.append("set toeplitz = False, because bias_at() is overridden and bias() is not")
        return faults

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        """The part of :meth:`bias` that has no parameters: computed once per forward pass and shared by all layers.

        Args:
            distance: int64 ``[...]``, ``i - j`` in tokens (negative: the key lies in the future).
            causal: whether the attention is causal (only ``distance >= 0`` is then looked at).

        Returns:
            ``[...]``; the distance itself unless overridden.
        """
        return distance

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        """Bias at given distances.

        Args:
            prepared: ``[...]``, what :meth:`prepare` returned: the distance ``i - j`` by default.
            causal: whether the attention is causal.

        Returns:
            float32 (or the parameters' dtype, if wider) ``[h, ...]``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override bias() or bias_at().")

    def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        """Bias for positions ``[b, q]`` and ``[b, k]``: ``[b, h, q, k]``."""
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        if distance.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in distance.aminmax())
            if high - low < distance.numel():  # fewer distances than pairs
                every = torch.arange(low, high + 1, device=distance.device)
                return lookup(self._at(every, causal), distance - low).transpose(0, 1)
        return self._at(distance, causal).transpose(0, 1)

    def fast(self, distances: Tensor, *, causal: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """:meth:`bias_at` for many pairs and no gradient, as a function of positions ``[b, q]`` and ``[b, k]``.

        Args:
            distances: int64 ``[n]``, all whole numbers from the lowest to the highest ``i - j`` there will be.
            causal: whether the attention is causal.

        Returns:
            The function; the caller may write into its result, which holds until the next call.
        """
        if not self.toeplitz:
            return partial(self.bias_at, causal=causal)
        table, low = Lookup(self._at(distances, causal)), distances[0]

        def bias(query_positions: Tensor, key_positions: Tensor) -> Tensor:
            index = query_positions[:, :, None] - (key_positions + low)[:, None, :]
            return table(index).transpose(0, 1)

        return bias

    def _at(self, distance: Tensor, causal: bool) -> Tensor:
        return self.bias(self.prepare(distance, causal=causal), causal=causal)

    @property
    def reach(self) -> int | None:
        """Distance from which on nothing is attended to (the bias is ``-inf``); None: there is no such distance."""
        return None

    def slopes(self) -> Tensor | None:
        """``[h]`` when the causal bias is exactly ``-slope * (i - j)``, which plain fused attention can carry."""
        return None

    def open_basis(self, reach: int, *, causal: bool) -> None:
        """Settle what :meth:`basis` depends on, for distances up to ``reach``: calibration calls it first."""

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        """``[..., f]`` functions of distances ``[...]``, where the bias of each head is a weighted sum of them.

        With :meth:`take` it is what lets calibration fit the bias in closed form. None: it is no such sum.
        """
        return None

    def take(self, weights: Tensor) -> None:
        """Set the parameters to weights ``[h, f]`` of the functions of :meth:`basis`, or the nearest there are."""
        raise NotImplementedError(f"{type(self).__name__} has a basis and must override take().")

    def start(self, *, keeps_native: bool) -> None:
        """Retrofit initialisation, once, when a model is patched (not when a saved one is loaded).

        Args:
            keeps_native: the native encoding stays, so an encoding that can start as an exact identity must.
        """
