"""The four places where positions can act on a transformer. An encoding is one class at one of them."""

from .bias import BiasEncoding
from .encoding import Encoding, EncodingInfo, HostShape, Site
from .input import InputEncoding
from .installed import Installed
from .rotation import RotationEncoding, default_inv_freq

__all__ = [
    "BiasEncoding",
    "Encoding",
    "EncodingInfo",
    "HostShape",
    "InputEncoding",
    "Installed",
    "RotationEncoding",
    "Site",
    "default_inv_freq",
]
