"""A measured stream: perplexity and memory of a model over a text far longer than its window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from ..models import quiet
from ..patching import patch_model, unpatch_model
from ..provenance import provenance
from ..registry import NATIVE, config_from_dict, get_encoding
from ..status import status
from ..texts import Text
from .caches import SegmentCache, SinkCache
from .checks import SINKS
from .stream import SegmentNll, perplexity, stream_nll

STATUS = Path("/proc/self/status")

Report = Callable[[str, int, int], None]
"""Called with what is going on, the tokens done and the tokens in all."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        tokens: length of the stream.
        encodings: names joined by ``+``, as for ``patch_model``; ``native`` leaves the model as it is.
        options: of the encodings, for those that have them.
        segment: tokens per pass.
        memory: tokens kept between passes; for ``lm_infinite`` its window, unless the options say one.
        every: tokens per reported perplexity.
        seed: of learned encodings.
    """

    tokens: int = 100_000
    encodings: Sequence[str] = (SINKS,)
    options: dict[str, Any] = field(default_factory=dict)
    segment: int = 1024
    memory: int = 2048
    every: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("tokens", 2), ("segment", 1), ("memory", 0), ("every", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name}={value!r} must be a whole number of tokens, at least {low}.")
        if self.every < self.segment:
            raise ConfigError(
                f"every={self.every} must be at least segment={self.segment}, because figures come once per segment."
            )
        if not self.encodings:
            raise ConfigError("Name at least one encoding, such as 'native' or 'lm_infinite'.")


def run_streams(
    model: Any, tokenizer: Any, text: Text, settings: Settings, *, model_name: str, report: Report | None = None
) -> dict[str, Any]:
    """Stream a text through a model, once per encoding.

    Args:
        model: a decoder, unpatched; it is unpatched again afterwards.
        tokenizer: with ``encode`` and ``bos_token_id``.
        text: long enough for ``settings.tokens``.
        model_name: for the results.
        report: is told how far the run is.

    Returns:
        The results, ready for JSON.

    Raises:
        UnsupportedError: the text is too short, the model patched already, or an encoding cannot stream.
        ConfigError, UnknownEncodingError: wrong encodings or options.
    """
    if status(model).patched:
        raise UnsupportedError("The stream needs the model as it was trained; call unpatch_model(model) first.")
    specs = read_specs(settings.encodings, settings.options, settings.memory)
    ids, known = _tokens(tokenizer, text, settings.tokens)
    results = provenance(model, text, kind="streaming", model_name=model_name, tokens=known)
    results["settings"] = {**asdict(settings), "encodings": list(settings.encodings)}
    results["streams"] = [
        _measure(model, ids, name, spec, settings, report or (lambda *_: None)) for name, spec in specs.items()
    ]
    return results


def read_specs(names: Sequence[str], options: dict[str, Any], memory: int) -> dict[str, list[Any]]:
    """Specs for ``patch_model`` from ``alibi`` or ``native+t5``, by name; each encoding takes the options it knows.

    Raises:
        UnknownEncodingError, ConfigError: a wrong name, or an option that no encoding has.
    """
    specs: dict[str, list[Any]] = {}
    unused = set(options)
    for name in names:
        specs[name] = []
        for part in (p.strip() for p in name.split("+")):
            if part in NATIVE:
                specs[name].append("native")
                continue
            known = {o["option"] for o in get_encoding(part).Config.describe()}
            own = {key: value for key, value in options.items() if key in known}
            unused -= known
            if part == SINKS and memory:
                own.setdefault("window", memory)
            specs[name].append(config_from_dict({"name": part, **own}))
    if unused:
        raise ConfigError(f"No encoding of {', '.join(names)} has the option {sorted(unused)[0]!r}.")
    return specs


def _tokens(tokenizer: Any, text: Text, count: int) -> tuple[Tensor, int]:
    """int64 ``[1, count]``, with the token that starts a text in front, and how many the text has."""
    with quiet():  # the tokenizer warns that the text is longer than the model's maximum, which is the point here
        tokens = tokenizer.encode(text.content, add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if len(tokens) + len(start) < count:
        raise UnsupportedError(
            f"The text ({text.name}) has {len(tokens)} tokens, and {count} are wanted. Use a longer text or fewer "
            "tokens."
        )
    return torch.tensor([(start + tokens)[:count]]), len(tokens)


def _measure(model: Any, ids: Tensor, name: str, spec: list[Any], settings: Settings, report: Report) -> dict[str, Any]:
    torch.manual_seed(settings.seed)
    patched = spec != ["native"]
    if patched:
        patch_model(model, spec)
    try:
        return _stream(model, ids, name, settings, report)
    finally:
        if patched:
            unpatch_model(model)


def _stream(model: Any, ids: Tensor, name: str, settings: Settings, report: Report) -> dict[str, Any]:
    sinks = SINKS in name.split("+")
    cache: Any = SinkCache(model) if sinks else SegmentCache(model, settings.memory)
    total, bucket = ids.shape[1], settings.every
    parts: list[SegmentNll] = []
    rows: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    report(name, 0, total)
    started = last = time.perf_counter()
    for part in stream_nll(model, ids, settings.segment, cache=cache):
        parts.append(part)
        memory.append({"token": part.stop, "resident_bytes": resident(model), "cache_bytes": size(cache)})
        report(name, part.stop, total)
        if part.stop - parts[0].start >= bucket or part.stop == total:
            now = time.perf_counter()
            rows.append(
                {
                    "start": parts[0].start,
                    "stop": part.stop,
                    "tokens": sum(p.tokens for p in parts),
                    "nll": math.fsum(p.nll for p in parts),
                    "perplexity": _finite(perplexity(parts)),
                    "resident_bytes": memory[-1]["resident_bytes"],
                    "cache_bytes": memory[-1]["cache_bytes"],
                    "seconds": round(now - last, 3),
                }
            )
            parts, last = [], now
    tokens = sum(row["tokens"] for row in rows)
    return {
        "encoding": name,
        "cache": type(cache).__name__,
        "kept_tokens": cache.layers[0].get_max_length(),
        "perplexity": _finite(math.exp(math.fsum(row["nll"] for row in rows) / tokens)) if tokens else None,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started, 3),
        "rows": rows,
        "memory": memory,
    }


def resident(model: Any) -> int | None:
    """Bytes in use: on the GPU what tensors take there, else resident memory of the process; None where unknown."""
    if model.device.type == "cuda":
        return int(torch.cuda.memory_allocated(model.device))
    if not STATUS.exists():
        return None
    line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def size(cache: Any) -> int:
    """Bytes of the keys and values of a cache."""
    held = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.numel() * t.element_size() for t in held)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
