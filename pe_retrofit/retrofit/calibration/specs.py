"""What a request becomes when it is calibrated: gains in place of a removed rotation, slopes that can be set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config import EncodingConfig
from ...encodings.alibi import AlibiConfig
from ...encodings.nope import NopeConfig
from ...installing import Applied
from ...layering import Part, split_spec
from ...patchers.family import Host
from ...patching import STATE
from ...plan import parse_spec, resolve_layers, settle_rope
from ...registry import NATIVE, get_encoding
from ...sites import PiecewiseEncoding, RotationEncoding


def calibratable(host: Host, spec: Any, options: Mapping[str, Any], layers: Any, *, gains: bool) -> Any:
    """``spec`` as ``patch_model`` takes it, with everything in it that calibration can set.

    Where the native rotation is removed, ``nope`` with ``gains=True`` says so; ALiBi gets slopes of its own. The rest
    stays: what keeps or scales the rotation has nothing to be fitted.

    Args:
        gains: whether gains are wanted.
    """
    parts = split_spec(spec, options, layers, len(host.layers))
    turning = set(rotating(host))
    mapping: dict[Any, Any] = {}
    for part in parts:
        indices = resolve_layers(part.layers, len(host.layers))
        if some := tuple(i for i in indices if i in turning or host.family.rotary is None):
            mapping[some] = _part(host, part, gains and host.family.rotary is not None)
        if some := tuple(i for i in indices if i not in turning and host.family.rotary is not None):
            mapping[some] = _unrotated(host, part)
    if len(mapping) == 1 and not parts[0].of_several:
        return next(iter(mapping.values()))
    return mapping


def rotating(host: Host) -> list[int]:
    """Indices of the layers that rotate; SmolLM3 has some that do not."""
    if host.family.rotary is None:
        return []
    return [layer for layer, attention in enumerate(host.attentions) if getattr(attention, "use_rope", True)]


def stripped(host: Host) -> set[int]:
    """Indices of the layers of a patched model whose own encoding is gone, with none of its kind in its place."""
    found: set[int] = set()
    patches: list[Applied] = getattr(host.base, STATE, [])
    for applied in patches:
        names = [entry["name"] for entry in applied.entries]
        turned = [
            n
            for n in names
            if n in NATIVE
            or (n != NopeConfig.name and issubclass(get_encoding(n), (RotationEncoding, PiecewiseEncoding)))
        ]
        if not turned:
            found.update(applied.layers)
    return found


def _unrotated(host: Host, part: Part) -> Any:
    """For layers that never rotated: what starts as an exact identity is as near as it can be."""
    configs = [c for c in _part(host, part, gains=False) if c != NopeConfig()]
    if configs and all(
        isinstance(c, EncodingConfig) and get_encoding(c.name).identity(c, keeps_native=True, host=host.shape())
        for c in configs
    ):
        return [*NATIVE, *configs]
    return configs or [*NATIVE]


def _part(host: Host, part: Part, gains: bool) -> Any:
    configs, keeps_native = parse_spec(part.spec, part.options)
    configs, keeps_native = settle_rope(host, configs, keeps_native)
    if keeps_native:
        return ["native", *configs]
    settled: list[Any] = [replace(c, learnable=True) if isinstance(c, AlibiConfig) else c for c in configs]
    turns = [c for c in settled if issubclass(get_encoding(c.name), (RotationEncoding, PiecewiseEncoding))]
    if not gains:
        return settled
    if not turns:
        return [NopeConfig(gains=True), *settled]
    return [replace(c, gains=True) if isinstance(c, NopeConfig) else c for c in settled]
