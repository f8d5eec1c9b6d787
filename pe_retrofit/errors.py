"""The exceptions of the package. All are ``ValueError``, so that callers need no import to catch them."""

from __future__ import annotations


class ConfigError(ValueError):
    """Options are wrong. The message lists every problem found, not only the first.

    Attributes:
        problems: one line each, where several were found in one place.
    """

    problems: tuple[str, ...] = ()


class UnsupportedError(ValueError):
    """The combination of model, encoding, layers, cache or backend cannot be carried. The message names the way out."""


class UnknownEncodingError(KeyError, ValueError):
    """No encoding has this name. The message suggests the nearest ones."""

    def __str__(self) -> str:  # KeyError would print the message as a quoted repr
        return str(self.args[0])


class TrainingError(ValueError):
    """Training cannot go on: a loss that is no number, a full disk. The message names the last whole checkpoint."""


class SavedDiffersError(UnsupportedError):
    """What was saved gives other logits than the model in memory. Nothing was kept."""
