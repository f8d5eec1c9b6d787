"""Evaluate a model next to the stock model: the same questions to both, one folder of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..progress import Report, Work
from ..status import status
from . import tasks as _tasks  # noqa: F401  (registers them)
from .bridges import lm_eval as _lm_eval  # noqa: F401  (knows the tasks named lm_eval/...)
from .distributed import Processes, processes
from .lifting import lifted
from .log import SampleLog
from .opening import Opened, describe_source, open_model
from .results import about, assemble, read, task_results, write
from .runner import Outcome, Plan, run_plan
from .setting import Setting
from .subject import Subject
from .task import Task, choose_tasks

MODEL, STOCK = "model", "stock"
SAMPLES = "samples"
RUN = "run.json"


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The run was stopped by the user; what was done is saved, and :attr:`results` holds it."""

    def __init__(self, results: dict[str, Any]) -> None:
        super().__init__("The evaluation was interrupted; what was done is saved.")
        self.results = results


def evaluate_model(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str] = ("perplexity", "passkey"),
    against: Any = "unpatched",
    out: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "",
    report: Report | None = None,
    **setting: Any,
) -> dict[str, Any]:
    """Evaluate a model that is loaded already, on the same samples as the model it came from.

    Args:
        model: a transformers model of a supported family, patched or not, with an adapter or not.
        tokenizer: of the model.
        tasks: names of tasks or groups; ``all`` for all the model can do.
        against: ``"unpatched"``: the same model with its patch lifted while it is compared (nothing is compared when
            there is no patch); another model; the folder of a run that has the same samples; or None.
        out: folder for ``results.json`` and ``samples/*.jsonl``; a run that stopped goes on from there. None keeps
            everything in memory.
        options: by task, e.g. ``{"passkey": {"digits": 7}}``.
        name: in tables and files; the class by default.
        report: is told how far the run is: text, work done, work in all.
        **setting: of :class:`Setting`: ``lengths``, ``samples``, ``depths``, ``seed``, ``text``, ``generate``,
            ``batch_size``.

    Returns:
        The results, as in ``results.json``.

    Raises:
        ConfigError: unknown tasks, wrong options or setting, or ``out`` holds another run.
        UnsupportedError: the model fits no family, the text is too short, or the patch cannot be lifted.
        Interrupted: by Ctrl-C; calling again with the same arguments goes on.
    """
    subject = Subject(model, tokenizer, name or type(model).__name__)
    wanted = _Setting(setting)
    side: _Side | None
    if against is None or (isinstance(against, str) and against == "unpatched" and not status(model).patched):
        side = None
    elif isinstance(against, str) and against == "unpatched":
        side = _Side(lambda: lifted(model), f"{subject.name}, unpatched")
    elif isinstance(against, (str, Path)):
        side = _Side(None, str(against), Path(against))
    else:
        side = _Side(lambda: nullcontext(against), type(against).__name__)
    chosen = choose_tasks(list(tasks), subject.kind, options)
    run = _Run(wanted.made, chosen, None if out is None else Path(out), report, processes())
    return run.both(subject, None, side)


def evaluate(
    model: str,
    *,
    tasks: Sequence[str] = ("perplexity", "passkey"),
    against: str | None = "auto",
    out: str | Path,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    report: Report | None = None,
    **setting: Any,
) -> dict[str, Any]:
    """Evaluate a model by its name; see :func:`evaluate_model`.

    Args:
        model: a hub id, a folder, an adapter's folder, a GGUF file, ``smollm2``, ``minilm``, or ``NAME@MODEL`` to patch
            on the fly (``yarn:factor=4@MODEL``).
        against: ``auto``: the same weights without patch and adapter, where there is one; ``none``; a model; or the
            folder of a run.
        dtype: ``auto`` (of the checkpoint), ``float32``, ``bfloat16``, ``float16``.
        device: ``cpu``, ``cuda``, ...; by default cuda where there is one.

    Raises:
        As :func:`evaluate_model`, and ConfigError: the model cannot be loaded.
    """
    wanted, who = _Setting(setting), processes()
    keywords: dict[str, Any] = {
        "dtype": dtype,
        "device": who.device or device or _device(),
        "gguf_file": gguf_file,
        "trust_remote_code": trust_remote_code,
    }
    if report is not None:
        report("loading the model", 0.0, 0.0)
    opened = open_model(model, **keywords)
    subject = Subject(opened.model, opened.tokenizer, model)
    chosen = choose_tasks(list(tasks), subject.kind, options)
    run = _Run(wanted.made, chosen, Path(out), report, who)
    return run.both(subject, describe_source(opened), _side_of(against, opened, keywords))


