"""``pe-retrofit demo``: extend a real model, remove its encoding, generate with it, and show what that does."""

from .report import print_results, save
from .run import run_demo
from .settings import FULL, QUICK, Settings, Variant

__all__ = ["FULL", "QUICK", "Settings", "Variant", "print_results", "run_demo", "save"]
