"""Fade: from the native encoding to the new one, a little at every optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import StrictOptions, choice, integer, number
from ..errors import ConfigError
from ..installing.strength import set_strength, strength_of

if TYPE_CHECKING:
    from .fading import FadeCallback

__all__ = ["FadeCallback", "FadeOptions", "set_strength", "strength_of"]

SCHEDULES = ("linear", "cosine", "step")


@dataclass(frozen=True)
class FadeOptions(StrictOptions):
    """How the strength of a patch grows from 0 to 1 while a model trains.

    Step ``n`` (from 0) trains at strength ``f((n - delay) / steps)``: 0 before and at ``n = delay``, exactly 1 from
    ``n = delay + steps`` on. ``f(x)`` is ``x`` (linear), ``(1 - cos(pi x)) / 2`` (cosine), or 0 below 1 (step: for
    encodings with nothing in between).
    """

    name = "fade"
    noun = "section"

    schedule: str = choice("linear", SCHEDULES, help="how the strength grows; step: at once, after steps")
    steps: int | None = integer(
        None, low=1, high=10**9, optional=True, help="optimiser steps from 0 to 1; None: fraction of the training"
    )
    fraction: float = number(0.5, low=0.0, high=1.0, help="of all optimiser steps, where steps is not given")
    delay: int = integer(0, low=0, high=10**9, help="optimiser steps at strength 0 before")
    hold: int = integer(1, low=0, high=10**9, help="optimiser steps at strength 1 that must be left at the end")

    def length(self, total: int) -> int:
        """Optimiser steps from 0 to 1, at least 1, in a training of ``total``.

        Raises:
            ConfigError: it would not be over in time.
        """
        steps = self.steps if self.steps is not None else max(1, round(self.fraction * total))
        if self.delay + steps + self.hold > total:
            raise ConfigError(
                f"The fade would not end in time: delay={self.delay} + {steps} steps + hold={self.hold} are more than "
                f"the {total} optimiser steps of the training, and a model is saved at strength 1 only. Train longer, "
                "or lower steps (or fraction), delay or hold."
            )
        return steps

    def strength(self, step: int, length: int) -> float:
        """Of the optimiser step ``step`` (from 0), for a fade over ``length`` steps."""
        x = (step - self.delay) / length
        if x <= 0 or x >= 1:
            return 0.0 if x <= 0 else 1.0
        return {"linear": x, "cosine": 0.5 - 0.5 * math.cos(math.pi * x), "step": 0.0}[self.schedule]


def __getattr__(name: str) -> Any:
    if name == "FadeCallback":
        from .fading import FadeCallback

        return FadeCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
