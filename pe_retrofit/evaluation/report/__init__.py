"""Runs next to one another: as data, tables, pictures, Markdown for a model card, and one HTML file."""

from .comparison import Run, compare, read_runs
from .html import html
from .markdown import markdown
from .tables import overview, task_tables
from .writing import write_comparison, write_run

__all__ = [
    "Run",
    "compare",
    "html",
    "markdown",
    "overview",
    "read_runs",
    "task_tables",
    "write_comparison",
    "write_run",
]
