"""A verdict in one line, with a tone: what stands at the top of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...plots import thousands

ALARM, WARNING, GOOD, UNKNOWN = "alarm", "warning", "good", "unknown"


def headline(verdict: Mapping[str, Any] | None) -> dict[str, str]:
    """The most important thing of a verdict.

    Returns:
        ``tone``: ``alarm`` (broken, or fluent but blind), ``warning`` (something is lost), ``good`` or ``unknown``;
        ``text``: one line.
    """
    if not verdict:
        return {"tone": UNKNOWN, "text": "Not compared with a stock model"}
    if verdict.get("broken"):
        return {"tone": ALARM, "text": "Broken: it failed a check of what every model must do"}
    marks = {int(n): found for n, found in (verdict.get("lengths") or {}).items()}
    lengths = {n: {key: found.get(key) for key in ("fluent", "retrieves")} for n, found in marks.items()}
    blind = list(verdict.get("blind") or [])
    fluent = [n for n in blind if marks.get(n, {}).get("fluent")]
    if fluent:
        return {"tone": ALARM, "text": f"Fluent but blind at {_list(fluent)}"}
    if blind:
        return {"tone": ALARM, "text": f"Perplexity looks flat, but blind at {_list(blind)}"}
    if verdict.get("short") is False:
        return {"tone": WARNING, "text": "Short context is damaged"}
    known = {n: [v for v in found.values() if v is not None] for n, found in lengths.items()}
    known = {n: found for n, found in known.items() if found}
    if not known:
        return {"tone": UNKNOWN, "text": "Too little was evaluated for a verdict"}
    kept = [n for n, found in known.items() if all(found)]
    if not kept:
        return {"tone": WARNING, "text": "Holds at no evaluated length"}
    lost = [n for n in known if n not in kept]
    what = _what(lengths)
    if lost:
        return {"tone": WARNING, "text": f"{what} up to {thousands(max(kept))}, lost at {_list(lost)}"}
    return {"tone": GOOD, "text": f"{what} up to {thousands(max(kept))}"}


def _what(lengths: Mapping[int, Mapping[str, Any]]) -> str:
    """What was looked at."""
    fluent = any(found["fluent"] is not None for found in lengths.values())
    finds = any(found["retrieves"] is not None for found in lengths.values())
    if fluent and finds:
        return "Fluent, and finds what stands far back,"
    return "Finds what stands far back" if finds else "Fluent (retrieval was not evaluated)"


def _list(lengths: list[int]) -> str:
    return ", ".join(thousands(n) for n in sorted(lengths))
