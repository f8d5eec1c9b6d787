"""The four places where positions can act on a transformer. An encoding is one class at one of them."""

from .bias import BiasEncoding
from .encoding import Encoding, EncodingInfo, HostShape, Site
from .input import InputEncoding
from .installed import Installed
from .piecewise import Piece, PiecewiseEncoding
from .rotation import RotationEncoding, default_inv_freq
from .score import Block, RelativeScore, ScoreEncoding

__all__ = [
    "BiasEncoding",
    "Block",
    "Encoding",
    "EncodingInfo",
    "HostShape",
    "InputEncoding",
    "Installed",
    "Piece",
    "PiecewiseEncoding",
    "RelativeScore",
    "RotationEncoding",
    "ScoreEncoding",
    "Site",
    "default_inv_freq",
]
