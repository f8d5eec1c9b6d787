"""Save and load patched models through transformers' own ``save_pretrained`` and ``from_pretrained``."""

from .registering import register

__all__ = ["register"]
