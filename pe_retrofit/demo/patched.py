"""A model patched for as long as a measurement takes."""

from __future__ import annotations

from typing import Any

from ..patching import patch_model, unpatch_model
from .settings import Variant


def describe(variant: Variant) -> dict[str, Any]:
    """The variant as JSON."""
    return {"label": variant.label, "spec": variant.spec, "options": dict(variant.options)}


class Patched:
    """The model patched as the variant says, and unpatched afterwards."""

    def __init__(self, model: Any, variant: Variant) -> None:
        self.model, self.variant = model, variant

    def __enter__(self) -> None:
        if self.variant.spec is not None:
            patch_model(self.model, self.variant.spec, **self.variant.options)

    def __exit__(self, *_: object) -> None:
        unpatch_model(self.model)
