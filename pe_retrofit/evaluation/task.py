"""What a task is: it lays out items for a setting, and turns items into records. The registry of tasks.

An *item* is one piece of work for the model, usually one prompt. Running it gives *records*: plain JSON values with the
cell they count for (variant, length, depth) and a score, a negative log-likelihood, or both. Everything else (resuming,
batching, sharding, averaging, intervals) is done with items and records, whatever the task.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import StrictOptions
from ..errors import ConfigError
from ..progress import forward_cost

if TYPE_CHECKING:
    from .setting import Setting
    from .subject import Subject

Record = dict[str, Any]
"""``key`` and ``index`` of the item, ``variant``, ``length``, ``depth``, ``score`` (0 to 1, or None), ``nll`` (mean, in
nats per token, or None), ``tokens`` (how many it is the mean of), ``question`` (equal where two models were asked the
same, whatever else their items hold), and whatever the task adds."""


@dataclass(frozen=True)
class Item:
    """One piece of work.

    Attributes:
        key: unique within the task; the same for the same setting, so that a run can be resumed.
        length: target length in tokens.
        depth: where the thing looked for stands, 0 (start) to 1 (end); None where that means nothing.
        index: number of the sample within its cell.
        tokens: tokens the model will read.
        shape: items with equal shapes may run as one batch; None for alone.
        sha: of the tokens, so that two runs can show that they asked the same.
        content: for the task.
        forwards: in how many texts of equal length the tokens are read.
    """

    key: str
    length: int
    depth: float | None
    index: int
    tokens: int
    shape: tuple[int, ...] | None
    sha: str
    content: Any
    forwards: int = 1

    def cost(self) -> float:
        """Estimated work."""
        return self.forwards * forward_cost(self.tokens // self.forwards)

    def record(self, **more: Any) -> Record:
        """A record of this item; ``more`` may name another variant, length or depth."""
        about = {"key": self.key, "variant": "", "length": self.length, "depth": self.depth, "index": self.index}
        asked = {"actual_length": self.tokens, "sha": self.sha, "question": self.sha}
        return {**about, **asked, "score": None, "nll": None, **more}


@dataclass(frozen=True)
class TaskOptions(StrictOptions):
    """Base of a task's options."""

    noun: ClassVar[str] = "task"


class Task:
    """Base of all tasks.

    Attributes:
        name: as on the command line.
        version: raised when a change would change scores.
        title: in words.
        recipe: what a sample is and how it is scored.
        template: of the prompt, where there is one.
        source: authors, title, year, id.
        needs: ``causal`` (a decoder with a language-modelling head), ``masked`` (an encoder with one), ``head``
            (either) or ``encoder``.
        metric: ``score`` (higher is better, shown times 100) or ``perplexity``.
        unit: of the lengths of its cells: ``tokens``, or what else they count.
        notice: what the user should know before its items are laid out, e.g. that this takes minutes.
        Options: its options.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str]
    recipe: ClassVar[str]
    template: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[str] = "causal"
    metric: ClassVar[str] = "score"
    unit: ClassVar[str] = "tokens"
    notice: ClassVar[str] = ""
    Options: ClassVar[type[TaskOptions]] = TaskOptions

    def __init__(self, options: TaskOptions | None = None) -> None:
        self.options: Any = options or self.Options()

    def items(self, subject: Subject, setting: Setting) -> Iterable[Item]:
        """All items of a setting, in a fixed order, the same on every machine.

        Raises:
            UnsupportedError: the setting cannot be met, e.g. a prompt does not fit the shortest length.
        """
        raise NotImplementedError

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        """The records of each item, in order."""
        raise NotImplementedError

    def describe(self, setting: Setting) -> dict[str, Any]:
        """For the results file: what decides a sample and its score."""
        return {
            "name": self.name,
            "version": self.version,
            "title": self.title,
            "recipe": self.recipe,
            "template": self.template,
            "source": self.source,
            "metric": self.metric,
            "unit": self.unit,
            "options": {k: v for k, v in self.options.to_dict().items() if k != "name"},
        }


def rng(setting: Setting, task: str, *parts: Any) -> random.Random:
    """A generator that depends on the seed and on these parts only, and is the same on every machine."""
    return random.Random("/".join(map(str, (setting.seed, task, *parts))))


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits of a SHA-256."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


_TASKS: dict[str, type[Task]] = {}

GROUPS: dict[str, Callable[[], list[str]]] = {}
"""Names that stand for several tasks."""

PROVIDERS: dict[str, Callable[[str], type[Task]]] = {}
"""Prefixes of tasks that are made when they are named: ``PREFIX/NAME``; the function gets ``NAME``."""


def register_task(kind: type[Task]) -> type[Task]:
    """Class decorator: make a task known by its name.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in _TASKS or kind.name in GROUPS:
        raise ValueError(f"A task named {kind.name!r} exists already.")
    _TASKS[kind.name] = kind
    return kind


