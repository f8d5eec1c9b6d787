"""Run tasks on a subject: what is done is skipped, the rest is batched, shared out and logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ConfigError, UnsupportedError
from ..memory import exhausted, peak_memory
from ..progress import Work
from .distributed import Processes
from .log import SampleLog
from .setting import Setting
from .subject import Subject
from .task import Item, Record, Task

BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}
"""Tokens per forward to begin with, by device; halved whenever memory runs out."""

MOST_PROMPTS = 64


@dataclass
class Outcome:
    """What running a task came to, beside its records.

    Attributes:
        order: keys of all items, in the order of the plan.
        problems: length -> reason, for items that could not be run.
        failed: a problem was an error, not a limit of the model.
        seconds, tokens, peak_bytes: time, tokens read and memory, of earlier calls too.
    """

    order: list[str] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    failed: bool = False
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int | None = None

    @classmethod
    def of(cls, plan: Plan, earlier: Mapping[str, Any] | None = None) -> Outcome:
        """Before anything has run, with the cost of earlier calls as the results file has it."""
        before = earlier or {}
        return cls(
            [item.key for item in plan.items],
            seconds=before.get("seconds") or 0.0,
            tokens=before.get("tokens_read") or 0,
            peak_bytes=before.get("peak_memory_bytes"),
        )


@dataclass
class Plan:
    """The items of a task, laid out for one subject."""

    task: Task
    items: list[Item]

    @classmethod
    def of(cls, task: Task, subject: Subject, setting: Setting) -> Plan:
        """All items, or why there are none.

        Raises:
            UnsupportedError: the setting cannot be met; a run that cannot do what was asked does not start.
        """
        items = list(task.items(subject, setting))
        keys = [item.key for item in items]
        assert len(set(keys)) == len(keys), f"{task.name}: items share a key"
        return cls(task, items)

    def cost(self, log: SampleLog) -> float:
        """Estimated work left."""
        return sum(item.cost() for item in self.items if (self.task.name, item.key) not in log.done)


def run_plan(
    plan: Plan,
    subject: Subject,
    setting: Setting,
    log: SampleLog,
    outcome: Outcome,
    who: Processes,
    work: Work,
    label: str,
) -> None:
    """Run what is left of a plan, and write into ``outcome`` what it came to; that holds, too, when it is interrupted.

    Batches are laid out before they are shared out, so which prompts run together does not depend on how many
    processes there are. An item that fails is reported and tried again by the next run; the others go on.
    """
    task = plan.task
    left = [item for item in plan.items if (task.name, item.key) not in log.done]
    batches = list(_batches(left, setting.batch_size, subject.device.type))
    earlier, started = outcome.seconds, time.perf_counter()
    try:
        with peak_memory(subject.device) as peak:
            for number, batch in enumerate(batches):
                if number % who.world != who.rank:
                    continue
                work.say(f"{label}, {task.name}, {batch[0].length} tokens")
                with work.part(subject.model, sum(item.cost() for item in batch)):
                    if batch[0].length not in outcome.problems:
                        _run_batch(task, subject, batch, setting, log, outcome)
        if batches and "peak" in peak:
            outcome.peak_bytes = max(outcome.peak_bytes or 0, peak["peak"])
    finally:
        outcome.seconds = earlier + time.perf_counter() - started if batches else earlier


def _run_batch(
    task: Task, subject: Subject, batch: Sequence[Item], setting: Setting, log: SampleLog, outcome: Outcome
) -> None:
    try:
        found = halving(lambda part: task.run(subject, part, setting), batch)
    except (ConfigError, UnsupportedError) as error:
        outcome.problems[batch[0].length] = str(error)
        return
    except Exception as error:  # one length that fails must not cost the others; the run ends with an error
        outcome.problems[batch[0].length] = f"{type(error).__name__}: {error}"
        outcome.failed = True
        return
    for item, records in zip(batch, found, strict=True):
        log.add(task.name, item.key, [_checked(record) for record in records])
        outcome.tokens += item.tokens


def _checked(record: Record) -> Record:
    """A record whose likelihood is not a finite number says so, and scores nothing."""
    numbers = [record["nll"], *record.get("parts", ())]
    if all(n is None or math.isfinite(n) for n in numbers):
        return record
    void = {"finite": False, "nll": None, "score": None if record["score"] is None else 0.0}
    return {**record, **void, **({"parts": []} if "parts" in record else {})}


def halving(call: Callable[[Sequence[Any]], list[Any]], batch: Sequence[Any]) -> list[Any]:
    """The call on a batch, in halves where memory runs out."""
    try:
        return call(batch)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not exhausted(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return [*halving(call, batch[:middle]), *halving(call, batch[middle:])]


def _batches(items: Sequence[Item], size: int | str, device: str) -> Iterator[list[Item]]:
    """Neighbours of equal shape together."""
    batch: list[Item] = []
    for item in items:
        most = size if isinstance(size, int) else max(1, BATCH_TOKENS.get(device, 65536) // max(1, item.tokens))
        together = batch and item.shape is not None and item.shape == batch[0].shape and item.length == batch[0].length
        if batch and (not together or len(batch) >= min(most, MOST_PROMPTS)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
