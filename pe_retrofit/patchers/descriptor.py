"""A family of models as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Paths are dotted attribute names.

    Attributes:
        name: family name.
        layers: the list of layers, from the base model.
        attention: the self-attention, from a layer.
        rotary: the module that returns cos and sin, from the base model; None without rotation.
        table: the position table, from the base model; None without one.
        packs_by_position: the base model masks packed sequences from each other by ``position_ids``.
        examples: models of this family, for people.
    """

    name: str
    layers: str
    attention: str
    examples: str
    rotary: str | None = None
    table: str | None = None
    packs_by_position: bool = False
