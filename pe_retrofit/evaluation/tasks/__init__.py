"""The native tasks, one file each; importing this registers them."""

from . import encoder, masked, passkey, perplexity, short

__all__ = ["encoder", "masked", "passkey", "perplexity", "short"]
