"""What a run asks of every task: lengths, samples, depths, text, seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..texts import Text, python_topics

LONGEST = 2**24


@dataclass(frozen=True)
class Setting:
    """A run's setting.

    Attributes:
        lengths: in tokens, ascending; everything counts, the answer too.
        samples: prompts per cell.
        depths: where the thing looked for stands, 0 to 1.
        seed: of everything drawn.
        text: for perplexity and for haystacks.
        generate: answers are also generated, where a task would otherwise only score the given one.
        batch_size: prompts per forward; ``auto`` finds it.
    """

    lengths: Sequence[int] = (1024, 2048, 4096)
    samples: int = 5
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    seed: int = 0
    text: Text = field(default_factory=python_topics)
    generate: bool = False
    batch_size: int | str = "auto"

    def __post_init__(self) -> None:
        wrong = []
        object.__setattr__(self, "lengths", tuple(self.lengths))
        object.__setattr__(self, "depths", tuple(self.depths))
        whole = all(_is_whole(n, 16, LONGEST) for n in self.lengths)
        if not self.lengths or not whole or list(self.lengths) != sorted(set(self.lengths)):
            wrong.append(
                f"lengths={list(self.lengths)} must be one or more ascending whole numbers from 16 to {LONGEST}"
            )
        if not _is_whole(self.samples, 1, 100_000):
            wrong.append(f"samples={self.samples!r} must be a whole number from 1 to 100000")
        good = all(isinstance(d, (int, float)) and not isinstance(d, bool) and 0 <= d <= 1 for d in self.depths)
        if not self.depths or not good or list(self.depths) != sorted(set(self.depths)):
            wrong.append(f"depths={list(self.depths)} must be one or more ascending numbers from 0 to 1")
        if not _is_whole(self.seed, 0, 2**63):
            wrong.append(f"seed={self.seed!r} must be a whole number from 0")
        if self.batch_size != "auto" and not _is_whole(self.batch_size, 1, 4096):
            wrong.append(f"batch_size={self.batch_size!r} must be 'auto' or a whole number from 1 to 4096")
        if wrong:
            raise ConfigError("The setting of the evaluation is wrong: " + "; ".join(wrong) + ".")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the text by its source and SHA-256."""
        return {
            "lengths": list(self.lengths),
            "samples": self.samples,
            "depths": list(self.depths),
            "seed": self.seed,
            "generate": self.generate,
            "text": {"source": self.text.name, "sha256": self.text.sha256, "characters": len(self.text.content)},
        }


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
