"""The demo itself: three measurements on one model, returned as plain JSON values."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..likelihood import hidden_states, window_nll
from ..progress import Report, Work, forward_cost
from ..provenance import provenance
from ..status import status
from ..texts import Text
from .generation import agrees_without_cache, generate, in_float32
from .lengths import measure_lengths, sequences
from .patched import Patched, describe
from .settings import Settings


def run_demo(
    model: Any, tokenizer: Any, text: Text, settings: Settings, *, model_name: str, report: Report | None = None
) -> dict[str, Any]:
    """Measure a decoder.

    Args:
        model: a causal language model, unpatched; it is unpatched again afterwards.
        tokenizer: with ``encode``, ``decode`` and ``bos_token_id``.
        text: long enough for ``settings``.
        model_name: for the results.
        report: is told how far the run is.

    Returns:
        The results, ready for JSON.

    Raises:
        UnsupportedError: the text is too short, or the model is patched already.
    """
    if status(model).patched:
        raise UnsupportedError("The demo needs the model as it was trained; call unpatch_model(model) first.")
    torch.manual_seed(settings.seed)
    started = time.perf_counter()
    work = Work(_total(settings), report)
    work.say("tokenising")
    long, windows, used = sequences(tokenizer, text, settings)
    probe = windows[:1]
    before = hidden_states(model, probe)
    results = provenance(model, text, kind="demo", model_name=model_name, **used)
    results["seed"] = settings.seed
    results["length"] = measure_lengths(model, long, settings, work)
    results["damage"] = _damage(model, windows, settings, work)
    results["generation"] = _generation(model, tokenizer, settings, work)
    results["restored"] = bool(torch.equal(before, hidden_states(model, probe)))
    work.advance(work.total)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return results


def _total(settings: Settings) -> float:
    lengths = len(settings.length_variants) * forward_cost(settings.lengths[-1])
    damage = len(settings.damage_variants) * settings.windows * forward_cost(settings.window_length)
    return lengths + damage + _generation_cost(settings)


def _generation_cost(settings: Settings) -> float:
    return 60.0 * settings.new_tokens  # decoding a token costs about as much as 30 of a prompt; done twice


def _damage(model: Any, windows: Tensor, settings: Settings, work: Work) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for variant in settings.damage_variants:
        work.say(f"step 0, {variant.label}")
        with Patched(model, variant), work.forwards(model, settings.window_length):
            started = time.perf_counter()
            nll = window_nll(model, windows.to(model.device))
            seconds = time.perf_counter() - started
            patches = status(model).patches
        rows.append(
            {
                **describe(variant),
                "nll": nll,
                "perplexity": math.exp(nll),
                "identity": patches[0].identity if patches else None,
                "seconds": round(seconds, 2),
            }
        )
    for row in rows:
        row["times_unpatched"] = row["perplexity"] / rows[0]["perplexity"]
    return {"windows": settings.windows, "window_length": settings.window_length, "variants": rows}


def _generation(model: Any, tokenizer: Any, settings: Settings, work: Work) -> dict[str, Any]:
    variant = next(v for v in settings.length_variants if v.spec is not None)
    work.say(f"generating, {variant.label}")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompt = torch.tensor(start + tokenizer.encode(settings.prompt, add_special_tokens=False), device=model.device)
    with Patched(model, variant):
        generate(model, prompt, 2)  # the first calls are slower
        tokens, seconds = generate(model, prompt, settings.new_tokens)
        work.advance(_generation_cost(settings) / 2)
        with in_float32(model):
            exact, _ = generate(model, prompt, settings.new_tokens)
            agrees = agrees_without_cache(model, prompt, exact)
    return {
        **describe(variant),
        "prompt": settings.prompt,
        "continuation": tokenizer.decode(tokens.tolist()),
        "new_tokens": len(tokens),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(tokens) / seconds, 2),
        "cached_equals_uncached": agrees,
        "compared_tokens": len(exact),
        "compared_in": "float32",
    }
