"""``pe-retrofit demo``: extend a real model, remove its encoding, generate with it, and show what that does."""

from .extension import EXTENSION, run_extension
from .report import print_extension, print_results, save
from .run import run_demo
from .settings import FULL, QUICK, Settings, Variant

__all__ = [
    "EXTENSION",
    "FULL",
    "QUICK",
    "Settings",
    "Variant",
    "print_extension",
    "print_results",
    "run_demo",
    "run_extension",
    "save",
]
