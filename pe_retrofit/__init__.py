"""Give a pretrained transformer another positional encoding: patch, measure, save, load.

>>> from pe_retrofit import patch_model, unpatch_model
>>> patch_model(model, "yarn", factor=4.0)
>>> unpatch_model(model)
"""

from typing import TYPE_CHECKING

from . import encodings as _encodings  # noqa: F401  (registers them)
from .attention import register as _register_attention
from .config import EncodingConfig
from .encodings.alibi import AlibiConfig
from .encodings.conv import ConvConfig
from .encodings.cope import CopeConfig
from .encodings.deberta import DebertaConfig
from .encodings.dual_chunk import DualChunkConfig
from .encodings.dynamic import DynamicConfig
from .encodings.fire import FireConfig
from .encodings.fope import FopeConfig
from .encodings.fox import FoxConfig
from .encodings.hybrid import IropeConfig, RnopeConfig, SwanConfig
from .encodings.integer import IntegerConfig
from .encodings.kerple import KerpleConfig
from .encodings.learned import LearnedConfig
from .encodings.linear import LinearConfig
from .encodings.llama3 import Llama3Config
from .encodings.lm_infinite import LmInfiniteConfig
from .encodings.longrope import LongropeConfig
from .encodings.mlp import MlpConfig
from .encodings.nope import NopeConfig
from .encodings.normalized import NormalizedConfig
from .encodings.ntk import NtkConfig
from .encodings.partial_rope import PartialRopeConfig
from .encodings.random_ import RandomConfig
from .encodings.recurrent import RecurrentConfig
from .encodings.rerope import ReropeConfig
from .encodings.rope import RopeConfig
from .encodings.sandwich import SandwichConfig
from .encodings.self_extend import SelfExtendConfig
from .encodings.shaw import ShawConfig
from .encodings.sinusoidal import SinusoidalConfig
from .encodings.string import StringConfig
from .encodings.t5 import T5Config
from .encodings.transformer_xl import TransformerXlConfig
from .encodings.window import WindowConfig
from .encodings.xpos import XposConfig
from .encodings.yarn import YarnConfig
from .errors import ConfigError, UnknownEncodingError, UnsupportedError
from .hub import register as _register_hub
from .installing.strength import original, set_strength, strength_of
from .later import importer
from .patching import patch_model, unpatch_model
from .registry import get_encoding, list_encodings, register_encoding
from .sites import (
    BiasEncoding,
    Block,
    EncodingInfo,
    HostShape,
    HybridEncoding,
    InputEncoding,
    Piece,
    PiecewiseEncoding,
    RelativeScore,
    RotationEncoding,
    ScoreEncoding,
)
from .status import PatchInfo, Status, status
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .evaluation import evaluate_model, inspect_model
    from .hub import load_adapter, merge_adapter, publish, push_folder, save_adapter, save_model
    from .retrofit import calibrate

_register_attention()
_register_hub()

__getattr__ = importer(
    __name__,
    {
        "calibrate": "retrofit",
        "evaluate_model": "evaluation",
        "inspect_model": "evaluation",
        "load_adapter": "hub",
        "merge_adapter": "hub",
        "publish": "hub",
        "push_folder": "hub",
        "save_adapter": "hub",
        "save_model": "hub",
    },
)

__all__ = [
    "AlibiConfig",
    "BiasEncoding",
    "Block",
    "ConfigError",
    "ConvConfig",
    "CopeConfig",
    "DebertaConfig",
    "DualChunkConfig",
    "DynamicConfig",
    "EncodingConfig",
    "EncodingInfo",
    "FireConfig",
    "FopeConfig",
    "FoxConfig",
    "HostShape",
    "HybridEncoding",
    "InputEncoding",
    "IntegerConfig",
    "IropeConfig",
    "KerpleConfig",
    "LearnedConfig",
    "LinearConfig",
    "Llama3Config",
    "LmInfiniteConfig",
    "LongropeConfig",
    "MlpConfig",
    "NopeConfig",
    "NormalizedConfig",
    "NtkConfig",
    "PartialRopeConfig",
    "PatchInfo",
    "Piece",
    "PiecewiseEncoding",
    "RandomConfig",
    "RecurrentConfig",
    "RelativeScore",
    "ReropeConfig",
    "RnopeConfig",
    "RopeConfig",
    "RotationEncoding",
    "SandwichConfig",
    "ScoreEncoding",
    "SelfExtendConfig",
    "ShawConfig",
    "SinusoidalConfig",
    "Status",
    "StringConfig",
    "SwanConfig",
    "T5Config",
    "TransformerXlConfig",
    "UnknownEncodingError",
    "UnsupportedError",
    "WindowConfig",
    "XposConfig",
    "YarnConfig",
    "calibrate",
    "evaluate_model",
    "get_encoding",
    "inspect_model",
    "list_encodings",
    "load_adapter",
    "merge_adapter",
    "original",
    "patch_model",
    "publish",
    "push_folder",
    "register_encoding",
    "save_adapter",
    "save_model",
    "set_strength",
    "status",
    "strength_of",
    "unpatch_model",
]
