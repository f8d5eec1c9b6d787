"""What the demo measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """A model variant to measure.

    Attributes:
        label: in tables and pictures.
        spec: for ``patch_model``; None for the model as it is.
        options: of the encoding.
    """

    label: str
    spec: str | list[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


UNPATCHED = Variant("unpatched")

LENGTH_VARIANTS = (UNPATCHED, Variant("yarn x2", "yarn", {"factor": 2.0}), Variant("yarn x4", "yarn", {"factor": 4.0}))

DAMAGE_VARIANTS = (
    UNPATCHED,
    Variant("native + t5", ["native", "t5"]),
    Variant("nope", "nope"),
    Variant("t5", "t5"),
    Variant("alibi", "alibi"),
)


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo.

    Attributes:
        lengths: context lengths in tokens, ascending.
        tail: perplexity is taken over the last so many tokens before each length.
        skip: tokens of the text passed over first.
        windows, window_length: how many windows of how many tokens measure the step-0 damage.
        new_tokens: length of the generation.
        seed: set before anything runs; greedy decoding and evaluation use no randomness, learned encodings start at 0.
    """

    lengths: Sequence[int] = (2048, 4096, 8192, 12288, 16384)
    tail: int = 1024
    skip: int = 2000
    windows: int = 16
    window_length: int = 512
    new_tokens: int = 64
    prompt: str = "A list comprehension in Python is"
    seed: int = 0
    length_variants: Sequence[Variant] = LENGTH_VARIANTS
    damage_variants: Sequence[Variant] = DAMAGE_VARIANTS

    def __post_init__(self) -> None:
        wrong = []
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            wrong.append(f"lengths={list(self.lengths)} must be one or more ascending numbers")
        elif self.lengths[0] <= self.tail:
            wrong.append(f"tail={self.tail} must be smaller than the shortest length, {self.lengths[0]}")
        for name in ("tail", "windows", "new_tokens"):
            if getattr(self, name) < 1:
                wrong.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.window_length < 2:
            wrong.append(f"window_length={self.window_length} must be at least 2")
        if self.skip < 0:
            wrong.append(f"skip={self.skip} must not be negative")
        if wrong:
            raise ConfigError("The demo's settings are wrong: " + "; ".join(wrong) + ".")


FULL = Settings()
QUICK = Settings(lengths=(1024, 2048), tail=512, windows=2, new_tokens=16)
