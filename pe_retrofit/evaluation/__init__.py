"""Evaluate a retrofit next to the original: tasks, intervals, effective length, a verdict."""

from .evaluate import Interrupted, evaluate, evaluate_model
from .inspecting import inspect_model, inspect_named
from .results import read
from .setting import Setting
from .task import Item, Record, Task, TaskOptions, list_tasks, register_task

__all__ = [
    "Interrupted",
    "Item",
    "Record",
    "Setting",
    "Task",
    "TaskOptions",
    "evaluate",
    "evaluate_model",
    "inspect_model",
    "inspect_named",
    "list_tasks",
    "read",
    "register_task",
]
