"""Flags: what in the numbers a user should act on, by thresholds that are written into the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

THRESHOLDS: dict[str, float] = {
    "repetition": 0.5,
    "repetition_over_stock": 0.2,
    "collapsed_entropy": 0.05,
    "uniform_entropy": 0.95,
    "heads": 0.5,
    "heads_over_stock": 0.25,
    "sink_stock": 0.3,
    "sink_kept": 0.5,
    "blind_mass": 0.001,
    "blind_length": 0.5,
    "drift_kl": 0.5,
    "drift_agreement": 0.6,
    "drift_cosine": 0.9,
}

RULES = {
    "not_finite": "attention, drift or hidden states hold numbers that are not finite",
    "repetition": (
        "share of the 4-grams of a greedy continuation that occurred before in it, at least `repetition` and "
        "`repetition_over_stock` above stock's"
    ),
    "entropy_collapsed": (
        "a head is collapsed at a mean normalised entropy of at most `collapsed_entropy` with less than half of its "
        "attention on sinks; raised when at least `heads` of all heads are, and `heads_over_stock` more than in stock"
    ),
    "entropy_uniform": (
        "a head is uniform at a mean normalised entropy of at least `uniform_entropy`; raised when at least `heads` of "
        "all heads are, and `heads_over_stock` more than in stock"
    ),
    "sink_lost": "stock's mean sink mass is at least `sink_stock`, and the model's less than `sink_kept` times that",
    "blind": (
        "in every head, queries give less than `blind_mass` of their attention to all tokens at least D away (sinks "
        "aside), D at most `blind_length` times the length; stock is not blind from D on"
    ),
    "drift": (
        "KL(stock || model) above `drift_kl` nats per token, or first choices that agree on less than "
        "`drift_agreement`; without logits, a mean cosine of the hidden states below `drift_cosine`"
    ),
}

Flag = dict[str, Any]


def flags(model: Mapping[str, Any], stock: Mapping[str, Any] | None, drift: Mapping[str, Any] | None) -> list[Flag]:
    """What is raised, each ``{"flag", "sentence", "value", "stock"}``.

    Args:
        model, stock: ``{"attention": ..., "generation": ...}`` over texts of the same length; None without a stock
            model, whose share then counts as 0.
        drift: of the logits or hidden states; None without a stock model.
    """
    return [*_finite(model, drift), *_repetition(model, stock), *_attention(model, stock), *_drift(drift)]


def _finite(model: Mapping[str, Any], drift: Mapping[str, Any] | None) -> Iterator[Flag]:
    attention = model["attention"]
    names = ("entropy", "sink_mass", "mean_distance")
    layers = [i for i in range(len(attention["entropy"])) if not all(np.isfinite(attention[n][i]).all() for n in names)]
    broken = drift is not None and not all(math.isfinite(drift[n]) for n in ("kl", "cosine") if n in drift)
    if layers or broken:
        where = f"in the attention of layers {spans(layers)}" if layers else "in the model's output"
        yield _flag(
            "not_finite",
            f"Numbers that are not finite arise {where}. Look at these layers' learned parameters, load in float32 or "
            "bfloat16 (float16 overflows), and check the training run before using the model.",
            layers,
        )


def _repetition(model: Mapping[str, Any], stock: Mapping[str, Any] | None) -> Iterator[Flag]:
    mine, theirs = _rate(model), _rate(stock)
    if mine is None or mine < THRESHOLDS["repetition"] or mine - (theirs or 0.0) < THRESHOLDS["repetition_over_stock"]:
        return
    than = "" if theirs is None else f" (stock: {theirs:.0%})"
    yield _flag(
        "repetition",
        f"Greedy generation repeats itself: {mine:.0%} of its 4-grams occurred before{than}. The model has collapsed "
        "at this length: train it further, or use it at a length where it does not repeat.",
        mine,
        theirs,
    )


def _rate(side: Mapping[str, Any] | None) -> float | None:
    found = None if side is None else side.get("generation")
    return None if found is None else found["repetition"]


def _attention(model: Mapping[str, Any], stock: Mapping[str, Any] | None) -> Iterator[Flag]:
    mine, theirs = model["attention"], None if stock is None else stock["attention"]
    yield from _heads(mine, theirs)
    if theirs is not None:
        now, before = _mean(mine["sink_mass"]), _mean(theirs["sink_mass"])
        if before >= THRESHOLDS["sink_stock"] and now < THRESHOLDS["sink_kept"] * before:
            yield _flag(
                "sink_lost",
                f"The attention sink is lost: heads put {now:.0%} of their attention on the first token, and stock "
                f"{before:.0%}. What they parked there now goes to other tokens. Keep the native encoding beside the "
                "new one, fade it in, or train before use.",
                now,
                before,
            )
    yield from _blind(mine, theirs)


def _heads(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> Iterator[Flag]:
    cases = {
        "entropy_collapsed": (
            collapsed,
            "attend to a single token that is no sink (normalised entropy at most "
            f"{THRESHOLDS['collapsed_entropy']:g})",
            "The scores have become too large: lower the temperature or the strength of the bias, or train with a "
            "smaller learning rate.",
        ),
        "entropy_uniform": (
            uniform,
            f"attend to all tokens alike (normalised entropy at least {THRESHOLDS['uniform_entropy']:g})",
            "They no longer tell tokens apart: raise the temperature (log-scaled attention), use a smaller factor, or "
            "train before use.",
        ),
    }
    for name, (test, what, advice) in cases.items():
        found = test(mine)
        share, before = float(found.mean()), 0.0 if theirs is None else float(test(theirs).mean())
        if share < THRESHOLDS["heads"] or share - before < THRESHOLDS["heads_over_stock"]:
            continue
        layers = [i for i, row in enumerate(found) if row.mean() >= 0.5]
        than = "" if theirs is None else f" (stock: {before:.0%})"
        yield _flag(
            name, f"{share:.0%} of all heads{than} {what}, mostly in layers {spans(layers)}. {advice}", share, before
        )


def collapsed(attention: Mapping[str, Any]) -> np.ndarray:
    """bool ``[layer, head]``: nearly all attention on one key that is no sink."""
    low = np.array(attention["entropy_normalised"]) <= THRESHOLDS["collapsed_entropy"]
    return low & (np.array(attention["sink_mass"]) < 0.5)


def uniform(attention: Mapping[str, Any]) -> np.ndarray:
    """bool ``[layer, head]``: all keys get nearly the same."""
    return np.array(attention["entropy_normalised"]) >= THRESHOLDS["uniform_entropy"]


def blind_from(attention: Mapping[str, Any]) -> int | None:
    """The smallest lower edge of a bin from which on no head looks; None when some look everywhere."""
    beyond = np.array(attention["beyond"]).max((0, 1))
    for (low, _), share in zip(attention["bins"], beyond, strict=True):
        if share < THRESHOLDS["blind_mass"]:
            return int(low)
    return None


def _blind(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> Iterator[Flag]:
    limit, before = blind_from(mine), None if theirs is None else blind_from(theirs)
    if limit is None or limit > THRESHOLDS["blind_length"] * mine["length"] or (before is not None and before <= limit):
        return
    yield _flag(
        "blind",
        f"No head looks further than {limit} tokens: less than {THRESHOLDS['blind_mass']:.1%} of the attention "
        f"goes beyond, at a length of {mine['length']}. Text further away cannot be used. Use a weaker decay or a "
        "larger window, keep the native encoding on some layers, or do not use the model for retrieval.",
        limit,
        before,
    )


def _drift(drift: Mapping[str, Any] | None) -> Iterator[Flag]:
    if drift is None or drift["status"] != "ok":
        return
    if "cosine" in drift:
        if drift["cosine"] < THRESHOLDS["drift_cosine"]:
            yield _flag(
                "drift",
                f"Hidden states lie far from the original's (mean cosine {drift['cosine']:.3f}) on text that it can "
                "read. Embeddings of both models must not be mixed; index anew, or train the retrofit towards the "
                "original.",
                drift["cosine"],
            )
    elif drift["kl"] > THRESHOLDS["drift_kl"] or drift["agreement"] < THRESHOLDS["drift_agreement"]:
        yield _flag(
            "drift",
            f"Predictions lie far from the original's: KL {drift['kl']:.3g} nats per token, first choices agree on "
            f"{drift['agreement']:.0%}. Without training this is a damaged model: fine-tune it, patch fewer layers, or "
            "keep the native encoding beside the new one.",
            drift["kl"],
        )


def _flag(name: str, sentence: str, value: Any, stock: Any = None) -> Flag:
    return {"flag": name, "sentence": sentence, "value": value, "stock": stock}


def _mean(values: Any) -> float:
    return float(np.mean(values))


def spans(numbers: list[int]) -> str:
    """``0-3, 7`` for ``[0, 1, 2, 3, 7]``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts) or "none"
