"""The results file of ``pe-retrofit eval`` as a card shows it: read as untrusted data, then as tables and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .checking import Checker, read_json

FILE = "results.json"
PICTURES = "pictures"
KIND, NEWEST = "evaluation", 1
MOST_BYTES = 64 * 2**20
MOST_TASKS, MOST_ROWS = 200, 1000
LONGEST = 2**24

MAIN_VIEWS = ("fixed_tail", "by_position", "")
"""Which view of a task stands for it: the first that it has."""


@dataclass(frozen=True)
class Row:
    """What was measured at one length; None for what was not.

    Attributes:
        variant: view of the task.
        length: in the task's unit.
        n: samples.
        mean, ci95: perplexity, or a share.
        stock: the same mean of the stock model.
        change, change_ci95: perplexity over stock's, or score minus stock's; paired.
        broken: samples whose loss was no finite number.
    """

    variant: str
    length: int
    n: int | None
    mean: float | None
    ci95: tuple[float, float] | None
    stock: float | None
    change: float | None
    change_ci95: tuple[float, float] | None
    broken: int


@dataclass(frozen=True)
class TaskResult:
    """One task."""

    name: str
    title: str
    source: str
    scored: bool
    unit: str
    status: str
    reason: str
    note: str
    options: Mapping[str, Any]
    effective_length: int | None
    rows: tuple[Row, ...]

    @property
    def views(self) -> list[str]:
        """Variants in the order of the file."""
        return list(dict.fromkeys(row.variant for row in self.rows))

    @property
    def main_view(self) -> str | None:
        """The variant that stands for the task."""
        return next((view for view in MAIN_VIEWS if view in self.views), next(iter(self.views), None))


@dataclass(frozen=True)
class Results:
    """One run of an evaluation, checked.

    Attributes:
        path: of the file.
        model, base, stock: names as the run gave them; ``base`` and ``stock`` are empty where there is none.
        trained_length: of the model that was changed.
        encodings: of each patch, the entries as in a config, and its layers.
        rope_type: of the model's own rotation.
        words: the verdict; ``broken`` where it failed a check of what every model must do.
        text: source and SHA-256.
    """

    path: Path
    status: str
    date: str
    model: str
    base: str
    stock: str
    paired: bool
    dtype: str
    trained_length: int | None
    encodings: tuple[tuple[list[dict[str, Any]], list[int] | None], ...]
    rope_type: str
    tasks: tuple[TaskResult, ...]
    words: tuple[str, ...]
    broken: bool
    text: tuple[str, str]
    samples: int | None
    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    seed: int | None
    generate: bool
    versions: Mapping[str, str]
    intervals: str

    @property
    def tested_length(self) -> int | None:
        """The longest length, in tokens, at which a task that ran gave a number."""
        found = [
            row.length
            for task in self.tasks
            if task.status == "ok" and task.unit == "tokens"
            for row in task.rows
            if row.mean is not None
        ]
        return max(found, default=None)

    @property
    def pictures(self) -> list[Path]:
        """PNG files beside the results, charts first."""
        folder = self.path.parent / PICTURES
        found = [path for path in sorted(folder.glob("*.png")) if path.is_file() and not path.is_symlink()]
        return sorted(found, key=lambda path: "-depth-" in path.name)


def read_results(path: Path) -> Results:
    """Read a results file, or the one in the folder of a run.

    Raises:
        ConfigError: there is none, or it is damaged, of another kind or of a newer version; with all that is wrong.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{str(path)!r} holds no {FILE}. Name what `pe-retrofit eval --out` wrote.")
    raw = read_json(file, MOST_BYTES)
    if raw.get("kind") != KIND:
        raise ConfigError(f"{file} is not a results file of `pe-retrofit eval` (kind {str(raw.get('kind'))[:60]!r}).")
    version = raw.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= NEWEST:
        raise ConfigError(f"{file} has schema_version {str(version)[:60]}; this pe_retrofit reads 1 to {NEWEST}.")
    check = Checker(f"The results file {file}")
    found = _results(file, raw, check)
    check.done()
    return found


