"""What makes a retrofit survive: start near the original, move there slowly, learn from it."""

from importlib import import_module
from typing import TYPE_CHECKING

from .calibration import CalibrateOptions, Calibration, calibrate
from .fade import FadeOptions

if TYPE_CHECKING:
    from .fading import FadeCallback

_LATER = {"FadeCallback": "fading"}
"""Names that are imported when they are first used: they need transformers' Trainer."""


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["CalibrateOptions", "Calibration", "FadeCallback", "FadeOptions", "calibrate"]
