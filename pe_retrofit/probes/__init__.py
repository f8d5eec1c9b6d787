"""The measurements behind :mod:`pe_retrofit.properties`: a small random model, plain and patched, and its answers."""

from .lab import FAMILY_NAMES, TOO_FAR, TRAINED, Lab
from .options import EXAMPLES, example_options

__all__ = ["EXAMPLES", "FAMILY_NAMES", "TOO_FAR", "TRAINED", "Lab", "example_options"]