@dataclass
class _Side:
    """The stock model, opened when its turn comes; or the run that has its answers already."""

    open: Callable[[], AbstractContextManager[Any]] | None
    name: str
    run: Path | None = None
    tokenizer: Any = None
    source: dict[str, Any] | None = None


def _side_of(against: str | None, opened: Opened, keywords: dict[str, Any]) -> _Side | None:
    if against is None or against == "none":
        return None
    if against == "auto":
        if not opened.changed:
            return None
        return _Side(opened.stock, opened.base, source={"base": opened.base})
    path = Path(against)
    if path.is_dir() and (path / RUN).is_file():
        return _Side(None, against, path)

    @contextmanager
    def load() -> Iterator[Any]:
        opened.model.to("cpu")  # not two on the device
        other = open_model(against, **{**keywords, "gguf_file": None})
        yield other.model

    return _Side(load, against, source={"base": against})


class _Setting:
    """A setting made from keywords."""

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        unknown = sorted(set(keywords) - set(Setting.__dataclass_fields__))
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)}: unknown. The setting has: {', '.join(Setting.__dataclass_fields__)}."
            )
        self.made = Setting(**keywords)


@dataclass
class _Run:
    """One evaluation."""

    setting: Setting
    tasks: list[Task]
    out: Path | None
    report: Report | None
    who: Processes
    trained: int = 0
    parts: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def both(self, subject: Subject, source: dict[str, Any] | None, side: _Side | None) -> dict[str, Any]:
        """The model, then the stock model; the results are written after each task."""
        mine = {**about(subject, source)}
        plans = [self._plan(task, subject) for task in self.tasks]
        samples = None if self.out is None else self.out / SAMPLES
        self._claim(mine, side)
        self.who.wait()
        logs = {
            role: SampleLog(samples, role, self.who.rank, self.who.world) for role in (MODEL, STOCK)[: 2 if side else 1]
        }
        if side is not None and side.run is not None:
            borrowed = _borrow(side.run, logs[STOCK], plans)
        _check_samples(plans, logs[MODEL])
        total = sum(plan.cost(log) for plan in plans for log in logs.values())
        work = Work(total, self.report)
        self.trained = _trained(subject)
        described: dict[str, Any] = {MODEL: mine}
        try:
            self._run(MODEL, subject, plans, logs, work, described)
            if side is not None and side.run is not None:
                described[STOCK] = _described(side.run)
                self.trained = described[STOCK]["trained_length"]
                self.parts[STOCK] = borrowed
            elif side is not None and side.open is not None:
                with side.open() as model:
                    stock = Subject(model, side.tokenizer or subject.tokenizer, side.name)
                    _check_tokenizer(subject, stock)
                    self.trained = _trained(stock)
                    described[STOCK] = {**about(stock, side.source), "trained_length": self.trained}
                    theirs = [self._plan(task, stock) for task in self.tasks]
                    _check_samples(theirs, logs[STOCK])
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
            self.parts[role][plan.task.name] = run_plan(plan, subject, self.setting, logs[role], self.who, work, role)
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

    def _claim(self, model: Mapping[str, Any], side: _Side | None) -> None:
        """Mark the folder as this run's, or refuse one that holds another's.

        Lengths, samples, depths and tasks may grow from one call to the next; what changes an answer may not.
        """
        if self.out is None:
            return
        mine = {
            "model": {k: model.get(k) for k in ("name", "revision", "class", "dtype", "encoding", "adapter")},
            "against": None if side is None else side.name,
            "seed": self.setting.seed,
            "text": self.setting.text.sha256,
            "generate": self.setting.generate,
            "tasks": {task.name: [task.version, task.describe(self.setting)["options"]] for task in self.tasks},
        }
        mine = json.loads(json.dumps(mine))
        path = self.out / RUN
        if path.exists():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{path} cannot be read ({error}). Use another folder.") from error
            wrong = [k for k in ("model", "against", "seed", "text", "generate") if before.get(k) != mine[k]]
            wrong += [
                f"options or version of {name}"
                for name, value in mine["tasks"].items()
                if before.get("tasks", {}).get(name, value) != value
            ]
            if wrong:
                raise ConfigError(
                    f"The folder {str(self.out)!r} holds another run: {', '.join(wrong)} differ. Give another --out, "
                    "or delete the folder."
                )
            mine["tasks"] = {**before.get("tasks", {}), **mine["tasks"]}
        if self.who.main:
            self.out.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".json.new")
            fresh.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
            fresh.replace(path)


