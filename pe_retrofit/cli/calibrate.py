"""``pe-retrofit calibrate``: patch a model, fit the encoding to what the model does, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Patch a model and fit the new encoding to what the original does: no training, minutes on a CPU.

As pe-retrofit patch, with a better start: the original is run over a few windows of text, and each head's new
parameters are those that keep its attention nearest. The table shows each layer's divergence with the default start and
calibrated.

Examples:

  pe-retrofit calibrate smollm2 t5 --out out/t5

  pe-retrofit calibrate ./my-llama alibi --text book.txt --windows 16 --length 1024 --out my-llama-alibi

  pe-retrofit calibrate smollm2 t5 num_buckets=64 --layers 15: --out out/hybrid --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("calibrate", help=HELP)(run)


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, smollm2 or minilm.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Encoding, such as t5 or alibi.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the encoding, such as num_buckets=64.")
    ] = None,
    text: Annotated[str, typer.Option(help="Text to measure on: a file, hub:NAME, or python.")] = "python",
    windows: Annotated[int, typer.Option(help="Windows of text.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    layers: Annotated[str, typer.Option(help="all, indices (0,3,7) or a slice (3::4, -4:).")] = "all",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the windows and queries drawn.")] = 0,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the folder or repository MODEL.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the model brings along.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Load, calibrate, save, load again, compare."""
    from ..errors import ConfigError
    from ..loading import find_source, load_model, load_tokenizer
    from ..pipeline.saving import save_model
    from ..retrofit import CalibrateOptions, calibrate
    from ..specs import read_layers, read_spec
    from .common import clean_stdout, print_json
    from .folder import check_target
    from .running import progress_bar, source_text

    spec, _ = read_spec(name, options or [])
    wanted = CalibrateOptions.from_options({"windows": windows, "length": length, "seed": seed})
    chosen = read_layers(layers)
    source = find_source(model, gguf_file, trust_remote_code)
    target = check_target(out, overwrite, source.folder)
    with clean_stdout(as_json), progress_bar() as report:
        report(f"loading {source.name}", 0.0, 0.0)
        content = source_text(text)
        loaded, auto = load_model(source, dtype)
        tokenizer, reason = load_tokenizer(source)
        if tokenizer is None:
            raise ConfigError(f"{model!r} has no tokenizer, which the text needs: {reason}")
        done = calibrate(
            loaded, spec, content.content, tokenizer=tokenizer, layers=chosen, options=wanted, report=report
        )
        report("saving", 0.0, 0.0)
        saved = save_model(loaded, tokenizer, target, "merged", auto, trust_remote_code)
    found = {**done.to_dict(), "text": {"source": content.name, "sha256": content.sha256}, **saved, "out": str(out)}
    if as_json:
        print_json(found)
    else:
        _print(found, model, out)


def _print(found: dict[str, Any], model: str, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Divergence of attention from the original's, nats per head and query",
        caption=f"Over {found['tokens']:,} tokens of {found['text']['source']}, in {found['seconds']:.0f} s",
    )
    for column in ("layer", "default start", "calibrated", "error of the states"):
        table.add_column(column, justify="right")
    for row in found["layers"]:
        error = row["state_error"]
        states = "-" if error != error else f"{100 * error:.1f} %"  # not a number after the last layer
        table.add_row(str(row["layer"]), f"{row['before']:.3g}", f"{row['after']:.3g}", states)
    table.add_section()
    table.add_row("mean", f"{found['before']:.3g}", f"{found['after']:.3g}", "")
    console = Console()
    console.print(table)
    console.print(f"Written: {out}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Evaluate: pe-retrofit eval {out} --against {model}", highlight=False, markup=False, soft_wrap=True)
