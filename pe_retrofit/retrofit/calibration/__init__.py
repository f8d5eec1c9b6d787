"""Calibration: fit a new encoding to what the original model does, without training."""

from .calibrate import Calibration, LayerFit, calibrate
from .options import CalibrateOptions

__all__ = ["CalibrateOptions", "Calibration", "LayerFit", "calibrate"]
