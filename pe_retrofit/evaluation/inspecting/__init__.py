"""What a retrofit did inside: attention by distance, entropy, sinks, drift, repetition; flags what to act on."""

from .report import table
from .run import inspect_model, inspect_named

__all__ = ["inspect_model", "inspect_named", "table"]
