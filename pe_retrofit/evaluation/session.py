"""One evaluation from beginning to end: the model, then the stock model, and one file of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..progress import Report, Work
from .distributed import Processes
from .folder import MODEL, SAMPLES, STOCK, check_samples, claim
from .log import SampleLog
from .results import FILE, about, assemble, read, task_results, write
from .runner import Outcome, Plan, run_plan
from .setting import Setting
from .sides import Side, borrow, described_in
from .subject import Subject
from .task import Task


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The run was stopped by the user; what was done is saved, and :attr:`results` holds it."""

    def __init__(self, results: dict[str, Any]) -> None:
        super().__init__("The evaluation was interrupted; what was done is saved.")
        self.results = results


@dataclass
class Session:
    """One evaluation."""

    setting: Setting
    tasks: list[Task]
    out: Path | None
    report: Report | None
    who: Processes
    trained: int = 0
    earlier: Mapping[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def both(self, subject: Subject, source: dict[str, Any] | None, side: Side | None) -> dict[str, Any]:
        """The model, then the stock model; the results are written after each task."""
        mine = {**about(subject, source)}
        plans = [self._plan(task, subject) for task in self.tasks]
        samples = None if self.out is None else self.out / SAMPLES
        if self.out is not None:
            against = None if side is None else side.name
            claim(self.out, mine, against, self.setting, self.tasks, write=self.who.main)
            self.earlier = read(self.out)["tasks"] if (self.out / FILE).exists() else {}
        self.who.wait()
        logs = {
            role: SampleLog(samples, role, self.who.rank, self.who.world) for role in (MODEL, STOCK)[: 2 if side else 1]
        }
        if side is not None and side.run is not None:
            borrowed = borrow(side.run, logs[STOCK], plans)
        check_samples(plans, logs[MODEL])
        self.who.wait()  # all have read the folder before anyone writes: they must agree on what is left
        total = sum(plan.cost(log) for plan in plans for log in logs.values())
        work = Work(total, self.report)
        self.trained = _trained(subject)
        described: dict[str, Any] = {MODEL: mine}
        try:
            self._run(MODEL, subject, plans, logs, work, described)
            if side is not None and side.run is not None:
                described[STOCK] = described_in(side.run)
                self.trained = described[STOCK]["trained_length"]
                self.parts[STOCK] = borrowed
            elif side is not None and side.open is not None:
                with side.open() as model:
                    stock = Subject(model, subject.tokenizer, side.name)
                    _check_tokenizer(subject, stock)
                    self.trained = _trained(stock)
                    described[STOCK] = {**about(stock, side.source), "trained_length": self.trained}
                    theirs = [self._plan(task, stock) for task in self.tasks]
                    check_samples(theirs, logs[STOCK])
                    self._run(STOCK, stock, theirs, logs, work, described)
        except KeyboardInterrupt:
            results = self._collect(plans, logs, described, "interrupted")
            raise Interrupted(results) from None
        finally:
            for log in logs.values():
                log.close()
        return self._collect(plans, logs, described, "complete")

    def _plan(self, task: Task, subject: Subject) -> Plan:
        if self.report is not None and task.notice:
            self.report(f"{task.name}: {task.notice}", 0.0, 0.0)
        return Plan.of(task, subject, self.setting)

    def _run(
        self,
        role: str,
        subject: Subject,
        plans: Sequence[Plan],
        logs: Mapping[str, SampleLog],
        work: Work,
        described: Mapping[str, Any],
    ) -> None:
        self.parts[role] = {}
        for plan in plans:
            task = self.earlier.get(plan.task.name, {})
            outcome = Outcome.of(plan, task if role == MODEL else task.get("stock_run"))
            self.parts[role][plan.task.name] = outcome
            run_plan(plan, subject, self.setting, logs[role], outcome, self.who, work, role)
            if self.out is not None and self.who.world == 1:
                write(self._assemble(plans, logs, described, "running"), self.out)

    def _collect(
        self, plans: Sequence[Plan], logs: Mapping[str, SampleLog], described: Mapping[str, Any], state: str
    ) -> dict[str, Any]:
        """Bring together what all processes did, and write it."""
        order = [(plan.task.name, item.key) for plan in plans for item in plan.items]
        if state == "complete":
            self.who.wait()
        for log in logs.values():
            log.close()
            if self.out is not None:
                log.reread()
        if self.out is None and self.who.world > 1:
            raise UnsupportedError("Several processes share their results through a folder; give out=.")
        if state == "complete":
            self.who.wait()
        failed = any(o.failed for part in self.parts.values() for o in part.values())
        results = self._assemble(plans, logs, described, "error" if failed and state == "complete" else state)
        if self.out is not None and self.who.main:
            if state == "complete":
                for log in logs.values():
                    log.merge(order)
            write(results, self.out)
        self.who.wait() if state == "complete" else None
        return results

    def _assemble(
        self, plans: Sequence[Plan], logs: Mapping[str, SampleLog], described: Mapping[str, Any], state: str
    ) -> dict[str, Any]:
        found = {}
        for plan in plans:
            name = plan.task.name
            mine = self.parts[MODEL].get(name)
            if mine is None:
                continue
            other = self.parts.get(STOCK, {}).get(name)
            stock = None if other is None else (other, logs[STOCK])
            found[name] = task_results(plan.task, self.setting, mine, logs[MODEL], stock, self.trained)
        return assemble(
            self.setting,
            described[MODEL],
            described.get(STOCK),
            found,
            trained=self.trained,
            state=state,
            world=self.who.world,
        )


def _trained(subject: Subject) -> int:
    """Tokens a model was trained to: what a RoPE scaling in its config calls the original length, else its own."""
    originals = [rope.get("original_max_position_embeddings") for rope in subject.host.rope_sets.values()]
    return min([int(n) for n in originals if n] or [subject.trained_length])


def _check_tokenizer(one: Subject, other: Subject) -> None:
    size = other.model.get_input_embeddings().weight.shape[0]
    if size < len(one.tokenizer):
        raise ConfigError(
            f"{other.name} has {size} token embeddings and the tokenizer of {one.name} {len(one.tokenizer)} tokens: "
            "they cannot answer the same questions. Choose a stock model with the same tokenizer."
        )
