"""The evaluation in a card: tables beside stock, the verdict, how it was measured, and entries of the model index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .results import Results, Row, TaskResult
from .text import MISSING, code, fence, label, number, one_line, percent, plain, table, tokens, without_paths

VIEWS = {
    "by_position": "the last tokens before each length",
    "fixed_tail": "the same last tokens, given that much context",
    "sliding": "in sliding windows",
}
MOST_RESULTS = 100
"""Entries of the model index."""


def headline(results: Results) -> str:
    """The verdict; empty where there is none."""
    words = " ".join(map(plain, results.words))
    return f"**Broken: it failed a check of what every model must do.** {words}" if results.broken else words


def tables(results: Results) -> Iterator[str]:
    """Per task: a heading, a table per view, and what could not be done."""
    for task in results.tasks:
        yield f"### {plain(task.title)}"
        for view in task.views:
            what = VIEWS.get(view) or (plain(view) if view else "")
            yield (f"{what[:1].upper()}{what[1:]}:\n\n" if what else "") + _table(task, view, results.paired)
        yield "\n".join(_notes(task))


def _table(task: TaskResult, view: str, paired: bool) -> str:
    rows = [row for row in task.rows if row.variant == view]
    show = percent if task.scored else number
    change, change_of = ("minus stock", _points) if task.scored else ("over stock", _ratio)
    head = ["tokens" if task.unit == "tokens" else plain(task.unit)]
    head += ["stock"] if paired else []
    head += ["this model", "95 %"]
    head += [change, "95 %, paired"] if paired else []
    lines = []
    for row in rows:
        line = [f"{row.length:,}"]
        line += [show(row.stock)] if paired else []
        line += ["not finite" if row.broken else show(row.mean), _interval(row.ci95, show)]
        if paired:
            line += [change_of(row.change), _interval(row.change_ci95, change_of)]
        lines.append([*line, MISSING if row.n is None else f"{row.n:,}"])
    return table([*head, "n"], lines)


def _interval(pair: tuple[float, float] | None, show: Any) -> str:
    return MISSING if pair is None else f"{show(pair[0])} to {show(pair[1])}"


def _points(value: float | None) -> str:
    return percent(value, sign=True)


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}x" if value < 10 else f"{number(value)}x"


def _notes(task: TaskResult) -> Iterator[str]:
    kind = "Score, in percent." if task.scored else "Perplexity; compare across a row: stretches of a text differ."
    found = [kind]
    if task.scored and task.unit == "tokens":
        found.append(f"Effective length: {tokens(task.effective_length) if task.effective_length else 'none'}.")
    if task.status != "ok" or task.reason:
        found.append(f"**{task.status}**{': ' + plain(task.reason) if task.reason else ''}.")
    if not task.rows:
        found.append("Nothing was measured.")
    if task.note:
        found.append(plain(task.note))
    options = ", ".join(f"{plain(k, 60)} = {plain(v, 60)}" for k, v in list(task.options.items())[:30])
    source = f" Source: {plain(task.source)}." if task.source else ""
    yield " ".join(found)
    if options or source:
        yield f"\n{f'Options: {options}.' if options else ''}{source}".strip()


def measured(results: Results, repo: str) -> str:
    """Setting, text, versions, and the command."""
    source, sha = results.text
    lines = [
        f"- {plain(results.model) or 'this model'}"
        + (f", next to {plain(results.stock)} (stock)" if results.paired else "; not compared with a stock model")
        + (f", in {plain(results.dtype)}" if results.dtype else ""),
        f"- text: {plain(source) or 'not recorded'}, sha256 {code(sha) if sha else MISSING}",
        f"- {MISSING if results.samples is None else results.samples} samples per cell, depths "
        f"{', '.join(f'{depth:g}' for depth in results.depths) or MISSING}, seed "
        f"{MISSING if results.seed is None else results.seed}",
        f"- intervals: {plain(results.intervals) or MISSING}; n: samples; {MISSING}: not measured",
        f"- date: {plain(results.date) or MISSING}",
        "- to repeat it, with the text as `--text` and a task's options as `--set TASK.OPTION=VALUE`:",
    ]
    if results.status != "complete":
        lines.insert(0, f"- **The run was not finished (status {plain(results.status) or 'not recorded'}).**")
    return "\n".join(lines) + "\n\n" + fence(command(results, repo), "bash")


def command(results: Results, repo: str) -> str:
    """The line that measures this; the text is named beside it."""
    names = [task.name for task in results.tasks if re.fullmatch(r"[\w./-]{1,100}", task.name)]
    parts = [f"pe-retrofit eval {repo}", f"--tasks {','.join(names)}"]
    parts += [f"--lengths {','.join(map(str, results.lengths))}"] if results.lengths else []
    parts += [f"--samples {results.samples}"] if results.samples is not None else []
    parts += [f"--depths {','.join(f'{depth:g}' for depth in results.depths)}"] if results.depths else []
    parts += [f"--seed {results.seed}"] if results.seed is not None else []
    parts += ["--generate"] if results.generate else []
    parts += [f"--dtype {results.dtype}"] if results.dtype in ("float32", "bfloat16", "float16") else []
    return " ".join(parts)


def model_index(results: Results, pipeline: str | None) -> list[Any]:
    """One ``EvalResult`` per task and length, of the view that stands for the task."""
    from huggingface_hub import EvalResult

    found = []
    for task in results.tasks:
        view = label(task.main_view or "", 40)
        for row in _numbers(task):
            metric, what = ("accuracy", "mean score (0 to 1)") if task.scored else ("perplexity", "perplexity")
            text = results.text[0] if not task.scored else task.title
            found.append(
                EvalResult(
                    task_type=pipeline or "feature-extraction",
                    dataset_type=_slug(text if not task.scored else task.name),
                    dataset_name=label(text or task.title),
                    metric_type=metric,
                    metric_name=f"{what} at {row.length:,} {label(task.unit, 40)}" + (f" ({view})" if view else ""),
                    metric_value=float(f"{row.mean:.6g}"),
                )
            )
    return found[:MOST_RESULTS]


def _numbers(task: TaskResult) -> list[Row]:
    return [row for row in task.rows if row.variant == task.main_view and row.mean is not None and not row.broken]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", one_line(without_paths(text), 80)).strip("-.") or "text"