def _results(file: Path, raw: Mapping[str, Any], check: Checker) -> Results:
    model, setting = check.mapping(raw, "model"), check.mapping(raw, "setting", needed=False)
    stock = check.mapping(raw, "stock", needed=False)
    verdict = check.mapping(raw, "verdict", needed=False)
    text = check.mapping(setting, "text", "setting.", needed=False)
    tasks = check.mapping(raw, "tasks")
    if len(tasks) > MOST_TASKS:
        check.problems.append(f"tasks holds {len(tasks)} entries, more than {MOST_TASKS}")
        tasks = {}
    versions = check.mapping(raw, "versions", needed=False)
    native = model.get("native_encoding")
    return Results(
        path=file,
        status=check.words(raw, "status"),
        date=check.words(raw, "date"),
        model=check.words(model, "name", "model."),
        base=check.words(model, "base", "model."),
        stock=check.words(stock, "name", "stock."),
        paired=bool(stock),
        dtype=check.words(model, "dtype", "model."),
        trained_length=check.whole(model, "trained_length", "model.", low=1, high=2**31),
        encodings=tuple(_encodings(model, check)),
        rope_type=str(native.get("rope_type") or "") if isinstance(native, dict) else "",
        tasks=tuple(_task(name, tasks, check) for name in tasks),
        words=tuple(check.entries(verdict, "words", "verdict.", most=50, kind=str)),
        broken=verdict.get("broken") is True,
        text=(check.words(text, "source", "setting.text."), check.words(text, "sha256", "setting.text.", most=64)),
        samples=check.whole(setting, "samples", "setting."),
        depths=tuple(_numbers(setting, "depths", check, 0, 1)),
        lengths=tuple(int(n) for n in _numbers(setting, "lengths", check, 1, LONGEST)),
        seed=check.whole(raw, "seed", high=2**63),
        generate=setting.get("generate") is True,
        versions={str(k): v for k, v in list(versions.items())[:30] if isinstance(v, str)},
        intervals=check.words(raw, "intervals"),
    )


def _numbers(owner: Mapping[str, Any], key: str, check: Checker, low: float, high: float) -> list[float]:
    values = owner.get(key)
    if values is None:
        return []
    if not isinstance(values, list) or len(values) > MOST_ROWS:
        check.fault(f"setting.{key}", values, "a list of numbers")
        return []
    found = [check.number({key: value}, key, "setting.", low=low, high=high) for value in values]
    return [value for value in found if value is not None]


def _encodings(model: Mapping[str, Any], check: Checker) -> Any:
    for i, patch in enumerate(check.entries(model, "encoding", "model.", most=4096)):
        where = f"model.encoding[{i}]."
        entries = check.entries(patch, "encodings", where, most=64)
        layers = check.entries(patch, "layers", where, most=4096, kind=int)
        yield entries, layers or None


def _task(name: str, tasks: Mapping[str, Any], check: Checker) -> TaskResult:
    where = f"tasks.{name[:60]}."
    task = check.mapping(tasks, name, "tasks.")
    metric, status = task.get("metric"), task.get("status")
    if metric not in ("perplexity", "score"):
        check.fault(where + "metric", metric, "'perplexity' or 'score'")
    if status not in ("ok", "skipped", "error"):
        check.fault(where + "status", status, "'ok', 'skipped' or 'error'")
    rows = check.entries(task, "by_length", where, most=MOST_ROWS)
    scored = metric == "score"
    return TaskResult(
        name=name,
        title=check.words(task, "title", where) or name,
        source=check.words(task, "source", where),
        scored=scored,
        unit=check.words(task, "unit", where) or "tokens",
        status=str(status),
        reason=check.words(task, "reason", where),
        note=check.words(task, "note", where),
        options=check.mapping(task, "options", where, needed=False),
        effective_length=check.whole(task, "effective_length", where, low=1, high=LONGEST),
        rows=tuple(_row(row, f"{where}by_length[{i}].", scored, check) for i, row in enumerate(rows)),
    )


def _row(row: Mapping[str, Any], where: str, scored: bool, check: Checker) -> Row:
    low, high = (0.0, 1.0) if scored else (0.0, float("inf"))
    change, least = ("difference", -1.0) if scored else ("ratio", 0.0)
    stock = check.mapping(row, "stock", where, needed=False)
    length = check.whole(row, "length", where, low=1, high=LONGEST)
    if length is None:
        check.problems.append(f"{where}length is missing")
    return Row(
        variant=check.words(row, "variant", where, most=200),
        length=length or 1,
        n=check.whole(row, "n", where),
        mean=check.number(row, "mean", where, low=low, high=high),
        ci95=check.pair(row, "ci95", where, low=low, high=high),
        stock=check.number(stock, "mean", where + "stock.", low=low, high=high),
        change=check.number(row, change, where, low=least, high=high),
        change_ci95=check.pair(row, f"{change}_ci95", where, low=least, high=high),
        broken=check.whole(row, "not_finite", where) or 0,
    )