def register_group(name: str, members: Sequence[str]) -> None:
    """Let a name stand for several tasks."""
    GROUPS[name] = lambda: list(members)


def list_tasks() -> dict[str, type[Task]]:
    """All tasks by name."""
    return dict(_TASKS)


def choose_tasks(names: Sequence[str], kind: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Task]:
    """The tasks with these names, each once, with their options.

    Args:
        names: of tasks or groups; ``all`` for all that the model can do.
        kind: what the model is: ``causal``, ``masked`` or ``encoder``.
        options: by task name.

    Raises:
        ConfigError: an unknown name (the nearest ones are suggested), a task the model cannot do, or wrong options.
    """
    classes = {**_TASKS, **_provided(names)}
    known = [*classes, *GROUPS, "all"]
    wrong = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            wrong.append(
                f"{name!r} is no task{'; did you mean ' + ' or '.join(map(repr, close)) + '?' if close else ''}"
            )
    wrong += [f"options are given for {name!r}, which is no task" for name in options or {} if name not in classes]
    if wrong or not names:
        problems = "; ".join(wrong) or "no task is named"
        raise ConfigError(f"{problems}. Tasks: {', '.join(_TASKS)}. Groups: {', '.join(GROUPS)}, all.")
    chosen: dict[str, Task] = {}
    refused = []
    for name in names:
        members = list(_TASKS) if name == "all" else GROUPS[name]() if name in GROUPS else [name]
        for member in members:
            task = classes[member]
            if can_do(kind, task.needs):
                chosen[member] = task(task.Options.from_options((options or {}).get(member, {})))
            elif name == member:
                refused.append(f"{member!r} needs {NEEDS[task.needs]}")
    unused = [name for name in options or {} if name not in chosen]
    if refused or not chosen:
        raise ConfigError(
            f"{'; '.join(refused) or 'Nothing is left to do'}; this model is {NEEDS[kind]}. It can do: "
            f"{', '.join(n for n, t in _TASKS.items() if can_do(kind, t.needs))}."
        )
    if unused:
        raise ConfigError(f"Options are given for {', '.join(map(repr, unused))}, which is not among the tasks to run.")
    return list(chosen.values())


def _provided(names: Sequence[str]) -> dict[str, type[Task]]:
    """The classes of the names with a prefix."""
    found = {}
    for name in names:
        prefix, slash, rest = name.partition("/")
        if slash and prefix in PROVIDERS:
            found[name] = PROVIDERS[prefix](rest)
    return found


NEEDS = {
    "causal": "a decoder with a language-modelling head",
    "masked": "an encoder with a masked-language-modelling head",
    "encoder": "an encoder of the BERT family",
    "head": "a model with a language-modelling head",
}


def can_do(kind: str, needs: str) -> bool:
    """Whether a model of this kind can do what a task needs; an encoder with a head can embed too."""
    return kind == needs or (kind == "masked" and needs == "encoder") or (kind != "encoder" and needs == "head")
