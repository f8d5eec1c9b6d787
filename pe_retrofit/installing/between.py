"""What a patch needs to be partly in force, and which patches cannot be."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..attention.late import Fixed, LateRotation
from ..attention.piecewise import PiecewiseRotation
from ..errors import UnsupportedError
from ..patchers import rotation
from ..patchers.family import Host
from ..patchers.rotation import ReplaceRotation
from ..patchers.strength import Strength, frequencies
from ..patchers.table import ReplacedTable
from ..positions import FADING, STRENGTH
from ..sites import BiasEncoding, ScoreEncoding
from .applied import Applied


def prepare(host: Host, patches: list[Applied], value: float) -> None:
    """Make a model with a :class:`~pe_retrofit.patchers.strength.Strength` ready for values between 0 and 1.

    Raises:
        UnsupportedError: its encoding has nothing in between.
    """
    state: Strength = host.base.__dict__[STRENGTH]
    reason = _obstacle(host, patches, state)
    if reason is not None:
        raise UnsupportedError(
            f"{' + '.join(a.names for a in patches)!r} can be in force (strength 1) or not (strength 0), but not at "
            f"{value:g}: {reason}. Fade with schedule='step'."
        )
    for layer, parent in enumerate(host.attentions):
        turning = _own(host, state, layer)
        for late in (m for m in parent.modules() if isinstance(m, LateRotation)):
            late.native = turning or ([0.0] * len(late.encoding.inv_freq(1, late.rope)), 1.0)
        if turning and _drops_rotation(parent) and _has(parent, ScoreEncoding):
            rotation.check_layout(host, "a score partly in force beside the model's own rotation", rotates=True)
            fading = LateRotation("fading", Fixed([0.0] * len(turning[0])), host.rope_of(layer), 1.0)
            fading.native = turning
            parent.__dict__[FADING] = fading


def _obstacle(host: Host, patches: list[Applied], state: Strength) -> str | None:
    if any(a.table_before is not None for a in patches) and not _has(host.table, ReplacedTable):
        return "a position table has so many rows or so many"
    for parent in host.attentions:
        for module in parent.modules():
            if isinstance(module, PiecewiseRotation):
                return f"{module.name!r} moves pairs of tokens to other positions, or leaves them"
            if isinstance(module, BiasEncoding) and module.reach is not None:
                return f"{module.config.name!r} masks a pair of tokens or does not"
    if state.rotary is None or host.rotary is None or not _changes_rotation(host, state):
        return None
    kinds = getattr(state.rotary, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if "dynamic" in kind or "longrope" in kind:
            return f"the model's own frequencies depend on the length of the text (rope_type={kind!r})"
    if state.rotary is not host.rotary:
        for layer_type in set(state.types):
            if len(frequencies(host.rotary, layer_type)[0]) != len(state.native(kind=layer_type)[0]):
                return "other dimensions of each head rotate than did"
    return None


def _changes_rotation(host: Host, state: Strength) -> bool:
    return state.rotary is not host.rotary or any(_hooks(parent) for parent in host.attentions)


def _own(host: Host, state: Strength, layer: int) -> tuple[list[float], float] | None:
    """Frequencies and scaling of a layer before; None where it did not rotate."""
    if state.rotary is None or not getattr(host.attentions[layer], "use_rope", True):
        return None
    inv_freq, scaling = state.native(layer)
    return inv_freq.float().tolist(), scaling


def _hooks(parent: nn.Module) -> list[ReplaceRotation]:
    return [hook for hook in parent._forward_pre_hooks.values() if isinstance(hook, ReplaceRotation)]


def _drops_rotation(parent: nn.Module) -> bool:
    return any(hook.inv_freq is None and not hook.later for hook in _hooks(parent))


def _has(parent: nn.Module | None, kind: type[Any]) -> bool:
    return parent is not None and any(isinstance(module, kind) for module in parent.modules())
