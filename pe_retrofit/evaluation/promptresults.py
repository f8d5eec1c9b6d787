"""The A/B of prompts as data: answers next to the first model's, and means over the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .log import SampleLog
from .metrics import contained, repetition
from .promptfile import Prompt
from .results import machine

SCHEMA_VERSION = 1
KIND = "prompts"


def collect(
    models: Sequence[str], prompts: Sequence[Prompt], decoding: Mapping[str, Any], dtype: str, log: SampleLog
) -> dict[str, Any]:
    """The results: every prompt with one answer per model, judged next to the first model's."""
    records = {(name, p.id): log.done[name, p.id][0] for name in models for p in prompts}
    rows = []
    for prompt in prompts:
        first = records[models[0], prompt.id]
        answers = []
        for name in models:
            record = records[name, prompt.id]
            shown = {k: v for k, v in record.items() if k not in ("asked", "model")}
            answers.append({"model": name, **shown, **_judged(record, None if name == models[0] else first, prompt)})
        rows.append({"id": prompt.id, "line": prompt.line, **prompt.shown(), "answers": answers})
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **machine(1),
        "decoding": {**decoding, "method": "greedy" if decoding["temperature"] == 0 else "sampling"},
        "dtype": dtype,
        "models": [
            {"name": name, "about": records[name, prompts[0].id]["model"], **_summary(name, rows)} for name in models
        ],
        "prompts": rows,
    }


def _judged(record: Mapping[str, Any], first: Mapping[str, Any] | None, prompt: Prompt) -> dict[str, Any]:
    found: dict[str, Any] = {"repetition": repetition(record["tokens"])}
    if first is not None:
        same = first["model"]["vocabulary"] == record["model"]["vocabulary"]
        found["agreement"] = agreement(first["tokens"], record["tokens"]) if same else None
        found["exact"] = first["tokens"] == record["tokens"] if same else first["text"] == record["text"]
    if prompt.references:
        found["reference"] = contained(record["text"], prompt.references)
    return found


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of equal tokens from the start: the common beginning over the longer of the two; 1 for two empty ones."""
    longest = max(len(one), len(other))
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / longest if longest else 1.0


def _summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the prompts; of speed, all tokens over all seconds."""
    answers = [answer for row in rows for answer in row["answers"] if answer["model"] == name]

    def mean_of(key: str) -> float | None:
        values = [float(answer[key]) for answer in answers if answer.get(key) is not None]
        return sum(values) / len(values) if values else None

    seconds = sum(answer["seconds"] for answer in answers)
    peaks = [answer["peak_memory_bytes"] for answer in answers if answer["peak_memory_bytes"]]
    return {
        "tokens_per_second": sum(a["new_tokens"] for a in answers) / seconds if seconds > 0 else None,
        "peak_memory_bytes": max(peaks, default=None),
        **{
            key: mean_of(key)
            for key in ("first_token_seconds", "seconds", "repetition", "agreement", "exact", "reference")
        },
    }
