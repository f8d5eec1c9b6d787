"""``pe-retrofit bench``: speed and memory against the unpatched model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Measure prefill, decoding, a training step and memory of encodings, as ratios to the same model unpatched.

Examples:

  pe-retrofit bench --out out/bench

  pe-retrofit bench --encodings alibi,t5,native+t5 --lengths 2k,4k --rounds 5

  pe-retrofit bench --model my-org/my-model --dtype float32 --train-lengths none --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("bench", help=HELP)(bench)


def bench(
    model: Annotated[str, typer.Option(help="Hub id or folder; default: SmolLM2-135M if its package is there.")] = "",
    encodings: Annotated[str, typer.Option(help="Comma-separated; + composes.")] = "nope,alibi,t5,yarn",
    lengths: Annotated[str, typer.Option(help="Prompt lengths, e.g. 4k,8k; 'none' to leave out.")] = "4k,8k",
    train_lengths: Annotated[str, typer.Option(help="Lengths of the training step; 'none' to leave out.")] = "4k",
    peer_length: Annotated[str, typer.Option(help="Longest prompt for the dense peers; 'none' for no peers.")] = "4k",
    attention_length: Annotated[str, typer.Option(help="Length of attention alone; 'none' to leave out.")] = "8k",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Repetitions; ratios are medians.")] = 3,
    steps: Annotated[int, typer.Option(min=0, max=4096, help="Decoding steps per round.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto (fastest here), bfloat16, float16, float32, float64.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for bench.json and pictures.")] = Path("out/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the comparison."""
    from rich.console import Console

    from ..bench import BenchOptions, run_bench
    from ..bench.report import print_tables, save

    console = Console(stderr=as_json)
    options = BenchOptions(
        encodings=[name.strip() for name in encodings.split(",") if name.strip()],
        lengths=parse_lengths(lengths, "--lengths"),
        train_lengths=parse_lengths(train_lengths, "--train-lengths"),
        peer_length=max(parse_lengths(peer_length, "--peer-length"), default=0),
        attention_length=max(parse_lengths(attention_length, "--attention-length"), default=0),
        rounds=rounds,
        steps=steps,
    )
    check_encodings(options.encodings)
    loaded, name = load(model, dtype, device)
    with console.status("starting") as line:
        results = run_bench(loaded, options, model_name=name, progress=line.update)
    paths = save(results, out)
    if as_json:
        typer.echo(json.dumps(results))
        return
    print_tables(results, console)
    console.print("Written: " + ", ".join(str(path) for path in paths))


def parse_lengths(text: str, flag: str) -> list[int]:
    """``4k,8192`` to ``[4096, 8192]``.

    Raises:
        typer.BadParameter: not a number of tokens from 16 to 2^20, or ``none``.
    """
    if text.strip().lower() == "none":
        return []
    result = []
    for part in text.split(","):
        word = part.strip().lower()
        digits, factor = (word[:-1], 1024) if word.endswith("k") else (word, 1)
        if not digits.isdigit() or not 16 <= int(digits) * factor <= 2**20:
            raise typer.BadParameter(f"{flag}: {part!r} is no length from 16 to 1024k tokens (write 4096 or 4k).")
        result.append(int(digits) * factor)
    return result


def check_encodings(names: Sequence[str]) -> None:
    """Refuse unknown names before anything is loaded."""
    from ..registry import NATIVE, get_encoding

    for name in names:
        for part in name.split("+"):
            if part not in NATIVE:
                try:
                    get_encoding(part)
                except ValueError as error:
                    raise typer.BadParameter(str(error)) from error


def load(model: str, dtype: str, device: str) -> tuple[Any, str]:
    """The model to measure and its name."""
    import torch
    from transformers import AutoModelForCausalLM

    from .. import models
    from ..machine import fast_dtype

    kinds = ("auto", "bfloat16", "float16", "float32", "float64")
    if dtype not in kinds:
        raise typer.BadParameter(f"--dtype {dtype!r} is unknown; choose one of {', '.join(kinds)}.")
    kind = fast_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    if model:
        loaded, name = AutoModelForCausalLM.from_pretrained(model, dtype=kind), model
    elif models.smollm2_available():
        loaded, name = models.smollm2(kind)[0], "SmolLM2-135M-Instruct"
    else:
        loaded, name = models.random_smollm2_shape(kind), "random Llama of SmolLM2-135M's shape"
    placed: Any = loaded
    return placed.to(device).eval(), name
