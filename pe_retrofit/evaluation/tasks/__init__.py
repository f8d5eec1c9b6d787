"""The native tasks, one file each; importing this registers them."""

from . import encoder, passkey, perplexity

__all__ = ["encoder", "passkey", "perplexity"]
