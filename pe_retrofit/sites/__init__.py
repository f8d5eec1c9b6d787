"""The four places where positions can act on a transformer. An encoding is one class at one of them."""

from .bias import BiasEncoding
from .encoding import Encoding, EncodingInfo, HostShape, Site
from .hybrid import HybridEncoding
from .input import InputEncoding, ScalarInput
from .installed import Installed
from .local import LocalInput
from .piecewise import Piece, PiecewiseEncoding
from .rotation import RotationEncoding, default_inv_freq
from .score import Block, RelativeScore, ScoreEncoding

__all__ = [
    "BiasEncoding",
    "Block",
    "Encoding",
    "EncodingInfo",
    "HostShape",
    "HybridEncoding",
    "InputEncoding",
    "Installed",
    "LocalInput",
    "Piece",
    "PiecewiseEncoding",
    "RelativeScore",
    "RotationEncoding",
    "ScalarInput",
    "ScoreEncoding",
    "Site",
    "default_inv_freq",
]
