"""The native tasks, one file each; importing this registers them."""

from . import algorithms, encoder, kv_retrieval, masked, passkey, perplexity, probe, ruler, short

__all__ = ["algorithms", "encoder", "kv_retrieval", "masked", "passkey", "perplexity", "probe", "ruler", "short"]
