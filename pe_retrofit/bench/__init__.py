"""Speed and memory of every encoding against the same model unpatched, and against what one would use instead."""

from .runner import BenchOptions, run_bench

__all__ = ["BenchOptions", "run_bench"]
