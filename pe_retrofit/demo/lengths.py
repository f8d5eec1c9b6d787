"""Perplexity at several lengths of one long text, for each variant."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..likelihood import tail_nll
from ..models import quiet
from ..progress import Work
from ..texts import Text
from .patched import Patched, describe
from .settings import Settings


def sequences(tokenizer: Any, text: Text, settings: Settings) -> tuple[Tensor, Tensor, dict[str, int]]:
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


def measure_lengths(model: Any, long: Tensor, settings: Settings, work: Work) -> dict[str, Any]:
    """One forward per variant over ``long`` ``[n]``, and the perplexity of the tail at each length."""
    rows: list[dict[str, Any]] = []
    for variant in settings.length_variants:
        work.say(f"{settings.lengths[-1]} tokens, {variant.label}")
        try:
            with Patched(model, variant), work.forwards(model, len(long)):
                started = time.perf_counter()
                nll = tail_nll(model, long.to(model.device), settings.lengths, settings.tail)
                seconds = time.perf_counter() - started
        except UnsupportedError as error:  # the others are worth having
            if variant.spec is None:
                raise
            rows.append({**describe(variant), "cells": [], "error": str(error)})
            continue
        cells = [{"length": n, "nll": value, "perplexity": math.exp(value)} for n, value in nll.items()]
        rows.append({**describe(variant), "cells": cells, "seconds": round(seconds, 2)})
    return {"tail": settings.tail, "lengths": list(settings.lengths), "variants": rows}
