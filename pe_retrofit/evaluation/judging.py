"""What the numbers say, by rules that are written into the file: effective length, and a verdict in words.

Perplexity alone passes a model that no longer looks back: its next tokens follow from the last few hundred. So the
verdict looks at short context, long context and retrieval, each against the stock model, and says so when a model is
fluent at a length at which it finds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import thousands

KEPT = 0.9
"""Share of stock's score at its trained length that counts as kept."""

FLUENT = 1.1
"""Perplexity over stock's, up to which a model counts as equally fluent."""

RULES = {
    "effective_length": (
        f"the largest evaluated length whose mean score is at least {KEPT} of the reference: the stock model's mean "
        "score at the largest evaluated length within its trained length"
    ),
    "fluent": (
        f"perplexity of the last tokens (view fixed_tail; else by_position) at most {FLUENT} times stock's at "
        "the same length; beyond stock's trained length, of the same tokens (fixed_tail only), at most that times "
        "stock's with the largest evaluated context within it"
    ),
    "flat": f"perplexity (view fixed_tail) at most {FLUENT} times the model's own at the shortest evaluated length",
    "retrieves": "as for effective_length, at that length, the mean over all retrieval tasks of the run",
    "short": f"perplexity at the shortest length at most {FLUENT} times stock's",
}

RETRIEVAL = (
    "passkey",
    "niah_single",
    "niah_multikey",
    "niah_multivalue",
    "niah_multiquery",
    "kv_retrieval",
    "encoder_passkey",
    "encoder_needle",
)


def effective_length(
    rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], trained: int
) -> tuple[int | None, str]:
    """The effective length by the rule, and the reason where there is none.

    Args:
        rows: of the model, by length.
        reference: of the stock model, by length.
        trained: length the stock model was trained to.
    """
    within = [row for row in reference if row["length"] <= trained and row["mean"] is not None]
    if not within:
        return None, "no length within the trained one was evaluated"
    goal = KEPT * max(within, key=lambda row: row["length"])["mean"]
    if goal <= 0:
        return None, "the stock model scores 0 at its trained length"
    reached = [row["length"] for row in rows if row["mean"] is not None and row["mean"] >= goal]
    return (max(reached), "") if reached else (None, "no length reaches the reference")


def judge(tasks: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """The verdict on a model, from the tasks of a results file that has a stock model.

    Returns:
        ``lengths``: length -> {fluent, flat, retrieves}; ``short``: kept or not; ``blind``: the lengths at which
        perplexity looks well and retrieval fails; ``words``: sentences. None for unknown.
    """
    fluent, flat, retrieves = _fluency(tasks, trained), _flatness(tasks), _retrieval(tasks, trained)
    lengths = {
        str(n): {"fluent": fluent.get(n), "flat": flat.get(n), "retrieves": retrieves.get(n)}
        for n in sorted({*fluent, *flat, *retrieves})
    }
    well = {n for n, kept in fluent.items() if kept} | {n for n, kept in flat.items() if kept and n > min(flat)}
    blind = sorted(n for n, found in retrieves.items() if not found and n in well)
    short = _short(tasks)
    kept = {"Perplexity equals stock's": fluent, "Perplexity is flat": flat, "Retrieval holds": retrieves}
    words = _words(short, kept)
    if blind:
        words.append(
            f"Blind at {', '.join(map(thousands, blind))} tokens: perplexity looks well there, yet what stands far "
            "back is not found. Perplexity alone would have hidden this."
        )
    return {"lengths": lengths, "short": short, "blind": blind, "words": words}


def _fluency(tasks: Mapping[str, Any], trained: int) -> dict[int, bool]:
    rows = tasks.get("perplexity", {}).get("cells", [])
    tail = [row for row in rows if row["variant"] == "fixed_tail"]
    if tail:
        within = [row for row in tail if row["length"] <= trained and row.get("stock") and row["stock"]["mean"]]
        if not within:
            return {}
        goals = {row["length"]: FLUENT * row["stock"]["mean"] for row in within}
        last = goals[max(goals)]
        return {
            row["length"]: row["mean"] is not None and row["mean"] <= goals.get(row["length"], last) for row in tail
        }
    rows = [row for row in rows if row["variant"] == "by_position" and row["length"] <= trained and row.get("stock")]
    return {row["length"]: row["ratio"] is not None and row["ratio"] <= FLUENT for row in rows}


def _flatness(tasks: Mapping[str, Any]) -> dict[int, bool]:
    rows = [row for row in tasks.get("perplexity", {}).get("cells", []) if row["variant"] == "fixed_tail"]
    first = min(rows, key=lambda row: row["length"], default=None)
    if first is None or not first["mean"]:
        return {}
    return {row["length"]: row["mean"] is not None and row["mean"] <= FLUENT * first["mean"] for row in rows}


def _retrieval(tasks: Mapping[str, Any], trained: int) -> dict[int, bool]:
    found: dict[int, list[float]] = {}
    goals = []
    for name in [n for n in tasks if n in RETRIEVAL or n.startswith("lm_eval/niah_")]:
        rows = tasks.get(name, {}).get("by_length", [])
        stock = [row for row in rows if row.get("stock") and row["length"] <= trained]
        if not stock:
            continue
        goals.append(max(stock, key=lambda row: row["length"])["stock"]["mean"] or 0.0)
        for row in rows:
            found.setdefault(row["length"], []).append(row["mean"] or 0.0)
    if not goals or sum(goals) <= 0:
        return {}
    goal = KEPT * sum(goals) / len(goals)
    return {n: sum(scores) / len(scores) >= goal for n, scores in found.items() if len(scores) == len(goals)}


def _short(tasks: Mapping[str, Any]) -> bool | None:
    rows = tasks.get("short", {}).get("cells", []) or [
        row for row in tasks.get("perplexity", {}).get("cells", []) if row["variant"] == "by_position"
    ]
    if not rows:
        return None
    first = min(rows, key=lambda row: row["length"])
    return None if first.get("ratio") is None else first["ratio"] <= FLUENT


def _words(short: bool | None, kept: Mapping[str, Mapping[int, bool]]) -> list[str]:
    words = []
    if short is not None:
        words.append("Short context is kept." if short else "Short context is damaged: perplexity rose there.")
    for what, lengths in kept.items():
        good = [thousands(n) for n in sorted(lengths) if lengths[n]]
        bad = [thousands(n) for n in sorted(lengths) if not lengths[n]]
        if good:
            words.append(f"{what} at {', '.join(good)}" + (f", not at {', '.join(bad)}." if bad else "."))
        elif bad:
            words.append(f"{what} at no length.")
    return words
