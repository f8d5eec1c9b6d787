"""Whether runs asked the same questions, cell by cell; numbers of different questions are never put side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigError

Results = Mapping[str, Any]


def check_questions(runs: Sequence[tuple[str, Results]]) -> dict[tuple[str, str], str]:
    """Refuse runs whose cells of the same name hold other questions.

    Cells carry a fingerprint of their questions (``asked``); where a file has none, seed, text, tokenizer and numbers
    of samples decide. What lies at a length that only one run has is no question of comparison.

    Args:
        runs: label and results.

    Returns:
        Views (task, variant) that cannot be compared only because the longest lengths differ, with the reason: the
        fixed tail of 8k tokens is another stretch of text than that of 16k.

    Raises:
        ConfigError: with everything that differs.
    """
    problems: list[str] = []
    dropped: dict[tuple[str, str], str] = {}
    for task in dict.fromkeys(name for _, results in runs for name in results["tasks"]):
        holders = [(label, results) for label, results in runs if task in results["tasks"]]
        found = [_rules(task, holders[0], other) for other in holders[1:]]
        found = [problem for problem in found if problem] or list(_cells(task, holders, dropped))
        problems += found
    if problems:
        raise ConfigError(
            "These runs did not ask the same questions: "
            + "; ".join(dict.fromkeys(problems))
            + ". Run them with the same tasks, options, samples, depths, seed and text, or compare fewer."
        )
    return dropped


def _rules(task: str, one: tuple[str, Results], other: tuple[str, Results]) -> str:
    """What differs in how a task was set up."""
    a, b = one[1]["tasks"][task], other[1]["tasks"][task]
    wrong = [_differ(name, a.get(name), b.get(name)) for name in ("version", "decoding") if a.get(name) != b.get(name)]
    mine, theirs = a.get("options") or {}, b.get("options") or {}
    wrong += [
        _differ(f"option {name}", mine.get(name), theirs.get(name))
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]
    return f"{task} of {one[0]!r} and {other[0]!r} differs in {', '.join(wrong)}" if wrong else ""


def _cells(task: str, holders: Sequence[tuple[str, Results]], dropped: dict[tuple[str, str], str]) -> Iterator[str]:
    first: dict[tuple[str, int], tuple[str, Results, Mapping[str, Any]]] = {}
    for label, results in holders:
        for row in results["tasks"][task]["by_length"]:
            place = (row["variant"], row["length"])
            if place not in first:
                first[place] = (label, results, row)
                continue
            other_label, other, theirs = first[place]
            reasons = _reasons(other, results, theirs, row, task)
            known = "asked" in row and "asked" in theirs
            longest = [max(r["tasks"][task]["target_lengths"], default=0) for r in (other, results)]
            stretch = results["tasks"][task]["metric"] == "perplexity" and longest[0] != longest[1]
            if (known and row["asked"] == theirs["asked"]) or (not known and not reasons and not stretch):
                continue
            if stretch and not reasons:
                dropped[task, row["variant"]] = (
                    f"the longest lengths differ ({longest[0]} and {longest[1]} tokens), so these are other tokens"
                )
                continue
            what = ", ".join(reasons) or "the samples themselves (another tokenizer?)"
            yield f"{task} at {row['length']} tokens of {other_label!r} and {label!r} differs in {what}"


def _reasons(a: Results, b: Results, row: Mapping[str, Any], other: Mapping[str, Any], task: str) -> list[str]:
    one, two = a["setting"], b["setting"]
    wrong = []
    if a["seed"] != b["seed"]:
        wrong.append(_differ("seed", a["seed"], b["seed"]))
    texts = [setting["text"]["sha256"][:12] for setting in (one, two)]
    if texts[0] != texts[1]:
        wrong.append(_differ("text (sha256)", *texts))
    tokenizers = [results["model"].get("tokenizer") for results in (a, b)]
    if tokenizers[0] != tokenizers[1]:
        wrong.append(_differ("tokenizer", *(t and f"{t['class']} of {t['vocabulary']}" for t in tokenizers)))
    if a["tasks"][task]["metric"] == "score":
        if row["n"] != other["n"]:
            wrong.append(_differ("number of samples", row["n"], other["n"]))
        if one["depths"] != two["depths"]:
            wrong.append(_differ("depths", one["depths"], two["depths"]))
    return wrong


def _differ(what: str, one: Any, other: Any) -> str:
    return f"{what} ({one} and {other})"
