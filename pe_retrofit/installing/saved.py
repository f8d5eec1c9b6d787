"""Patch a model as its config says, and let its config say what it carries."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..marking import mark
from ..patchers.family import Host, find_host
from ..plan import make_plan, parse_spec
from . import install
from .applied import PATCHES, Applied
from .stamp import stamp


def apply_saved(model: nn.Module, patches: list[dict[str, Any]]) -> None:
    """Patch a model as its config says, without probing; for models still on the meta device."""
    for patch in patches:
        host = find_host(model)
        configs, keeps_native = parse_spec(patch["encodings"], {})
        plan = make_plan(host, configs, keeps_native, patch.get("layers"))
        applied = Applied(plan.entries, plan.names, plan.layers, plan.all_layers)
        install(host, plan, applied, None)
        setattr(host.base, PATCHES, [*getattr(host.base, PATCHES, []), applied])
        mark_patches(host, getattr(host.base, PATCHES))


def mark_patches(host: Host, patches: list[Applied]) -> None:
    """Make the config say what the model carries; a plain model stays plain."""
    if all(applied.native for applied in patches):
        return
    original: dict[str, Any] = {}
    for applied in patches:
        for key, value in applied.config_before.items():
            original.setdefault(key, value)
    blocks = [{"encodings": a.entries, "layers": None if a.all_layers else a.layers} for a in patches]
    mark(host.config, blocks, original)
    stamp(host, blocks)
