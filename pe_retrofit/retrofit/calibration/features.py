"""What the logits of a head are linear in, without ever being written out for each pair of query and key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Features:
    """``f = g + b`` numbers ``x_ij`` for each pair of a query i and a key j of its window.

    The first g are products of query and key, ``M_i k_j``: linear in the key, so that all sums over keys are taken in
    the z dimensions of the keys, and once per query brought to the g features. The other b are given for each pair.

    Attributes:
        keys: float32 ``[w, k, z]``, of each window.
        maps: ``[n, g, z]``, the matrix ``M_i`` of each query; n / w of them in a window, one window after the other.
        shared: ``[n, b, k]``, keys last as in everything that is summed over them.
    """

    keys: Tensor
    maps: Tensor
    shared: Tensor

    def logits(self, weights: Tensor) -> Tensor:
        """``x_ij . w`` for weights ``[f]``: ``[n, k]``."""
        of_products, of_shared = weights.split((self.maps.shape[1], self.shared.shape[1]))
        return self._by_window(of_products @ self.maps).matmul(self.keys.mT).flatten(0, 1) + of_shared @ self.shared

    def sums(self, mass: Tensor) -> Tensor:
        """``sum_j m_ij x_ij`` of each query, for ``[n, k]``: ``[n, f]``."""
        of_keys = self._by_window(mass).matmul(self.keys).flatten(0, 1)
        products = (self.maps @ of_keys[..., None])[..., 0]
        return torch.cat((products, (self.shared @ mass[..., None])[..., 0]), dim=-1)

    def outer(self, mass: Tensor, values: Tensor) -> Tensor:
        """``sum_j m_ij x_ij v_j`` of each query, for masses ``[n, k]`` and values ``[w, k, d]``: ``[n, f, d]``."""
        of_keys = self._mix(self._weighted(mass), values)
        of_shared = self._mix(self.shared * mass[:, None], values)
        return torch.cat((self.maps @ of_keys, of_shared), dim=1)

    def second(self, mass: Tensor) -> Tensor:
        """``sum_ij m_ij x_ij x_ij'``, for ``[n, k]``: ``[f, f]``."""
        weighted = self._weighted(mass)
        products = _summed(self.maps @ self._mix(weighted, self.keys), self.maps)
        crossed = _summed(self.maps, self.shared @ weighted.mT)
        shared = ((self.shared * mass[:, None]) @ self.shared.mT).sum(0)
        return torch.cat((torch.cat((products, crossed), dim=1), torch.cat((crossed.t(), shared), dim=1)))

    def _weighted(self, mass: Tensor) -> Tensor:
        """Keys times the masses ``[n, k]`` of each query: ``[n, z, k]``."""
        return (self._by_window(mass)[:, :, None] * self.keys.mT[:, None]).flatten(0, 1)

    def _mix(self, weights: Tensor, values: Tensor) -> Tensor:
        """``[n, c, k]`` times ``[w, k, d]`` of each query's window: ``[n, c, d]``, one product per window."""
        windows = len(self.keys)
        return weights.reshape(windows, -1, weights.shape[2]).matmul(values).view(*weights.shape[:2], values.shape[2])

    def _by_window(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.keys.shape[0], -1))


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """``sum_i L_i R_i'`` of ``[n, a, z]`` and ``[n, b, z]``: ``[a, b]``."""
    return left.transpose(0, 1).flatten(1) @ right.transpose(0, 1).flatten(1).t()
