"""The demo itself: three measurements on one model, returned as plain JSON values."""

from __future__ import annotations

import datetime
import math
import platform
import time
from typing import Any

import torch
import transformers
from torch import Tensor

from .. import __version__
from ..errors import UnsupportedError
from ..models import quiet
from ..patchers.family import find_host
from ..patching import patch_model, unpatch_model
from ..status import status
from ..texts import Text
from .generation import agrees_without_cache, generate, in_float32
from .perplexity import hidden_states, tail_nll, window_nll
from .progress import Report, Work, forward_cost
from .settings import Settings, Variant

SCHEMA_VERSION = 1


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
    long, windows, used = _tokens(tokenizer, text, settings)
    probe = windows[:1]
    before = hidden_states(model, probe)
    base_config = find_host(model).config
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "demo",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "name": model_name,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "trained_length": int(base_config.max_position_embeddings),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "device": {"type": model.device.type, "threads": torch.get_num_threads(), "machine": platform.machine()},
        "versions": {
            "pe_retrofit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "seed": settings.seed,
        "text": {"source": text.name, "sha256": text.sha256, "characters": len(text.content), **used},
    }
    results["length"] = _lengths(model, long, settings, work)
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


def _tokens(tokenizer: Any, text: Text, settings: Settings) -> tuple[Tensor, Tensor, dict[str, int]]:
    """One long sequence and the windows, each with the token that starts a text in front."""
    with quiet():  # the tokenizer warns that the text is longer than the model's maximum, which is the point here
        tokens = tokenizer.encode(text.content, add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    inner = settings.window_length - len(start)
    needed = settings.skip + max(settings.lengths[-1] - len(start), settings.windows * inner)
    if len(tokens) < needed:
        raise UnsupportedError(
            f"The text ({text.name}) has {len(tokens)} tokens, and {needed} are needed for lengths up to "
            f"{settings.lengths[-1]} after skipping {settings.skip}. Use a longer text or shorter lengths."
        )
    rest = tokens[settings.skip :]
    long = torch.tensor(start + rest[: settings.lengths[-1] - len(start)])
    windows = torch.tensor([start + rest[i * inner : (i + 1) * inner] for i in range(settings.windows)])
    return long, windows, {"tokens": len(tokens), "first_token": settings.skip}


def _lengths(model: Any, long: Tensor, settings: Settings, work: Work) -> dict[str, Any]:
    rows = []
    for variant in settings.length_variants:
        work.say(f"{settings.lengths[-1]} tokens, {variant.label}")
        with _Patched(model, variant), work.forwards(model, len(long)):
            started = time.perf_counter()
            nll = tail_nll(model, long.to(model.device), settings.lengths, settings.tail)
            seconds = time.perf_counter() - started
        cells = [{"length": n, "nll": value, "perplexity": math.exp(value)} for n, value in nll.items()]
        rows.append({**_describe(variant), "cells": cells, "seconds": round(seconds, 2)})
    return {"tail": settings.tail, "lengths": list(settings.lengths), "variants": rows}


def _damage(model: Any, windows: Tensor, settings: Settings, work: Work) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for variant in settings.damage_variants:
        work.say(f"step 0, {variant.label}")
        with _Patched(model, variant), work.forwards(model, settings.window_length):
            started = time.perf_counter()
            nll = window_nll(model, windows.to(model.device))
            seconds = time.perf_counter() - started
            patches = status(model).patches
        rows.append(
            {
                **_describe(variant),
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
    with _Patched(model, variant):
        generate(model, prompt, 2)  # the first calls are slower
        tokens, seconds = generate(model, prompt, settings.new_tokens)
        work.advance(_generation_cost(settings) / 2)
        with in_float32(model):
            exact, _ = generate(model, prompt, settings.new_tokens)
            agrees = agrees_without_cache(model, prompt, exact)
    return {
        **_describe(variant),
        "prompt": settings.prompt,
        "continuation": tokenizer.decode(tokens.tolist()),
        "new_tokens": len(tokens),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(tokens) / seconds, 2),
        "cached_equals_uncached": agrees,
        "compared_tokens": len(exact),
        "compared_in": "float32",
    }


def _describe(variant: Variant) -> dict[str, Any]:
    return {"label": variant.label, "spec": variant.spec, "options": dict(variant.options)}


class _Patched:
    """The model patched as the variant says, and unpatched afterwards."""

    def __init__(self, model: Any, variant: Variant) -> None:
        self.model, self.variant = model, variant

    def __enter__(self) -> None:
        if self.variant.spec is not None:
            patch_model(self.model, self.variant.spec, **self.variant.options)

    def __exit__(self, *_: object) -> None:
        unpatch_model(self.model)
