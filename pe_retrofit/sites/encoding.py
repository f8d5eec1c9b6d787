"""What all encodings have in common: options, facts, and the numbers of the host they need.

Shapes use the notation of the documentation: ``b`` batch, ``h`` query heads, ``q`` query length, ``k`` key length,
``d`` head size, ``i`` / ``j`` absolute position of query / key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from ..config import EncodingConfig

Site = Literal["input", "rotation", "bias", "score", "hybrid"]
C = TypeVar("C", bound=EncodingConfig)
"""Options of an encoding."""


@dataclass(frozen=True)
class EncodingInfo:
    """What people read about an encoding; tables and pages are generated from it.

    Attributes:
        title: name in words.
        formula: plain text.
        paper: authors, title, year, arXiv id.
        causal / bidirectional: where the encoding holds.
        relative: adding a constant to all positions changes nothing.
        identity: when the patched model equals the original exactly, in words; empty when never.
        breaks: for encodings that teach rather than serve: which properties they lack, in words. Patching warns of it.
    """

    title: str
    formula: str
    paper: str
    causal: bool = True
    bidirectional: bool = True
    relative: bool = True
    identity: str = ""
    breaks: str = ""


@dataclass(frozen=True)
class HostShape:
    """The numbers of a host model that encodings need.

    Attributes:
        num_heads: query heads ``h``.
        head_dim: size ``d`` of one head.
        rotary_dim: how many of the ``d`` dimensions rotate; 0 without rotation.
        hidden_size: width of the token embeddings.
        max_positions: the length ``L`` the model was trained for, in tokens.
        causal: True for decoders.
    """

    num_heads: int
    head_dim: int
    rotary_dim: int
    hidden_size: int
    max_positions: int
    causal: bool


class Encoding(Generic[C]):
    """Common to all sites: the options class and the facts about the encoding."""

    Config: ClassVar[type[EncodingConfig]]
    info: ClassVar[EncodingInfo]
    site: ClassVar[Site]
    config: C

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        """True when, with these options, the patched model must equal the original up to the trained length.

        ``patch_model`` measures the change and raises when it contradicts this answer in the direction of "changed
        nothing although it should have".
        """
        return False

    @classmethod
    def is_relative(cls, config: Any) -> bool:
        """Whether, with these options, adding a constant to all positions changes nothing."""
        return cls.info.relative

    @classmethod
    def faults(cls) -> list[str]:
        """What keeps this class from being registered, in words; empty when nothing does."""
        faults = []
        if getattr(cls, "site", None) not in get_args(Site):
            faults.append("derive from InputEncoding, RotationEncoding, BiasEncoding or ScoreEncoding")
        if not isinstance(getattr(cls, "info", None), EncodingInfo):
            faults.append("set info = EncodingInfo(title=..., formula=..., paper=...)")
        return faults
