"""Run the comparison: every variant once per round, stock first, so that drift of the machine cancels in the ratios."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import transformers
from torch import nn

from .measure import measure
from .tasks import attention_calls, prefill_and_decode, training_step
from .variants import EAGER, PEERS, STOCK

SCHEMA_VERSION = 1


@dataclass
class BenchOptions:
    """What to run.

    Attributes:
        encodings: names, or compositions such as ``native+t5``.
        lengths: prompt lengths of prefill and decode, in tokens.
        train_lengths: lengths of the training step; empty to leave it out.
        peer_length: longest length at which the dense peers run through the whole model.
        attention_length: length of the attention-only comparison; 0 to leave it out.
        rounds: repetitions; ratios are medians over rounds.
        steps: decoding steps per round.
    """

    encodings: Sequence[str] = ("nope", "alibi", "t5", "yarn")
    lengths: Sequence[int] = (4096, 8192)
    train_lengths: Sequence[int] = (4096,)
    peer_length: int = 4096
    attention_length: int = 8192
    rounds: int = 3
    steps: int = 16


@dataclass
class Series:
    """All rounds of one variant at one length of one task."""

    task: str
    variant: str
    length: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    extra_bytes: list[int] = field(default_factory=list)
    status: str = "ok"


def run_bench(
    model: nn.Module, options: BenchOptions, *, model_name: str, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure and return the results as JSON-ready values.

    Args:
        model: a causal language model, not patched; its dtype and device are those measured.
        options: what to run.
        model_name: for the report.
        progress: called with a line before each measurement.
    """
    table: dict[tuple[str, str, int], Series] = {}

    def record(task: str, name: str, length: int) -> Series:
        return table.setdefault((task, name, length), Series(task, name, length))

    model.eval()
    progress("warm-up")
    prefill_and_decode(model, STOCK, 256, 2)
    for length in options.lengths:
        names = [STOCK, *options.encodings]
        peers = list(PEERS) if length <= options.peer_length else []
        for turn in range(options.rounds):
            for name in [*names, *(peers if turn == 0 else [])]:
                progress(f"prefill and decode, {length} tokens, {name}, round {turn + 1} of {options.rounds}")
                series = record("prefill", name, length)
                _guard(series, partial(_prefill, record, model, name, length, options.steps))
    for length in options.train_lengths:
        for turn in range(options.rounds):
            for name in [STOCK, *options.encodings]:
                progress(f"training step, {length} tokens, {name}, round {turn + 1} of {options.rounds}")
                series = record("train", name, length)
                _guard(series, partial(_train, series, model, name, length))
    if options.attention_length:
        _attention(model, options, record, progress)
    return {
        "schema_version": SCHEMA_VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": model_name,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": _device_name(next(model.parameters()).device),
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "options": asdict(options),
        "rows": rows(list(table.values())),
    }


def rows(series: Sequence[Series]) -> list[dict[str, Any]]:
    """One row per task, length and variant, with medians and ratios to stock in the same round."""
    stock = {(s.task, s.length): s for s in series if s.variant in (STOCK, "causal sdpa")}
    result = []
    for one in series:
        base = stock.get((one.task, one.length))
        row: dict[str, Any] = {"task": one.task, "length": one.length, "variant": one.variant, "status": one.status}
        if one.seconds:
            row["seconds"] = median(one.seconds)
            row["rounds"] = one.seconds
            if one.task == "decode":
                row["tokens_per_second"] = 1.0 / median(one.seconds)
            if base is not None and base.seconds:
                row["time_ratio"] = median(a / b for a, b in zip(one.seconds, base.seconds, strict=False))
        if one.peak_bytes:
            row["peak_mib"] = max(one.peak_bytes) / 2**20
            row["extra_mib"] = max(one.extra_bytes) / 2**20
            if base is not None and base.peak_bytes:
                row["memory_ratio"] = max(one.peak_bytes) / max(base.peak_bytes)
        result.append(row)
    return result


def _prefill(record: Callable[[str, str, int], Series], model: nn.Module, name: str, length: int, steps: int) -> None:
    measured, seconds = prefill_and_decode(model, name, length, steps)
    _add(record("prefill", name, length), measured)
    if seconds is not None:
        record("decode", name, length).seconds.append(seconds)


def _train(series: Series, model: nn.Module, name: str, length: int) -> None:
    _add(series, training_step(model, name, length))


def _attention(
    model: nn.Module,
    options: BenchOptions,
    record: Callable[[str, str, int], Series],
    progress: Callable[[str], None],
) -> None:
    length = options.attention_length
    parameter = next(model.parameters())
    for turn in range(options.rounds):
        for name, call in attention_calls(model, length, parameter.dtype).items():
            if name == EAGER and turn:
                continue  # minutes long, and a ratio of one round says enough
            progress(f"attention alone, {length} tokens, {name}, round {turn + 1} of {options.rounds}")
            with torch.no_grad():
                shared = call.prepare()
                measured = measure(partial(call.run, shared), parameter.device)
            if isinstance(shared, torch.Tensor) and measured.extra_bytes is not None:
                measured.extra_bytes += shared.nbytes
            _add(record("attention", name, length), measured)
            del shared


def _add(series: Series, measured: Any) -> None:
    series.seconds.append(measured.seconds)
    if measured.peak_bytes is not None:
        series.peak_bytes.append(measured.peak_bytes)
        series.extra_bytes.append(measured.extra_bytes)


def _guard(series: Series, run: Callable[[], None]) -> None:
    """A variant that cannot run is reported with its reason and does not stop the others."""
    if series.status != "ok":
        return
    try:
        run()
    except (RuntimeError, ValueError, ImportError) as error:
        series.status = f"error: {type(error).__name__}: {error}".splitlines()[0]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
