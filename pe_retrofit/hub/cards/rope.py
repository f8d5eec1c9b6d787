"""``rope_parameters`` of a plain config: what it asks for, and to what length the model was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...config import EncodingConfig
from ...registry import config_from_dict, get_encoding

SCALINGS = {
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "longrope": "longrope",
    "llama3": "llama3",
    "proportional": "partial_rope",
}
"""transformers' ``rope_type`` and the encoding of that name here."""


def rope_of(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """``rope_parameters``, under its older name too."""
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict):
        return rope
    old = raw.get("rope_scaling")
    if not isinstance(old, dict):
        return {}
    named = {"rope_type": old.get("rope_type", old.get("type")), "rope_theta": raw.get("rope_theta")}
    return {**{k: v for k, v in old.items() if k != "type"}, **{k: v for k, v in named.items() if v is not None}}


def _sets(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[int] | None]]:
    """Each set of rope parameters with its layers."""
    nested = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    if not nested:
        return [(rope, None)]
    types = raw.get("layer_types")
    types = types if isinstance(types, list) else []
    return [(part, [i for i, kind in enumerate(types) if kind == name]) for name, part in nested.items()]


def scalings(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> list[tuple[EncodingConfig, list[int] | None]]:
    """The encodings that rope parameters ask for, each with its layers."""
    found = []
    for part, layers in _sets(rope, raw):
        name = SCALINGS.get(str(part.get("rope_type")))
        if name is None:
            continue
        options = {option["option"] for option in get_encoding(name).Config.describe()}
        values = {k: v for k, v in part.items() if k in options and v is not None}
        if name == "partial_rope" and "partial_rotary_factor" in part:
            values["p"] = part["partial_rotary_factor"]
        if name == "longrope" and "factor" not in values:  # Phi-3 leaves it to the two lengths
            longest, trained = raw.get("max_position_embeddings"), original_length(rope, raw, None)
            if isinstance(longest, int) and isinstance(trained, int) and min(longest, trained) > 0:
                values["factor"] = longest / trained
        found.append((config_from_dict({"name": name, **values}), layers))
    return found


def original_length(rope: Mapping[str, Any], raw: Mapping[str, Any], reach: int | None) -> int | None:
    """Tokens a plain model was trained to, as far as its config tells."""
    sets = [part for part, _ in _sets(rope, raw)]
    said = [part.get("original_max_position_embeddings") for part in sets]
    said.append(raw.get("original_max_position_embeddings"))
    known = [n for n in said if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if known:
        return min(known)
    kinds = {part.get("rope_type"): part for part in sets}
    if "linear" in kinds and reach:
        factor = kinds["linear"].get("factor")
        return round(reach / factor) if isinstance(factor, (int, float)) and factor >= 1 else None
    return reach if set(kinds) & {"dynamic", "proportional"} else None


def positions(raw: Mapping[str, Any], host_type: str, reach: int | None) -> int | None:
    """Positions, without the rows that RoBERTa and its like keep before the first."""
    padding = raw.get("pad_token_id")
    if reach is None or not isinstance(padding, int) or not re.search(r"roberta|camembert", host_type):
        return reach
    return max(reach - padding - 1, 1)
