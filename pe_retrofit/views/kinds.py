"""What can be seen of an encoding: plain numbers, one class per way of looking."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..sites import HostShape

SEED = 0


@dataclass(frozen=True)
class Shape:
    """The model an encoding is shown on.

    Attributes:
        heads, head_dim: of its attention.
        length: positions to show.
        trained, theta: of its RoPE.
        causal: a decoder.
    """

    heads: int = 8
    head_dim: int = 64
    length: int = 64
    trained: int = 4096
    theta: float = 10000.0
    causal: bool = True
    host: HostShape = field(init=False)

    def __post_init__(self) -> None:
        width = self.heads * self.head_dim
        host = HostShape(self.heads, self.head_dim, self.head_dim, width, self.trained, self.causal)
        object.__setattr__(self, "host", host)


@dataclass(frozen=True)
class BiasView:
    """Something added to the attention logits.

    Attributes:
        distances: int64 ``[n]``, ``i - j`` from 0 (decoders) or from ``-(length - 1)`` (encoders).
        bias: ``[h, n]`` at these distances, seen from the last query.
        matrix: ``[h, q, k]``, NaN where attention is masked.
        positions: int64 ``[q]``, of the rows and columns of the matrix.
        buckets: int64 ``[n]``, the row of the learned table each distance reads; None where there is none.
        counted: ``[h, n]``, the positions that the last query counts, where they depend on the content.
        queries: position -> (distances ``[n]``, bias ``[h, n]``) where queries at the same distance differ.
        note: what was filled in to have something to see.
        what: the thing in a word.
    """

    distances: Tensor
    bias: Tensor
    matrix: Tensor
    positions: Tensor
    buckets: Tensor | None = None
    counted: Tensor | None = None
    queries: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    note: str = ""
    what: str = "bias"


@dataclass(frozen=True)
class PiecewiseView:
    """The distance at which a piecewise rotation scores.

    Attributes:
        distances: int64 ``[n]``.
        effective: float64 ``[n]`` from the last query; NaN where masked.
        positions: int64 ``[q]``, of the rows and columns of the matrix.
        matrix: float64 ``[q, k]``, the effective distance; NaN where masked.
        trained: length in tokens.
        note: what the dimensions of the picture are.
    """

    distances: Tensor
    effective: Tensor
    positions: Tensor
    matrix: Tensor
    trained: int
    note: str = ""


@dataclass(frozen=True)
class Turning:
    """A rotation.

    Attributes:
        inv_freq: float32 ``[d / 2]``, radians per token; 0: not rotated.
        amplitude: factor on the attention logits that comes with it.
        decay: float64 ``[d / 2]``, factor on each frequency's part of the logit per token of distance; None: 1.
    """

    inv_freq: Tensor
    amplitude: float = 1.0
    decay: Tensor | None = None

    @property
    def periods(self) -> Tensor:
        """``[d / 2]`` tokens per turn; infinite where nothing turns."""
        return 2 * math.pi / self.inv_freq.double()

    @property
    def half_lives(self) -> Tensor | None:
        """``[d / 2]`` tokens after which a frequency counts half; None: it never fades."""
        return None if self.decay is None else math.log(0.5) / self.decay.log()

    def kernel(self, distances: Tensor) -> Tensor:
        """``[n]``: logit of a query and a key of equal content, 1 for stock RoPE at distance 0."""
        waves = (distances.double()[:, None] * self.inv_freq.double()).cos()
        if self.decay is not None:
            waves = waves * self.decay ** distances.double()[:, None]
        return self.amplitude * waves.mean(-1)


@dataclass(frozen=True)
class RotationView:
    """A rotation before and after.

    Attributes:
        stock: the model's own.
        after: by label; several where the rotation depends on the length of the text.
        trained, extended: lengths in tokens.
        theta: the model's rotary base.
    """

    stock: Turning
    after: dict[str, Turning]
    trained: int
    extended: int
    theta: float


@dataclass(frozen=True)
class InputView:
    """Vectors added to the embeddings.

    Attributes:
        vectors: ``[length, hidden_size]``.
        note: what was filled in to have something to see.
    """

    vectors: Tensor
    note: str = ""


@dataclass(frozen=True)
class HybridView:
    """What each layer gets.

    Attributes:
        layers: in words, from the first layer on, e.g. ``["nope", "native + window", ...]``.
        note: the options that the encodings have there.
    """

    layers: list[str]
    note: str = ""


View = BiasView | PiecewiseView | RotationView | InputView | HybridView


@torch.no_grad()
def fill_zero_parameters(module: torch.nn.Module, scale: float = 1.0, seed: int = SEED) -> list[str]:
    """Give learned parameters that are all zero normal random values, so that there is something to see or measure.

    Returns:
        Names of the parameters filled.
    """
    generator = torch.Generator().manual_seed(seed)
    filled = []
    for name, parameter in module.named_parameters():
        if not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            filled.append(name)
    return filled


def filled_note(filled: list[str]) -> str:
    """Says which parameters were filled; empty when none were."""
    return f"{', '.join(filled)}: zero at the start, shown with random values (seed {SEED})" if filled else ""
