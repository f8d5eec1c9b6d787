"""One file per encoding. Importing this package registers them all."""

from . import alibi, dynamic, learned, linear, llama3, longrope, nope, ntk, partial_rope, sinusoidal, t5, yarn

__all__ = [
    "alibi",
    "dynamic",
    "learned",
    "linear",
    "llama3",
    "longrope",
    "nope",
    "ntk",
    "partial_rope",
    "sinusoidal",
    "t5",
    "yarn",
]
