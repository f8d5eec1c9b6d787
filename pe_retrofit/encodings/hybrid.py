"""Hybrids of the literature: layers without positional encoding among layers that rotate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HybridEncoding
from .nope import NopeConfig
from .window import WindowConfig

EVERY = "every how many layers one has no positional encoding: the last of each group"
LEADS = "every how many layers one has no positional encoding: the first of each group"
WINDOW = "tokens that the rotating layers see, the query itself included; none: all"
SCALE = "c of the factor 1 + c ln(1 + floor((i + 1) / floor_scale)) on the logits of query i in NoPE layers"
FLOOR = "tokens until that factor first grows; none: the trained length"


@dataclass(frozen=True)
class RnopeConfig(EncodingConfig):
    """Options of ``rnope``."""

    name = "rnope"
    every: int = integer(4, low=1, high=1024, help=EVERY)
    window: int | None = integer(4096, low=1, high=2**24, optional=True, help=WINDOW)
    attn_scale: float = number(0.0, low=0.0, high=10.0, help=SCALE)
    floor_scale: int | None = integer(None, low=1, high=2**31, optional=True, help=FLOOR)


@dataclass(frozen=True)
class IropeConfig(EncodingConfig):
    """Options of ``irope``."""

    name = "irope"
    every: int = integer(4, low=1, high=1024, help=EVERY)
    window: int | None = integer(None, low=1, high=2**24, optional=True, help=WINDOW)
    attn_scale: float = number(0.1, low=0.0, high=10.0, help=SCALE)
    floor_scale: int | None = integer(None, low=1, high=2**31, optional=True, help=FLOOR)


@dataclass(frozen=True)
class SwanConfig(EncodingConfig):
    """Options of ``swan``."""

    name = "swan"
    every: int = integer(4, low=1, high=1024, help=LEADS)
    window: int | None = integer(512, low=1, high=2**24, optional=True, help=WINDOW)
    attn_scale: float = number(0.1, low=0.0, high=10.0, help=SCALE)
    floor_scale: int | None = integer(None, low=1, high=2**31, optional=True, help=FLOOR)


class _Interleaved(HybridEncoding[Any]):
    """NoPE on the last of every group of layers; the others keep the model's rotation, within a window if there is one.

    A window that the model has by itself (Mistral, Gemma) stays on every layer that has it.
    """

    nope_first: ClassVar[bool] = False

    def layers(self, count: int) -> Mapping[Any, Any]:
        config = self.config
        start = 0 if self.nope_first else config.every - 1
        mapping: dict[Any, Any] = {
            f"{start}::{config.every}": NopeConfig(attn_scale=config.attn_scale, floor_scale=config.floor_scale)
        }
        if config.every > 1:
            mapping["rest"] = "native" if config.window is None else ["native", WindowConfig(config.window)]
        return mapping

    def least_layers(self) -> int:
        return self.config.every


@register_encoding
class Rnope(_Interleaved):
    """RNoPE-SWA: every ``every``-th layer has no positional encoding and sees all; the others rotate within a window.

    The NoPE layers retrieve from far away, the others look at what is near. Layers ``every - 1``, ``2 every - 1``, ...
    become ``nope``; the rest keep the model's rotation, under a sliding window of ``window`` tokens. Causal only.
    Retrofit: no identity; heal by training at the original length, with the window on. The NoPE layers of a model whose
    own attention has windows keep them.

    Source: Yang et al., "Rope to Nope and Back Again: A New Hybrid Attention Strategy", 2025, arXiv 2501.18795.
    Transformers' SmolLM3 (without a window) and Cohere 2 are built so.
    """

    Config = RnopeConfig
    info = EncodingInfo(
        title="RNoPE-SWA, NoPE among sliding-window RoPE layers",
        formula="layer l: NoPE where (l + 1) mod every = 0, else RoPE within the window",
        paper="Yang et al. 2025, arXiv 2501.18795",
        bidirectional=False,
    )


@register_encoding
class Irope(_Interleaved):
    """iRoPE: every ``every``-th layer has no positional encoding and a temperature that grows with the position.

    The temperature of the NoPE layers is that of ``nope`` with ``attn_scale`` and ``floor_scale`` (Llama 4: 0.1 and
    8192; here ``floor_scale`` is the trained length by default). The others keep the model's rotation; Llama 4 cuts
    their attention into chunks of 8192 tokens, in place of which a sliding ``window`` can be given here. Causal only.
    Retrofit: no identity; heal by training at the original length.

    Source: Meta, "The Llama 4 herd", 2025; the temperature after Nakanishi 2025, arXiv 2501.19399.
    """

    Config = IropeConfig
    info = EncodingInfo(
        title="iRoPE, NoPE with growing temperature among RoPE layers",
        formula="layer l: NoPE where (l + 1) mod every = 0, logits * (1 + c ln(1 + floor((i + 1) / floor_scale)))",
        paper="Meta 2025 (Llama 4); temperature: Nakanishi 2025, arXiv 2501.19399",
        bidirectional=False,
        relative=False,
    )

    @classmethod
    def is_relative(cls, config: Any) -> bool:
        return not config.attn_scale


@register_encoding
class Swan(_Interleaved):
    """SWAN: NoPE layers that see all, with a temperature growing with the position, among sliding-window RoPE layers.

    Groups of ``every`` layers, each led by a NoPE layer; the others keep the model's rotation under a sliding window of
    ``window`` tokens. The logits of the NoPE layers grow logarithmically with the position, here by Llama 4's formula
    (see ``nope``), which by default is 1 before the last trained position. Causal only. Retrofit: no identity; the
    paper converts pretrained models with a short continued pretraining.

    Source: Puvvada et al., "SWAN-GPT: An Efficient and Scalable Approach for Long-Context Language Modeling", 2025,
    arXiv 2504.08719.
    """

    Config = SwanConfig
    nope_first = True
    info = EncodingInfo(
        title="SWAN, NoPE with growing temperature among sliding-window RoPE layers",
        formula="layer l: NoPE where l mod every = 0, logits * (1 + c ln(1 + floor((i + 1) / floor_scale)))",
        paper="Puvvada et al. 2025, arXiv 2504.08719",
        bidirectional=False,
        relative=False,
    )

    @classmethod
    def is_relative(cls, config: Any) -> bool:
        return not config.attn_scale