def _trained(subject: Subject) -> int:
    """Tokens a model was trained to: what a RoPE scaling in its config calls the original length, else its own."""
    originals = [rope.get("original_max_position_embeddings") for rope in subject.host.rope_sets.values()]
    return min([int(n) for n in originals if n] or [subject.trained_length])


def _check_samples(plans: Sequence[Plan], log: SampleLog) -> None:
    for name, item in ((plan.task.name, item) for plan in plans for item in plan.items):
        records = log.done.get((name, item.key), [])
        if any(record["sha"] != item.sha for record in records):
            raise ConfigError(
                f"The samples of {name!r} in {log.path} are not those of this run (item {item.key}): the "
                "tokenizer or the text has changed. Use another folder."
            )


def _check_tokenizer(one: Subject, other: Subject) -> None:
    size = other.model.get_input_embeddings().weight.shape[0]
    if size < len(one.tokenizer):
        raise ConfigError(
            f"{other.name} has {size} token embeddings and the tokenizer of {one.name} {len(one.tokenizer)} tokens: "
            "they cannot answer the same questions. Choose a stock model with the same tokenizer."
        )


def _borrow(folder: Path, log: SampleLog, plans: Sequence[Plan]) -> dict[str, Outcome]:
    """Take the stock model's answers from another run; the lengths it was skipped at there are skipped here too."""
    role = STOCK if (folder / SAMPLES / f"{STOCK}.jsonl").is_file() else MODEL
    theirs, found = SampleLog(folder / SAMPLES, role), read(folder)["tasks"]
    outcomes: dict[str, Outcome] = {}
    missing = 0
    for plan in plans:
        name = plan.task.name
        problems: dict[int, str] = {}
        part = found.get(name, {})
        part = part.get("stock_run", {}) if role == STOCK else part
        skipped = part.get("problems", {}) if part.get("status") != "error" else {}
        for item in plan.items:
            records = theirs.done.get((name, item.key))
            if records is None and str(item.length) in skipped:
                problems[item.length] = skipped[str(item.length)]
            elif records is None or any(record["sha"] != item.sha for record in records):
                missing += 1
            elif (name, item.key) not in log.done:
                log.add(name, item.key, records)
        outcomes[name] = Outcome([item.key for item in plan.items], problems=problems)
    if missing:
        raise ConfigError(
            f"The run {str(folder)!r} lacks {missing} of the samples of this run, or has others. Run it with the same "
            "tasks, lengths, samples, seed and text, or give a model with --against."
        )
    return outcomes


def _described(folder: Path) -> dict[str, Any]:
    results = read(folder)
    found = dict(results["stock"] or results["model"])
    found.setdefault("trained_length", results["model"]["trained_length"])
    return {**found, "from_run": folder.name}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
