"""From records to cells: means with intervals, and the difference to the stock model on the same samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .metrics import bootstrap, mean, perplexity
from .task import Record, fingerprint

Key = tuple[Any, ...]


def cells(records: Sequence[Record], stock: Sequence[Record] | None, metric: str) -> list[dict[str, Any]]:
    """One per variant, length and depth."""
    return _table(records, stock, metric, ("variant", "length", "depth"))


def by_length(records: Sequence[Record], stock: Sequence[Record] | None, metric: str) -> list[dict[str, Any]]:
    """One per variant and length, over all depths."""
    return _table(records, stock, metric, ("variant", "length"))


def identity(record: Record) -> Key:
    """What makes two records of two models answers to the same question."""
    return record["variant"], record["length"], record["depth"], record["index"], record["question"]


def _table(
    records: Sequence[Record], stock: Sequence[Record] | None, metric: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in names)].append(record)
    others = None if stock is None else {identity(record): record for record in stock}
    rows = []
    for key, members in groups.items():
        row = dict(zip(names, key, strict=True)) | _summary(members, metric)
        if others is not None:
            pairs = [(m, others[identity(m)]) for m in members if identity(m) in others]
            row["stock"] = _summary([other for _, other in pairs], metric) if pairs else None
            row |= _difference(pairs, metric)
        rows.append(row)
    return rows


def _summary(members: Sequence[Record], metric: str) -> dict[str, Any]:
    broken = sum(not record.get("finite", True) for record in members)
    asked = fingerprint(sorted(record["question"] for record in members))
    row: dict[str, Any] = {"n": len(members), "asked": asked}
    if broken:
        row["not_finite"] = broken
    nlls = [record["nll"] for record in members if record["nll"] is not None]
    weights = [record.get("tokens", 1) for record in members if record["nll"] is not None]
    row["nll"] = None if broken else mean(nlls, weights)
    if metric == "perplexity":
        values, sizes = [], []
        for record in members if not broken else []:
            values += record["parts"]
            sizes += record["part_tokens"]
        row["tokens"] = sum(sizes)
        row["mean"] = perplexity(row["nll"])
        interval = bootstrap(values, sizes)
        row["ci95"] = None if interval is None or interval[1] > 700 else [math.exp(v) for v in interval]
        return row
    scores = [record["score"] for record in members if record["score"] is not None]
    row["mean"], row["ci95"] = mean(scores), bootstrap(scores)
    agrees = [record["agrees"] for record in members if "agrees" in record]
    if agrees:
        row["agreement"] = mean([float(a) for a in agrees])
        generated = [record["generated_score"] for record in members if "generated_score" in record]
        row["generated"] = mean(generated)
    return row


def _difference(pairs: Sequence[tuple[Record, Record]], metric: str) -> dict[str, Any]:
    """Perplexity: the ratio to stock. Scores: the difference. Both paired, sample by sample (block by block)."""
    good = [(a, b) for a, b in pairs if a.get("finite", True) and b.get("finite", True)]
    if metric == "perplexity":
        if len(good) < len(pairs) or not good:
            return {"ratio": None, "ratio_ci95": None}
        values = [x - y for a, b in good for x, y in zip(a["parts"], b["parts"], strict=True)]
        sizes = [n for a, _ in good for n in a["part_tokens"]]
        interval = bootstrap(values, sizes)
        return {
            "ratio": perplexity(mean(values, sizes)),
            "ratio_ci95": None if interval is None or interval[1] > 700 else [math.exp(v) for v in interval],
        }
    scored = [(a["score"], b["score"]) for a, b in good if a["score"] is not None and b["score"] is not None]
    values = [x - y for x, y in scored]
    forced = [(a["nll"], b["nll"]) for a, b in good if a["nll"] is not None and b["nll"] is not None]
    return {
        "difference": mean(values),
        "difference_ci95": bootstrap(values),
        "nll_difference": mean([x - y for x, y in forced]),
    }


def find(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The row with these values."""
    return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)
