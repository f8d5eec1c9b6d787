"""A comparison as one HTML file that loads nothing: styles and pictures are inside, scripts there are none.

All values are escaped by the template engine, and the page's own Content-Security-Policy forbids everything but its
inline styles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ... import __version__
from ...plots import thousands
from ..charts import view_grids, view_lines
from ..tables import interval
from .describing import facts, measured
from .svg import line_svg
from .tables import effective_text, formats, overview


def page(template: str, title: str, date: str, **values: Any) -> str:
    """A page in the common frame; strings are escaped, whatever they hold."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def source(name: str) -> str:
        return files(__package__).joinpath(name).read_text(encoding="utf-8")

    engine = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(source("style.css"))
    return (
        engine.get_template(template).render(title=title, date=date, version=__version__, style=style, **values) + "\n"
    )


def html(comparison: Mapping[str, Any]) -> str:
    """The report."""
    models = comparison["models"]
    runs = [model for model in models if model["role"] == "run"]
    colours = colours_of(models)
    title = f"Evaluation of {runs[0]['label']}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    return page(
        "comparison.html.j2",
        title,
        comparison["date"],
        lead=_lead(models, runs),
        colours=colours,
        notes=comparison["notes"],
        overview=overview(comparison),
        tasks=[_task(comparison, task, colours) for task in comparison["tasks"]],
        intervals=comparison["intervals"],
        rules=comparison["rules"],
        runs=[{**model, "measured": measured(comparison, model)} for model in runs],
        models=[{"label": model["label"], "facts": facts(model)} for model in models],
    )


def colours_of(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """CSS class of each model's colour."""
    found: dict[str, str] = {}
    for model in models:
        used = sum(not name.startswith("cs") for name in found.values())
        found[model["label"]] = "cs" if model.get("role") == "stock" else f"c{used % 10}"
    return found


def _lead(models: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    stocks = [model for model in models if model["role"] == "stock"]
    if not stocks:
        return "No stock model was evaluated, so there is nothing to compare with."
    names = " and ".join(dict.fromkeys(str(stock["about"].get("name")) for stock in stocks))
    trained = " and ".join(dict.fromkeys(thousands(s["trained_length"]) for s in stocks if s["trained_length"]))
    what = "it was" if len(runs) == 1 else "they were"
    return f"The same questions to the retrofit and to what {what} made from: {names}" + (
        f", trained to {trained} tokens." if trained else "."
    )


def _task(comparison: Mapping[str, Any], task: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    return {
        "title": task["title"],
        "recipe": _sentence(task.get("recipe", "")),
        "source": task.get("source", ""),
        "version": task["version"],
        "unit": "" if task.get("unit", "tokens") == "tokens" else task["unit"],
        "options": task.get("options") or {},
        "effective": bool(task["effective_length"]),
        "views": [_view(comparison, task, view, colours) for view in task["views"]],
        "problems": [{"label": label, **state} for label, state in task["status"].items() if state["reason"]],
    }


def _view(
    comparison: Mapping[str, Any], task: Mapping[str, Any], view: Mapping[str, Any], colours: Mapping[str, str]
) -> dict[str, Any]:
    from markupsafe import Markup

    charts = view_lines(comparison, task, view)
    return {
        "title": _sentence(view["title"]).rstrip("."),
        "lengths": [thousands(n) for n in view["lengths"]],
        "rows": [
            {
                "label": row["label"],
                "effective": effective_text(task, row["label"]),
                "cells": [_cell(task, cell) for cell in row["cells"]],
            }
            for row in view["rows"]
        ],
        "charts": [
            {
                "title": chart.y_label[:1].upper() + chart.y_label[1:],
                "labels": [series.label for series in chart.series if series.points],
                "svg": Markup(line_svg(chart, colours)),
            }
            for chart in charts
        ],
        "grids": [
            {
                "label": grid.label,
                "lengths": [thousands(n) for n in grid.lengths],
                "rows": [
                    {"depth": f"{100 * depth:g} %", "cells": [_heat(value) for value in row]}
                    for depth, row in zip(grid.depths, grid.values, strict=True)
                ],
            }
            for grid in view_grids(task, view)
        ],
    }


def _cell(task: Mapping[str, Any], cell: Mapping[str, Any] | None) -> dict[str, str]:
    if cell is None:
        return {"value": "-", "interval": "", "change": "", "tone": ""}
    value, change = formats(task)
    shown = "not finite" if cell["not_finite"] else value(cell["mean"])
    found = {"value": shown, "interval": "", "change": "", "tone": ""}
    if cell["ci95"] is not None:
        found["interval"] = interval(cell["ci95"], value)
    if cell["change"] is not None:
        span = cell["change_ci95"]
        found["change"] = change(cell["change"]) + (f" ({interval(span, change)})" if span is not None else "")
        found["tone"] = _tone(task, span)
    return found


def _tone(task: Mapping[str, Any], span: Sequence[float] | None) -> str:
    """Whether a change is one beyond doubt: its interval lies on one side of nothing."""
    if span is None:
        return ""
    worse_up, nothing = (True, 1.0) if task["metric"] == "perplexity" else (False, 0.0)
    if span[0] > nothing:
        return "worse" if worse_up else "better"
    if span[1] < nothing:
        return "better" if worse_up else "worse"
    return ""


def _heat(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"kind": "none", "share": 0, "text": "-"}
    share = round(100 * min(max(value, 0.0), 1.0))
    return {"kind": "high" if share >= 55 else "", "share": share, "text": f"{100 * value:.0f}"}


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")
