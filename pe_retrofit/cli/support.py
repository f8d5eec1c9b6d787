"""Which encoding goes with which family, as a Markdown table for the README."""

from __future__ import annotations

from typing import Any

from .list import on_disk

BEGIN, END = "<!-- encodings: generated -->", "<!-- encodings: end -->"


def supported(kind: Any, family: Any) -> bool:
    """Whether an encoding can be put on a plain model of a family: a decoder if it rotates, else an encoder.

    Args:
        kind: encoding class.
        family: descriptor of the family.
    """
    from ..encodings.nope import Nope

    if family.rotary is not None:
        return bool(kind.info.causal)
    scales = kind.site == "rotation" and not issubclass(kind, Nope)
    return bool(kind.info.bidirectional) and not scales


def markdown() -> str:
    """The table, one row per registered encoding, without the markers."""
    from ..patchers.family import FAMILIES
    from ..registry import get_encoding, list_encodings

    families = list({family.name: family for family in reversed(FAMILIES)}.values())[::-1]
    head = ["encoding", "what it is", "acts on", *(f"`{family.name}`" for family in families), "saved as", "paper"]
    rows = [head, ["---"] * len(head)]
    for name in list_encodings():
        kind = get_encoding(name)
        marks = ["yes" if supported(kind, family) else "no" for family in families]
        rows.append([f"`{name}`", kind.info.title, kind.site, *marks, on_disk(kind), kind.info.paper])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
