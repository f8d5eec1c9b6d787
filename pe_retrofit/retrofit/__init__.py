"""What makes a retrofit survive: start near the original, move there slowly, learn from it."""

from typing import TYPE_CHECKING

from ..later import importer
from .calibration import CalibrateOptions, Calibration, calibrate
from .fade import FadeOptions

if TYPE_CHECKING:
    from .fading import FadeCallback

__getattr__ = importer(__name__, {"FadeCallback": "fading"})  # it needs transformers' Trainer

__all__ = ["CalibrateOptions", "Calibration", "FadeCallback", "FadeOptions", "calibrate"]
