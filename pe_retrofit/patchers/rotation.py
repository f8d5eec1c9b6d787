"""Install a rotation: in the config where transformers knows it, else at each attention's door."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..encodings.partial_rope import PartialRope
from ..errors import UnsupportedError
from ..positions import FADING, KEYWORD, STRENGTH
from ..sites import RotationEncoding, default_inv_freq
from ..sites.split import group_of, synced
from .family import Host


class ReplaceRotation:
    """Forward pre-hook of an attention: other cos and sin than the base model's, or none at all.

    Args:
        inv_freq: float32 ``[n]`` frequencies, or None for no rotation (cos = 1, sin = 0).
        scaling: factor on cos and sin.
        through: name of a module installed at the attention that cos and sin go through.
        later: the rotation is done inside the attention instead.
    """

    def __init__(
        self,
        inv_freq: list[float] | None = None,
        scaling: float = 1.0,
        through: str | None = None,
        *,
        later: bool = False,
    ) -> None:
        self.inv_freq = inv_freq
        self.scaling = scaling
        self.through = through
        self.later = later

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs.get("position_embeddings")
        if not isinstance(given, tuple) or len(given) != 2:
            raise UnsupportedError(
                f"{type(module).__name__} was not given position_embeddings=(cos, sin) as a keyword, so its rotation "
                "cannot be replaced. This model's layers are not built like the supported families'."
            )
        strength = getattr(kwargs.get(KEYWORD), "strength", 1.0)
        if strength != 1.0:
            kwargs["position_embeddings"] = given if strength == 0.0 else self._between(module, given, kwargs)
            return args, kwargs
        turned = self._none(*given) if self.inv_freq is None else self._ours(given[0], kwargs)
        kwargs["position_embeddings"] = self._series(module)(*turned) if self.through else turned
        return args, kwargs

    def _series(self, module: Any) -> Any:
        """What cos and sin go through; where some of the heads turn here, the gradients of all processes add up."""
        series, group = getattr(module.position_encoding, str(self.through)), group_of(module)
        return series if group is None else synced(series, group)

    def _between(self, module: Any, given: tuple[Tensor, Tensor], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Partly in force: between the model's own frequencies and ours."""
        if self.later or FADING in module.__dict__:
            return self._none(*given)
        state, positions = module.__dict__[STRENGTH], kwargs[KEYWORD]
        inv_freq = self.inv_freq
        if self.through is None:
            return state.turned(given[0], positions, module.layer_idx, inv_freq, self.scaling)
        series = self._series(module)
        still = [w if m < series.kept else 0.0 for m, w in enumerate(inv_freq or ())]
        turned = state.turned(given[0], positions, module.layer_idx, still, self.scaling)
        return series(*turned, strength=positions.strength)

    @staticmethod
    def _none(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(cos), torch.zeros_like(sin)

    def _ours(self, like: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        positions = kwargs[KEYWORD]
        memo = ("rotation", tuple(self.inv_freq or ()), self.scaling, like.dtype, like.device)
        if memo not in positions.shared:
            inv_freq = torch.tensor(self.inv_freq, dtype=torch.float32, device=like.device)
            angles = positions.query.to(like.device)[..., None].float() * inv_freq
            angles = torch.cat((angles, angles), dim=-1)
            positions.shared[memo] = (
                (angles.cos() * self.scaling).to(like.dtype),
                (angles.sin() * self.scaling).to(like.dtype),
            )
        return positions.shared[memo]


def native_sets(host: Host, encoding: RotationEncoding) -> list[str | None]:
    """Which of the model's rope parameter sets an encoding changes.

    Where window layers have a set of their own (Gemma 3), encodings that extend the context leave it: no distance
    there ever exceeds the window.
    """
    return extended_sets(host) if encoding.extends else list(host.rope_sets)


def extended_sets(host: Host) -> list[str | None]:
    """The rope parameter sets of the layers that see the whole context."""
    names = list(host.rope_sets)
    if len(names) > 1:
        return [name for name in names if name != "sliding_attention"] or names
    return names


def expressible(host: Host, encoding: RotationEncoding) -> bool:
    """Whether transformers' own config can say it for this model (that of Phi-3 takes no scaling but LongRoPE)."""
    if not encoding.expressible:
        return False
    shape = host.shape()
    if isinstance(encoding, PartialRope) and shape.rotary_dim != shape.head_dim:
        return False
    kind = getattr(type(host.config), "host_class", type(host.config))
    try:
        kind.from_dict({**host.config.to_dict(), **edited_config(host, encoding)})
    except (ValueError, TypeError, KeyError, StrictDataclassError):
        return False
    return True


def edited_config(host: Host, encoding: RotationEncoding) -> dict[str, Any]:
    """New values of ``rope_parameters`` and ``max_position_embeddings``."""
    sets = host.rope_sets
    changed = native_sets(host, encoding)
    new = {name: encoding.rope_parameters(rope) if name in changed else dict(rope) for name, rope in sets.items()}
    edited: dict[str, Any] = {
        "rope_parameters": new.get(None, new),
        "max_position_embeddings": encoding.max_position_embeddings(),
    }
    if getattr(host.config, "head_dim", 0) is None:  # Mixtral: transformers' scalings cannot compute with None
        edited["head_dim"] = host.shape().head_dim
    lengths = [r["original_max_position_embeddings"] for r in new.values() if "original_max_position_embeddings" in r]
    if lengths and hasattr(host.config, "original_max_position_embeddings"):
        edited["original_max_position_embeddings"] = lengths[0]  # Phi-3: this one overrides the rope parameters'
    return edited


def rebuild_rotary(host: Host) -> nn.Module:
    """A new rotary module made from the (edited) config, where the old one is."""
    old = host.rotary
    assert old is not None
    return make_rotary(type(old), host.config, host)


def make_rotary(kind: type[nn.Module], config: Any, host: Host) -> nn.Module:
    """A rotary module made from a config, where the model's is."""
    assert host.rotary is not None
    with torch.device("cpu"):
        return kind(config).to(_device(host.rotary, host))


def restore_rotary(host: Host, before: nn.Module) -> None:
    """Put the original rotary module back, where the model is now.

    That of a model loaded as patched never left the meta device; it is made anew from the (restored) config.
    """
    if any(buffer.is_meta for buffer in before.buffers()):
        before = rebuild_rotary(host)
    current = host.rotary
    assert current is not None
    setattr(host.base, str(host.family.rotary), before.to(_device(current, host)))


def frequencies(host: Host, encoding: RotationEncoding | None, layer: int) -> tuple[list[float], float]:
    """Frequencies and scaling of one layer: an encoding's, or the model's own.

    Raises:
        UnsupportedError: the model's own depend on the length of the text.
    """
    shape, rope = host.shape(layer), host.rope_of(layer)
    if isinstance(encoding, PartialRope):
        inv_freq = default_inv_freq(rope["rope_theta"], shape.rotary_dim)
        inv_freq[encoding.kept() :] = 0.0
        return inv_freq.tolist(), 1.0
    new = dict(rope) if encoding is None else encoding.rope_parameters(rope)
    if new.get("rope_type") in ("dynamic", "longrope"):
        raise UnsupportedError(
            f"The model's own rotation (rope_type={new['rope_type']!r}) depends on the length of the text, so it "
            "cannot be done inside the attention as this encoding needs. Name the rotation in the list, e.g. "
            f"['{new['rope_type']}', ...], or patch without keeping it."
        )
    if new.get("rope_type", "default") == "default":
        return default_inv_freq(new["rope_theta"], shape.rotary_dim).tolist(), 1.0
    with torch.device("cpu"):
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[new["rope_type"]](_RopeOnly(host, shape.head_dim, new))
    return inv_freq.tolist(), float(scaling)


class _RopeOnly:
    """The few attributes transformers' rope functions read."""

    def __init__(self, host: Host, head_dim: int, rope: dict[str, Any]) -> None:
        self.rope_parameters = rope
        self.head_dim = head_dim
        self.hidden_size = host.config.hidden_size
        self.num_attention_heads = host.config.num_attention_heads
        self.max_position_embeddings = host.config.max_position_embeddings

    def standardize_rope_params(self) -> None:
        """Already in standard form."""


def check_layout(host: Host, name: str, *, rotates: bool = False) -> None:
    """Refuse models whose rotation is not the rotate-half layout, where we would have to compute it ourselves.

    Args:
        rotates: not only cos and sin are ours, but their application too.

    Raises:
        UnsupportedError: cos of the model's own rotary module is not laid out as ``(f, f)``, or (with ``rotates``) the
            model applies it otherwise, as GLM does to pairs of neighbours.
    """
    rotary = host.rotary
    assert rotary is not None
    device = _device(rotary, host)
    if device.type == "meta":
        return  # being built from a saved config, which passed here before it was saved
    extra = {}
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:
        extra["layer_type"] = host.config.layer_types[0]
    cos, _ = rotary(torch.zeros(1, 2, 1, device=device), torch.arange(2, device=device)[None], **extra)
    half = cos.shape[-1] // 2
    fits = cos.shape[-1] == host.shape().rotary_dim and torch.equal(cos[..., :half], cos[..., half:])
    if not fits or (rotates and not _applies_halves(host)):
        raise UnsupportedError(
            f"{name!r} needs a model that rotates in the rotate-half layout over its rotary dimensions; "
            f"{type(rotary).__name__} does not. Encodings that only edit the config (linear, ntk, yarn, llama3) and "
            "biases work with it."
        )


def _applies_halves(host: Host) -> bool:
    """Whether the model's own function rotates as :class:`~pe_retrofit.attention.late.LateRotation` does."""
    modules = [sys.modules[cls.__module__] for cls in type(host.attentions[0]).__mro__]
    apply = next((f for m in modules if (f := getattr(m, "apply_rotary_pos_emb", None))), None)
    if apply is None:
        return False
    width = host.shape().rotary_dim
    states = torch.arange(1, width + 1, dtype=torch.float32, device="cpu").view(1, 1, 1, width)
    angles = states[0, ..., : width // 2].repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    first, second = states.chunk(2, dim=-1)
    expected = states * cos + torch.cat((-second, first), dim=-1) * sin
    try:
        rotated, _ = apply(states, states, cos, sin)
    except (TypeError, RuntimeError):  # another signature or layout
        return False
    return rotated.shape == expected.shape and torch.allclose(rotated, expected, atol=1e-5)


def _device(rotary: nn.Module, host: Host) -> torch.device:
    buffer = next(rotary.buffers(), None)
    return buffer.device if buffer is not None else host.base.device
