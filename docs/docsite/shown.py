"""Every registered encoding as ``pe-retrofit show`` shows it: options, view, and the group it stands in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from pe_retrofit import get_encoding, list_encodings
from pe_retrofit.cli.show import heading
from pe_retrofit.config import EncodingConfig
from pe_retrofit.probes import example_options
from pe_retrofit.sites import PiecewiseEncoding
from pe_retrofit.specs import read_spec
from pe_retrofit.views import Shape, View, view

GROUPS = {
    "bias": "Bias: added to the attention logits",
    "score": "Score: from queries and keys",
    "pieces": "Rotation in pieces: other distances",
    "rotation": "Rotation of queries and keys",
    "input": "Input: added to the embeddings",
    "hybrid": "Hybrid: layers differ",
}
"""Heading of each group of encodings."""


@dataclass(frozen=True)
class Shown:
    """One encoding.

    Attributes:
        name: it is registered under.
        kind: its class.
        config: its options: defaults, and example values where there are none.
        filled: the example values.
        group: a key of :data:`GROUPS`.
    """

    name: str
    kind: Any
    config: EncodingConfig
    filled: dict[str, Any]
    group: str

    @property
    def heading(self) -> str:
        """Title with the options that differ from their defaults."""
        return heading(self.kind, self.config)

    def view(self) -> View:
        """On the model of ``pe-retrofit show``."""
        return view(self.config, Shape(causal=self.kind.info.causal))


@cache
def every() -> tuple[Shown, ...]:
    """All registered encodings, by name."""
    return tuple(_one(name) for name in list_encodings())


def by_group() -> dict[str, list[Shown]]:
    """The same, in the order of :data:`GROUPS`."""
    return {group: [one for one in every() if one.group == group] for group in GROUPS}


def _one(name: str) -> Shown:
    (config,), filled = read_spec(name, [], examples=partial(example_options, small=False))
    kind: Any = get_encoding(name)
    group = "pieces" if issubclass(kind, PiecewiseEncoding) else kind.site
    return Shown(name, kind, config, filled, group)
