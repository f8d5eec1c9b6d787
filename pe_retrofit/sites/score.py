"""The score site: what needs queries or keys *and* positions.

A score encoding sees queries and keys before any rotation, so that its part of the score depends on positions only
through what the encoding itself says. Its terms are part of the product ``q . k``: they are scaled by the attention's
``1 / sqrt(d)`` and come before soft-capping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .encoding import C, Encoding, HostShape
from .silence import Silence


@dataclass(frozen=True)
class Block:
    """Some queries and the keys they may see.

    Attributes:
        query: ``[b, h, q, d]``, not rotated.
        key: ``[b, g, k, d]``, not rotated; ``h / g`` query heads share a key head.
        query_positions / key_positions: int64 ``[b or 1, q]`` and ``[b or 1, k]``.
        causal: whether the attention is causal.
        scaling: the attention's factor on ``q . k``.
        visible: makes :attr:`allowed`, which few encodings need.
        first: index among the keys of the first query (of the whole call's keys, of which these may be a part).
    """

    query: Tensor
    key: Tensor
    query_positions: Tensor
    key_positions: Tensor
    causal: bool
    scaling: float
    visible: Callable[[], Tensor | None]
    first: int | Tensor

    @property
    def allowed(self) -> Tensor | None:
        """bool ``[b or 1, 1, q, k]``, or None where every key is visible."""
        return self.visible()

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.key.shape[1]

    def distance(self) -> Tensor:
        """int64 ``[b or 1, q, k]``: ``i - j``."""
        return self.query_positions[:, :, None] - self.key_positions[:, None, :]

    def per_head(self, table: Tensor) -> Tensor:
        """``k_j . table[h, n]`` for a table ``[h or 1, n, d]``: ``[b, h, k, n]``."""
        b, g, k, d = self.key.shape
        table = table.expand(self.query.shape[1], -1, -1).reshape(g, -1, d)
        product = torch.matmul(self.key.to(table.dtype), table.transpose(1, 2))
        return product.view(b, g, k, self.groups, -1).transpose(2, 3).reshape(b, g * self.groups, k, -1)


class ScoreEncoding(Encoding[C], Silence, nn.Module):
    """Adds to the attention score something that needs queries or keys.

    Learned parameters are ordinary ``nn.Parameter`` of this module, at ``<attention>.position_encoding.<name>``.
    """

    site = "score"
    per_head: ClassVar[tuple[str, ...] | None] = None
    """Names of the parameters ``[h, ...]`` that hold one entry per query head; None: not said, so that the heads cannot
    be split over processes."""

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__()
        self.config = config
        self.host = host

    @classmethod
    def faults(cls) -> list[str]:
        faults = super().faults()
        if cls.scores is ScoreEncoding.scores:
            faults.append("override scores()")
        return faults

    def start(self, *, keeps_native: bool) -> None:
        """Retrofit initialisation, once, when a model is patched."""

    def scores(self, block: Block) -> Tensor:
        """What is added to the score: float32 or wider ``[b, h, q, k]``, the scaling included.

        This is the reference. It is called for some queries at a time, with all the keys that they see.
        """
        raise NotImplementedError(f"{type(self).__name__} must override scores().")

    def key_bias(self, block: Block) -> Tensor | None:
        """``[b, h, k]`` where the scores are this number of the key, up to a constant per query; None otherwise."""
        return None


class RelativeScore(ScoreEncoding[C]):
    """A score of the distance ``i - j``: ``q_i . a[i - j]``, ``k_j . b[i - j]``, ``u . k_j``.

    Tables are ``[h or 1, n, d]``. With :meth:`rows`, distances share rows of a learned table; without, there is one row
    per distance, ``query_map()`` times ``basis(distance)``. Runs on the skewed kernel, which takes one product per
    block of queries.
    """

    has_values: ClassVar[bool] = False

    def rows(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        """int64, shape of ``distance``: the row of the tables; None: a row for every distance."""
        return None

    def query_table(self, distance: Tensor | None) -> Tensor | None:
        """``a``: ``[h or 1, n, d]``, all rows; for the given distances ``[n]`` where rows are not shared."""
        if distance is None or (basis := self.basis(distance)) is None:
            return None
        return self.mapped(basis)

    def basis(self, distance: Tensor) -> Tensor | None:
        """``[n, w]`` for distances ``[n]``, where rows are not shared: no parameters, so that layers can share it."""
        return None

    def query_map(self) -> Tensor:
        """``[h, d, w]``: what turns the basis into ``a``."""
        raise NotImplementedError(f"{type(self).__name__} has a basis and must override query_map().")

    def mapped(self, basis: Tensor) -> Tensor:
        """``a`` from its basis ``[n, w]``: ``[h, n, d]``."""
        weight = self.query_map()
        h, d, width = weight.shape
        return (basis.to(weight.dtype) @ weight.reshape(h * d, width).t()).view(-1, h, d).transpose(0, 1)

    def key_table(self) -> Tensor | None:
        """``b``: ``[h or 1, n, d]``, for shared rows only."""
        return None

    def query_bias(self) -> Tensor | None:
        """``v [h, d]``, added to the query in ``(q_i + v) . a``."""
        return None

    def content_bias(self) -> Tensor | None:
        """``u [h, d]`` in ``u . k_j``."""
        return None

    def value_table(self) -> Tensor | None:
        """``[h or 1, n, d]``, for shared rows: added to the values, ``sum_j w_ij (v_j + value[i - j])``."""
        return None

    def relative_query(self, query: Tensor) -> Tensor:
        """``q + v``, in the query's dtype."""
        bias = self.query_bias()
        return query if bias is None else query + bias.to(query.dtype)[None, :, None]

    def index(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """``[b or 1, q, k]`` rows for each pair, and the distances ``[n]`` of the rows where they are not shared."""
        distance = block.distance()
        rows = self.rows(distance, causal=block.causal)
        if rows is not None:
            return rows, None
        distances, inverse = torch.unique(distance, return_inverse=True)
        return inverse.view(distance.shape), distances

    def scores(self, block: Block) -> Tensor:
        wide = torch.float64 if block.query.dtype == torch.float64 else torch.float32
        b, h, q, _ = block.query.shape
        k = block.key.shape[2]
        index, distances = self.index(block)
        index = index[:, None].expand(b, h, q, k)
        total = block.query.new_zeros(b, h, q, k, dtype=wide)
        table = self.query_table(distances)
        if table is not None:
            query = self.relative_query(block.query).to(wide)
            product = torch.matmul(query, table.to(wide).transpose(1, 2))
            total = total + product.gather(-1, index)
        table = self.key_table()
        if table is not None:
            product = block.per_head(table.to(wide))
            total = total + product.gather(-1, index.transpose(2, 3)).transpose(2, 3)
        content = self.content_bias()
        if content is not None:
            total = total + block.per_head(content.to(wide)[:, None])[..., 0][:, :, None]
        return total * block.scaling
