"""The native tasks, one file each; importing this registers them."""

from . import passkey, perplexity

__all__ = ["passkey", "perplexity"]
