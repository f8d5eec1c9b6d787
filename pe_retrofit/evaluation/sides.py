"""What a model is compared with: the stock model, opened when its turn comes, or a run that has its answers already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..specs import read_named
from ..status import status
from .folder import MODEL, RUN, SAMPLES, STOCK
from .lifting import lifted
from .log import SampleLog
from .opening import Opened, open_model
from .results import read
from .runner import Outcome, Plan
from .subject import Subject


@dataclass
class Side:
    """The other side of a comparison.

    Attributes:
        open: gives the stock model for as long as it is needed; None when there is a run.
        name: in tables and files.
        run: folder of a run with the stock model's answers.
        source: where the stock model comes from.
    """

    open: Callable[[], AbstractContextManager[Any]] | None
    name: str
    run: Path | None = None
    source: dict[str, Any] | None = None


def side_of_model(against: Any, subject: Subject) -> Side | None:
    """What :func:`evaluate_model` was given: ``"unpatched"``, a model, the folder of a run, or None."""
    model = subject.model
    if against is None or (isinstance(against, str) and against == "unpatched" and not status(model).patched):
        return None
    if isinstance(against, str) and against == "unpatched":
        return Side(lambda: lifted(model), f"{subject.name}, unpatched")
    if isinstance(against, (str, Path)):
        return Side(None, Path(against).resolve().name, Path(against))
    return Side(lambda: nullcontext(against), type(against).__name__)


def side_of_name(against: str | None, opened: Opened, keywords: dict[str, Any]) -> Side | None:
    """What :func:`evaluate` was given: ``auto``, ``none``, the name of a model, or the folder of a run."""
    if against is None or against == "none":
        return None
    if against == "auto":
        if not opened.changed:
            return None
        return Side(opened.stock, opened.base, source={"base": opened.base})
    path = Path(against)
    if path.is_dir() and (path / RUN).is_file():
        return Side(None, path.resolve().name, path)

    @contextmanager
    def load() -> Iterator[Any]:
        opened.model.to("cpu")  # not two on the device
        other = open_model(against, **{**keywords, "gguf_file": None})
        yield other.model

    label = read_named(against).label
    return Side(load, label, source={"base": label})


def borrow(folder: Path, log: SampleLog, plans: Sequence[Plan]) -> dict[str, Outcome]:
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
        outcome = outcomes[name] = Outcome.of(plan)
        outcome.problems = problems
    if missing:
        raise ConfigError(
            f"The run {str(folder)!r} lacks {missing} of the samples of this run, or has others. Run it with the same "
            "tasks, lengths, samples, seed and text, or give a model with --against."
        )
    return outcomes


def described_in(folder: Path) -> dict[str, Any]:
    """The stock model, as a run describes it."""
    results = read(folder)
    found = dict(results["stock"] or results["model"])
    found.setdefault("trained_length", results["model"]["trained_length"])
    return {**found, "from_run": folder.name}
