"""``pe-retrofit inspect``: what a retrofit did inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Look inside a model next to the original: attention by distance, entropy, sinks, drift, repetition.

MODEL is what eval takes: a hub id, a folder, an adapter's folder, a GGUF file, smollm2 or minilm (from Python
packages), or NAME@MODEL, which patches on the fly. Flags say what to act on; all numbers are in OUT/inspect.json.

Examples:

  pe-retrofit inspect alibi@smollm2 --length 512 --out out/inspect-alibi

  pe-retrofit inspect yarn:factor=2@smollm2 --length 2k --text novel.txt

  pe-retrofit inspect my-retrofit --against HuggingFaceTB/SmolLM2-135M --json

  pe-retrofit inspect learned:max_positions=1024,init=tile@minilm --length 1k
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("inspect", help=HELP)(look)


def look(
    model: Annotated[str, typer.Argument(help="What to inspect.")],
    length: Annotated[str, typer.Option(help="Tokens read: 512, 2k.")] = "1k",
    against: Annotated[str, typer.Option(help="auto (the same without patch and adapter), none, or a model.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for inspect.json and the pictures.")] = Path("out/inspect"),
    text: Annotated[
        str | None, typer.Option(help="The text that is read; by default the Python language reference.")
    ] = None,
    generate: Annotated[bool, typer.Option(help="Let a decoder continue the text, to measure repetition.")] = True,
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the first GPU by default.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside MODEL.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the inspection."""
    from ..errors import ConfigError
    from ..evaluation.inspecting import inspect_named
    from .common import clean_stdout, print_json
    from .numbers import read_lengths
    from .running import progress_bar, source_text

    lengths = read_lengths(length, "--length")
    if len(lengths) != 1:
        raise ConfigError(f"--length {length!r}: one length is inspected at a time.")
    with clean_stdout(as_json), progress_bar() as report:
        results = inspect_named(
            model,
            against=against,
            length=lengths[0],
            text=None if text is None else source_text(text),
            generate=generate,
            out=out,
            dtype=dtype,
            device=device,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            report=report,
        )
    if as_json:
        print_json(results)
    else:
        _print(results, out)


def _print(results: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from ..evaluation.inspecting import table
    from ..evaluation.tables import show

    console = Console()
    show(table(results), console)
    for flag in results["flags"]:
        console.print(f"[bold]{flag['flag']}[/bold]: {flag['sentence']}", highlight=False, soft_wrap=True)
    if not results["flags"]:
        console.print("No flags.", highlight=False)
    console.print(f"Written to {out}: {', '.join(results['files'])}", highlight=False, soft_wrap=True)
