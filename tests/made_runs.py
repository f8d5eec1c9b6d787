"""Results of evaluations as `pe-retrofit eval` writes them, made from planted numbers, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pe_retrofit.evaluation import results as files
from pe_retrofit.evaluation.cells import by_length, cells
from pe_retrofit.evaluation.judging import RULES, effective_length, judge

DEPTHS = (0.0, 0.5, 1.0)
Table = Mapping[int, float]


def about(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "base": "base-model",
        "class": "LlamaForCausalLM",
        "parameters": 1234567,
        "context_length": 8192,
        "dtype": "float32",
        "attention": "sdpa",
        "encoding": [],
        "native_encoding": {"None": {"rope_theta": 1e4, "rope_type": "default"}},
        "adapter": False,
        "tokenizer": {"class": "Tokens", "vocabulary": 300},
        "device": "cpu",
        "trained_length": 8192,
        **more,
    }


def perplexity_records(table: Table, view: str, salt: str) -> list[dict[str, Any]]:
    rows = []
    for n, value in table.items():
        nll = math.log(value)
        parts = [nll - 0.2, nll, nll + 0.2, nll]
        base = {"key": f"{view}/{n}", "variant": view, "length": n, "depth": None, "index": 0, "score": None}
        asked = f"{salt}/{view}/{n}" + (f"/{max(table)}" if view == "fixed_tail" else "")
        more = {"question": asked, "sha": asked, "tokens": 256, "parts": parts, "part_tokens": [64] * 4}
        rows.append({**base, **more, "nll": nll})
    return rows


def score_records(table: Table, salt: str, samples: int, depths: Sequence[float]) -> list[dict[str, Any]]:
    """Scores of 0 and 1 whose share is the planted one, the deepest first."""
    rows = []
    for n, share in table.items():
        cases = [(d, i) for i in range(samples) for d in depths]
        for number, (depth, i) in enumerate(cases):
            score = float(number < round(share * len(cases)))
            asked = f"{salt}/{n}/{depth}/{i}"
            base = {"key": asked, "variant": "", "length": n, "depth": depth, "index": i, "sha": asked}
            rows.append({**base, "question": asked, "score": score, "nll": 2.0 - score, "tokens": 5})
    return rows


def task(name: str, metric: str, mine: Any, stock: Any, trained: int, lengths: Sequence[int], **more: Any) -> Any:
    found: dict[str, Any] = {
        "name": name,
        "version": 1,
        "title": name.capitalize(),
        "recipe": "planted numbers",
        "source": "nobody 2020, arXiv 0000.00000",
        "metric": metric,
        "options": {"tail": 256} if metric == "perplexity" else {"digits": 5},
        "target_lengths": list(lengths),
        "truncated": 0,
        "n": len(mine),
        "cells": cells(mine, stock, metric),
        "by_length": by_length(mine, stock, metric),
        "status": "ok",
        "seconds": 1.5,
        "tokens_per_second": None,
        "peak_memory_bytes": None,
    }
    if metric == "score":
        rows = found["by_length"]
        reference = [{"length": r["length"], **r["stock"]} for r in rows if r["stock"]] if stock else rows
        found["effective_length"], reason = effective_length(rows, reference, trained)
        if reason:
            found["effective_length_reason"] = reason
    return {**found, **more}


def run(
    name: str,
    perplexity: Table,
    passkey: Table,
    *,
    stock_perplexity: Table | None = None,
    stock_passkey: Table | None = None,
    stock: Mapping[str, Any] | None = None,
    salt: str = "a",
    samples: int = 2,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
    text: str = "0" * 64,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Results with the tasks perplexity (two views) and passkey; without ``stock_*`` there is no stock model."""
    trained = 8192
    tasks: dict[str, Any] = {}
    if perplexity:
        views = ("by_position", "fixed_tail")
        mine = [r for view in views for r in perplexity_records(perplexity, view, salt)]
        other = stock_perplexity and [r for view in views for r in perplexity_records(stock_perplexity, view, salt)]
        tasks["perplexity"] = task("perplexity", "perplexity", mine, other, trained, list(perplexity))
    if passkey:
        mine = score_records(passkey, salt, samples, depths)
        other = stock_passkey and score_records(stock_passkey, salt, samples, depths)
        tasks["passkey"] = task("passkey", "score", mine, other, trained, list(passkey))
    paired = stock_perplexity is not None or stock_passkey is not None
    made: dict[str, Any] = {
        "schema_version": files.SCHEMA_VERSION,
        "kind": files.KIND,
        "status": "complete",
        "date": "2026-01-02T03:04:05+00:00",
        "model": about(name, context_length=16384, encoding=[ENCODING], **(model or {})),
        "stock": {**about("base-model"), **(stock or {})} if paired else None,
        "seed": seed,
        "setting": {
            "lengths": sorted({*perplexity, *passkey}),
            "samples": samples,
            "depths": list(depths),
            "seed": seed,
            "generate": False,
            "text": {"source": "a text", "sha256": text, "characters": 1000},
        },
        "versions": {"pe_retrofit": "0.1.0", "torch": "2.13.0"},
        "device": {"threads": 1, "machine": "x86_64", "processes": 1},
        "intervals": "95 %, bootstrap",
        "rules": RULES,
        "tasks": tasks,
    }
    if paired:
        made["verdict"] = judge(tasks, trained)
    return made


ENCODING = {
    "encodings": [{"name": "alibi", "slopes": "standard", "scale": None}],
    "layers": list(range(12)),
    "kernel": "flex",
}

LENGTHS = (2048, 4096, 8192, 12288, 16384)
STOCK_PERPLEXITY = dict(zip(LENGTHS, (26.4, 25.1, 24.3, 47.6, 466.0), strict=True))
STOCK_PASSKEY = dict(zip(LENGTHS, (1.0, 1.0, 1.0, 0.34, 0.0), strict=True))
YARN_PERPLEXITY = dict(zip(LENGTHS, (26.7, 25.5, 24.9, 24.6, 24.4), strict=True))
YARN_PASSKEY = dict(zip(LENGTHS, (1.0, 1.0, 1.0, 1.0, 1.0), strict=True))
ALIBI_PERPLEXITY = dict(zip(LENGTHS, (26.9, 26.0, 25.2, 25.1, 25.0), strict=True))
ALIBI_PASSKEY = dict(zip(LENGTHS, (1.0, 0.5, 0.17, 0.0, 0.0), strict=True))


def good(name: str = "yarn:factor=2@base-model", **more: Any) -> dict[str, Any]:
    """A retrofit that holds."""
    stock = {"stock_perplexity": STOCK_PERPLEXITY, "stock_passkey": STOCK_PASSKEY}
    return run(name, YARN_PERPLEXITY, YARN_PASSKEY, **{**stock, **more})


def blind(name: str = "alibi@base-model", **more: Any) -> dict[str, Any]:
    """One that is fluent everywhere and finds nothing."""
    stock = {"stock_perplexity": STOCK_PERPLEXITY, "stock_passkey": STOCK_PASSKEY}
    return run(name, ALIBI_PERPLEXITY, ALIBI_PASSKEY, **{**stock, **more})


def saved(folder: Path, results: Mapping[str, Any]) -> Path:
    """Written as a run writes it."""
    files.write(results, folder)
    return folder
