"""Give a pretrained transformer another positional encoding: patch, measure, save, load.

>>> from pe_retrofit import patch_model, unpatch_model
>>> patch_model(model, "yarn", factor=4.0)
>>> unpatch_model(model)
"""

from . import encodings as _encodings  # noqa: F401  (registers them)
from .attention import register as _register_attention
from .config import EncodingConfig
from .encodings.alibi import AlibiConfig
from .encodings.dynamic import DynamicConfig
from .encodings.learned import LearnedConfig
from .encodings.linear import LinearConfig
from .encodings.llama3 import Llama3Config
from .encodings.longrope import LongropeConfig
from .encodings.nope import NopeConfig
from .encodings.ntk import NtkConfig
from .encodings.partial_rope import PartialRopeConfig
from .encodings.sinusoidal import SinusoidalConfig
from .encodings.t5 import T5Config
from .encodings.yarn import YarnConfig
from .errors import ConfigError, UnknownEncodingError, UnsupportedError
from .hub import register as _register_hub
from .patching import patch_model, unpatch_model
from .registry import get_encoding, list_encodings, register_encoding
from .sites import BiasEncoding, EncodingInfo, HostShape, InputEncoding, RotationEncoding
from .status import PatchInfo, Status, status

__version__ = "0.1.0"

_register_attention()
_register_hub()

__all__ = [
    "AlibiConfig",
    "BiasEncoding",
    "ConfigError",
    "DynamicConfig",
    "EncodingConfig",
    "EncodingInfo",
    "HostShape",
    "InputEncoding",
    "LearnedConfig",
    "LinearConfig",
    "Llama3Config",
    "LongropeConfig",
    "NopeConfig",
    "NtkConfig",
    "PartialRopeConfig",
    "PatchInfo",
    "RotationEncoding",
    "SinusoidalConfig",
    "Status",
    "T5Config",
    "UnknownEncodingError",
    "UnsupportedError",
    "YarnConfig",
    "get_encoding",
    "list_encodings",
    "patch_model",
    "register_encoding",
    "status",
    "unpatch_model",
]
