"""A part of an encoding: weaker, or some of its heads only. A light view made at call time; it owns nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .bias import BiasEncoding
from .score import Block, RelativeScore, ScoreEncoding


@overload
def partial(encoding: BiasEncoding[Any], strength: float = ..., heads: slice | None = ...) -> BiasEncoding[Any]: ...
@overload
def partial(encoding: ScoreEncoding[Any], strength: float = ..., heads: slice | None = ...) -> ScoreEncoding[Any]: ...
def partial(encoding: Any, strength: float = 1.0, heads: slice | None = None) -> Any:
    """``encoding`` with all it adds times ``strength``, for some heads only: what the kernels take in its place.

    Same interface, values and gradients; parameters are those of the encoding, read when they are needed. The encoding
    itself where there is nothing to change.

    Args:
        encoding: a bias or score encoding.
        strength: factor in (0, 1]; 0 is not: leave the encoding out.
        heads: of the query heads; None: all.

    Raises:
        UnsupportedError: a bias that masks was to be weakened, or the heads of a score encoding were to be split that
            does not say which of its parameters are per head.
    """
    if strength == 1.0 and heads is None:
        return encoding
    if isinstance(encoding, BiasEncoding):
        return _PartialBias(encoding, strength, heads)
    if isinstance(encoding, RelativeScore):
        return _PartialRelative(encoding, strength, heads)
    keyed = type(encoding).key_bias is not ScoreEncoding.key_bias
    return (_PartialKeyed if keyed else _PartialScore)(encoding, strength, heads)


class _View:
    """What views have in common. Attributes are written past ``nn.Module``, which would make the encoding a child."""

    whole: Any
    strength: float
    heads: slice | None

    def __init__(self, encoding: Any, strength: float, heads: slice | None) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        host = encoding.host
        if heads is not None:
            host = replace(host, num_heads=len(range(*heads.indices(host.num_heads))))
        self.__dict__.update(whole=encoding, strength=strength, heads=heads, config=encoding.config, host=host)
        self.__dict__.update(training=encoding.training)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the encoding."""
        yield from self.whole.parameters(recurse)

    @property
    def trains(self) -> bool:
        """As the encoding."""
        return bool(self.whole.trains)

    @property
    def silent(self) -> bool:
        """As the encoding."""
        return bool(self.whole.silent)

    def _times(self, values: Tensor | None) -> Tensor | None:
        return values if values is None or self.strength == 1.0 else values * self.strength


class _PartialBias(_View, BiasEncoding[Any]):
    """A bias encoding, weaker or of some heads."""

    def __init__(self, encoding: BiasEncoding[Any], strength: float, heads: slice | None) -> None:
        if strength != 1.0 and encoding.reach is not None:
            raise UnsupportedError(
                f"{encoding.config.name!r} masks what is far, and there is nothing between masked and not: its "
                f"strength can be 0 or 1, not {strength}."
            )
        super().__init__(encoding, strength, heads)
        self.__dict__["toeplitz"] = encoding.toeplitz

    @property
    def reach(self) -> int | None:
        """As the encoding."""
        return self.whole.reach

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        return self.whole.prepare(distance, causal=causal)

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        return self._part(self.whole.bias(prepared, causal=causal), 0)

    def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        if type(self.whole).bias_at is BiasEncoding.bias_at:
            return super().bias_at(query_positions, key_positions, causal=causal)
        return self._part(self.whole.bias_at(query_positions, key_positions, causal=causal), 1)

    def fast(self, distances: Tensor, *, causal: bool) -> Callable[[Tensor, Tensor], Tensor]:
        if type(self.whole).fast is BiasEncoding.fast:
            return super().fast(distances, causal=causal)
        function = self.whole.fast(distances, causal=causal)
        return lambda query, key: self._part(function(query, key), 1)

    def slopes(self) -> Tensor | None:
        slopes = self.whole.slopes()
        return None if slopes is None else self._part(slopes, 0)

    def _part(self, values: Tensor, dim: int) -> Tensor:
        if self.heads is not None:
            values = values[(slice(None),) * dim + (self.heads,)]
        return values if self.strength == 1.0 else values * self.strength


class _PartialScore(_View, ScoreEncoding[Any]):
    """A score encoding, weaker or of some heads."""

    def __init__(self, encoding: ScoreEncoding[Any], strength: float, heads: slice | None) -> None:
        super().__init__(encoding, strength, heads)
        self.__dict__["local"] = encoding if heads is None else local(encoding, heads, self.host)

    local: Any

    def scores(self, block: Block) -> Tensor:
        return self._times(self.local.scores(block))  # type: ignore[return-value]


class _PartialKeyed(_PartialScore):
    """One whose scores are a number of the key."""

    def key_bias(self, block: Block) -> Tensor | None:
        return self._times(self.local.key_bias(block))


class _PartialRelative(_PartialScore, RelativeScore[Any]):
    """One of the distance: its tables are weaker."""

    def __init__(self, encoding: RelativeScore[Any], strength: float, heads: slice | None) -> None:
        super().__init__(encoding, strength, heads)
        self.__dict__["has_values"] = encoding.has_values

    def rows(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        return self.local.rows(distance, causal=causal)

    def query_table(self, distance: Tensor | None) -> Tensor | None:
        return self._times(self.local.query_table(distance))

    def basis(self, distance: Tensor) -> Tensor | None:
        return self.local.basis(distance)

    def query_map(self) -> Tensor:
        return self._times(self.local.query_map())  # type: ignore[return-value]

    def mapped(self, basis: Tensor) -> Tensor:
        return self._times(self.local.mapped(basis))  # type: ignore[return-value]

    def key_table(self) -> Tensor | None:
        return self._times(self.local.key_table())

    def query_bias(self) -> Tensor | None:
        return self.local.query_bias()

    def content_bias(self) -> Tensor | None:
        return self._times(self.local.content_bias())

    def value_table(self) -> Tensor | None:
        return self._times(self.local.value_table())

    def relative_query(self, query: Tensor) -> Tensor:
        return self.local.relative_query(query)


def local(encoding: Any, heads: slice, host: Any) -> Any:
    """A shallow copy of a score encoding that knows some heads only; its parameters are slices of the encoding's."""
    named = dict(encoding.named_parameters())
    per_head = encoding.per_head
    if per_head is None and named:
        raise UnsupportedError(
            f"{encoding.config.name!r} does not say which of its parameters hold one entry per head, so its heads "
            f"cannot be split over processes. Set {type(encoding).__name__}.per_head to their names."
        )
    made = copy.copy(encoding)
    made.__dict__["host"] = host
    made.__dict__["_parameters"] = {n: p for n, p in encoding._parameters.items() if n not in (per_head or ())}
    for name in per_head or ():
        parameter: torch.Tensor = getattr(encoding, name)
        made.__dict__[name] = parameter[heads]
    return made
