"""Options of calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...config import StrictOptions, flag, integer, number

USUAL = 512
"""Tokens per window, unless said otherwise."""


@dataclass(frozen=True)
class CalibrateOptions(StrictOptions):
    """How a calibration measures and fits."""

    name = "calibrate"
    noun = "section"
    windows: int = integer(8, low=1, high=4096, help="windows of text that the original is run over, at most")
    length: int | None = integer(
        None,
        low=16,
        high=2**16,
        optional=True,
        help="tokens per window, beyond which distances are extrapolated; none: 512, or the trained length if shorter",
    )
    rows: int = integer(
        24,
        low=1,
        high=2**16,
        help="queries looked at per window, head and layer, drawn at random; for scores 3 times as many neighbours",
    )
    steps: int = integer(
        4, low=0, high=100, help="Newton steps at most, per head; for scores 15 times as many of L-BFGS, per layer"
    )
    output_steps: int = integer(
        3, low=0, high=100, help="Gauss-Newton steps after them, towards the original's output instead of its weights"
    )
    gains: bool = flag(True, help="fit gains on the queries too (nope with gains=True in place of the rotation)")
    sequential: bool = flag(
        True, help="fit each layer on what the layers before it, retrofitted, hand it; false: on the original's states"
    )
    keep: int | None = integer(
        None,
        low=1,
        high=4096,
        optional=True,
        help="a hybrid: this many layers, those that miss it most, keep the native encoding",
    )
    ridge: float = number(0.01, low=1e-6, high=10.0, help="relative weight that keeps steps small where data is few")
    seed: int = integer(0, low=0, high=2**31, help="of the windows and queries drawn")

    def check(self) -> Sequence[str]:
        if self.length is not None and self.rows >= self.length:
            return [f"rows={self.rows} must be below length={self.length}: one row per query, the first left out"]
        return ()
