"""What an encoding is: one class at one of the sites where positions can act on a transformer.

Shapes use the notation of the documentation: ``b`` batch, ``h`` query heads, ``q`` query length, ``k`` key length,
``d`` head size, ``i`` / ``j`` absolute position of query / key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..config import EncodingConfig

Site = Literal["input", "rotation", "bias"]
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
    """

    title: str
    formula: str
    paper: str
    causal: bool = True
    bidirectional: bool = True
    relative: bool = True
    identity: str = ""


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
    def faults(cls) -> list[str]:
        """What keeps this class from being registered, in words; empty when nothing does."""
        faults = []
        if getattr(cls, "site", None) not in get_args(Site):
            faults.append("derive from BiasEncoding, RotationEncoding or InputEncoding")
        if not isinstance(getattr(cls, "info", None), EncodingInfo):
            faults.append("set info = EncodingInfo(title=..., formula=..., paper=...)")
        return faults


class BiasEncoding(Encoding[C], nn.Module):
    """Adds ``b[h, i, j]`` to the attention logits, from positions alone (after scaling and soft-capping).

    A *relative* encoding overrides :meth:`bias` (a function of the distance ``i - j``) and gets the Toeplitz kernel.
    Another one overrides :meth:`bias_at`. Learned parameters are ordinary ``nn.Parameter`` of this module, which lives
    at ``<attention>.position_encoding.<name>``; constants are computed from the config when needed, never stored in
    non-persistent buffers (those come back uninitialised from ``from_pretrained``).
    """

    site = "bias"
    toeplitz: ClassVar[bool] = True
    zero_is_silent: ClassVar[bool] = False

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__()
        self.config = config
        self.host = host
        self._silence: tuple[tuple[tuple[int, int], ...], bool] | None = None

    @classmethod
    def faults(cls) -> list[str]:
        faults = super().faults()
        relative, general = cls.bias is not BiasEncoding.bias, cls.bias_at is not BiasEncoding.bias_at
        if not relative and not general:
            faults.append("override bias(), or bias_at() where the bias is no function of the distance")
        elif not relative and cls.toeplitz:
            faults.append("set toeplitz = False, because bias_at() is overridden and bias() is not")
        return faults

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        """The part of :meth:`bias` that has no parameters: computed once per forward pass and shared by all layers.

        Args:
            distance: int64 ``[...]``, ``i - j`` in tokens (negative: the key lies in the future).
            causal: whether the attention is causal (only ``distance >= 0`` is then looked at).

        Returns:
            ``[...]``; the distance itself unless overridden.
        """
        return distance

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        """Bias at given distances.

        Args:
            prepared: ``[...]``, what :meth:`prepare` returned: the distance ``i - j`` by default.
            causal: whether the attention is causal.

        Returns:
            float32 (or the parameters' dtype, if wider) ``[h, ...]``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override bias() or bias_at().")

    def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        """Bias for positions ``[b, q]`` and ``[b, k]``: ``[b, h, q, k]``."""
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        return self.bias(self.prepare(distance, causal=causal), causal=causal).transpose(0, 1)

    def slopes(self) -> Tensor | None:
        """``[h]`` when the causal bias is exactly ``-slope * (i - j)``, which plain fused attention can carry."""
        return None

    @property
    def trains(self) -> bool:
        """Whether a gradient must reach parameters of the bias in the current mode."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())

    @property
    def silent(self) -> bool:
        """Whether the bias is exactly zero everywhere, so that the kernels may leave it out.

        Only encodings for which all-zero parameters mean a zero bias say yes. A no is kept until a parameter changes; a
        yes is looked up each time, for what is written through ``parameter.data`` leaves no trace.
        """
        if not self.zero_is_silent or torch.compiler.is_compiling():
            return False
        state = tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in self.parameters())
        if self._silence is None or self._silence[1] or self._silence[0] != state:
            with torch.no_grad():
                self._silence = (state, not any(bool(p.any()) for p in self.parameters()))
        return self._silence[1]


class RotationEncoding(Encoding[C]):
    """Changes how a model that rotates queries and keys (RoPE) does so.

    ``rope_parameters`` is what transformers' own configuration understands; a model changed this way is a plain model
    for every other tool.
    """

    site = "rotation"
    length_dependent: ClassVar[bool] = False
    extends: ClassVar[bool] = True

    def __init__(self, config: C, host: HostShape) -> None:
        self.config = config
        self.host = host

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        """New ``rope_parameters`` from the model's own."""
        raise NotImplementedError

    def max_position_embeddings(self) -> int:
        """The length the model is meant for afterwards, in tokens."""
        factor = getattr(self.config, "factor", 1.0)
        return round(self.host.max_positions * factor)

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        """float32 ``[rotary_dim / 2]`` angular frequencies in radians per token for a context of ``length`` tokens.

        Only for encodings with ``length_dependent = True``.
        """
        raise NotImplementedError

    def groups(self, positions: Tensor) -> Tensor:
        """Length each query's rotation is made for: int64, same shape as ``positions``. Only when length dependent."""
        raise NotImplementedError

    @staticmethod
    def _keep(rope: Mapping[str, Any]) -> dict[str, Any]:
        return {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if rope.get(k) is not None}


class InputEncoding(Encoding[C], nn.Module):
    """Adds ``p[i]`` to the token embeddings (on encoders: takes the place of the position table)."""

    site = "input"

    def __init__(self, config: C, host: HostShape) -> None:
        super().__init__()
        self.config = config
        self.host = host

    def forward(self, position_ids: Tensor) -> Tensor:
        """``[..., hidden_size]`` for int64 positions ``[...]``, in the parameters' dtype."""
        raise NotImplementedError

    def fit(self, target: Tensor | None, *, keeps_native: bool, embedding_rms: float) -> None:
        """Retrofit initialisation.

        Args:
            target: ``[n, hidden_size]`` rows of the position table this encoding replaces; None when it adds to a model
                without one.
            keeps_native: the native encoding stays, so the start must be an exact identity.
            embedding_rms: root mean square of the model's token embeddings.
        """


class Installed(nn.Module):
    """What is installed at one place, by name; it stands at ``<module>.position_encoding``.

    Not an ``nn.ModuleDict``, which peft's ``modules_to_save`` refuses. Always reached through its parent at call time,
    so that a wrapper around it (peft's) or sharding of it takes effect.
    """

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)

    def values(self) -> list[Any]:
        """The modules, in the order they were installed."""
        return list(self.children())


def default_inv_freq(theta: float, dim: int) -> Tensor:
    """RoPE's frequencies ``theta^(-2m/d)``: float32 ``[dim / 2]``, computed on the CPU as transformers does."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim))
