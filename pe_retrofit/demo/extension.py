"""Beyond the trained length without training: what each encoding does to SmolLM2 and to MiniLM."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..errors import UnsupportedError
from ..progress import Report, Work, forward_cost
from ..provenance import provenance
from ..status import status
from ..texts import Text
from .encoder import measure_encoder
from .lengths import measure_lengths, sequences
from .settings import UNPATCHED, Settings, Variant

EXTENSION = Settings(
    length_variants=(
        UNPATCHED,
        Variant("yarn x2", "yarn", {"factor": 2.0}),
        Variant("ntk x2", "ntk", {"factor": 2.0}),
        Variant("dynamic x2", "dynamic", {"factor": 2.0}),
        Variant("self_extend", "self_extend"),
        Variant("rerope", "rerope", {"window": 6144}),
        Variant("rerope, leaky", "rerope", {"window": 4096, "leak": 4.0}),
        Variant("lm_infinite", "lm_infinite"),
        Variant("dual_chunk", "dual_chunk"),
        Variant("string x2", "string", {"factor": 2.0}),
    ),
    windows=1,
)
"""Each encoding with its defaults, or set to reach twice the trained length of 8192 tokens."""

ENCODER_COST = 20_000.0
"""Estimated work of one encoder variant, in the units of :func:`forward_cost`."""


def run_extension(
    model: Any,
    tokenizer: Any,
    encoder: tuple[Any, Any] | None,
    text: Text,
    settings: Settings = EXTENSION,
    *,
    model_name: str,
    report: Report | None = None,
) -> dict[str, Any]:
    """Measure perplexity by length for every variant, and an encoder's embeddings of short and long texts.

    Args:
        model: a causal language model, unpatched; it is unpatched again afterwards.
        tokenizer: of the model.
        encoder: a BERT that embeds texts and its tokenizer; None to leave it out.
        text: long enough for ``settings``.
        model_name: for the results.
        report: is told how far the run is.

    Returns:
        The results, ready for JSON.

    Raises:
        UnsupportedError: the text is too short, or the model is patched already.
    """
    if status(model).patched:
        raise UnsupportedError("The model must be as it was trained; call unpatch_model(model) first.")
    torch.manual_seed(settings.seed)
    started = time.perf_counter()
    total = len(settings.length_variants) * forward_cost(settings.lengths[-1])
    work = Work(total + (ENCODER_COST if encoder else 0.0), report)
    work.say("tokenising")
    long, _, used = sequences(tokenizer, text, settings)
    results = provenance(model, text, kind="extension", model_name=model_name, **used)
    results["seed"] = settings.seed
    results["length"] = measure_lengths(model, long, settings, work)
    if encoder is not None:
        work.say("embeddings of an encoder")
        results["encoder"] = measure_encoder(*encoder, text)
    work.advance(work.total)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return results
