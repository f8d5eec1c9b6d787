"""Training data: texts, rows, positions, objectives; the same rows in every run, wherever it resumes."""

from .collate import Collator
from .options import DataOptions
from .prepare import Prepared, prepare

__all__ = ["Collator", "DataOptions", "Prepared", "prepare"]
