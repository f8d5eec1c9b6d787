"""``pe-retrofit calibrate``: patch a model, fit the encoding to what the model does, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Patch a model and fit the new encoding to what the original does: no training, minutes on a CPU.

As pe-retrofit patch, with a better start: the original is run over a few windows of text, and each head's new
parameters are those that keep its attention nearest. The table shows each layer's divergence with the default start and
calibrated, and the perplexity on other windows of the same text.

NAME all, or several names with commas, compares default and calibrated starts and writes nothing but --out/starts.json.

Examples:

  pe-retrofit calibrate smollm2 all

  pe-retrofit calibrate smollm2 t5 --out out/t5

  pe-retrofit calibrate ./my-llama alibi --text book.txt --windows 16 --length 1024 --out my-llama-alibi

  pe-retrofit calibrate smollm2 t5 num_buckets=64 --layers 15: --out out/hybrid --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("calibrate", help=HELP)(run)


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, smollm2 or minilm.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Encoding, such as t5; several with commas, or all.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the encoding, such as num_buckets=64.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    text: Annotated[str, typer.Option(help="A file, hub:NAME, or one of Python's texts.")] = "python_topics",
    windows: Annotated[int, typer.Option(help="Windows of text.")] = 8,
    held_out: Annotated[int, typer.Option(help="Further windows that the perplexity is measured on.")] = 4,
    rows: Annotated[int, typer.Option(help="Queries looked at per window, head and layer.")] = 24,
    steps: Annotated[int, typer.Option(help="Newton steps at most, per head.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    layers: Annotated[str, typer.Option(help="all, indices (0,3,7) or a slice (3::4, -4:).")] = "all",
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
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
    from ..hub.saving import save_model
    from ..loading import find_source, load_model, load_tokenizer
    from ..retrofit import CalibrateOptions
    from ..retrofit.calibration.starts import CALIBRATED, compare_starts, measure_start
    from ..retrofit.windows import draw_windows
    from ..specs import read_layers, read_spec
    from .common import clean_stdout, print_json
    from .folder import check_target
    from .running import progress_bar, source_text

    names = list(CALIBRATED) if name == "all" else [part for part in name.split(",") if part]
    several = name == "all" or "," in name
    if several and options:
        raise ConfigError(f"Options {options} were given beside several encodings. Name one of them.")
    if out is None and not several:
        raise ConfigError("A calibrated model has to be written: name a folder with --out. To compare only, NAME all.")
    if held_out < 1:
        raise ConfigError(f"--held-out {held_out} must be at least 1.")
    specs = [(part, read_spec(part, options or [])[0]) for part in names]
    wanted = CalibrateOptions.from_options(
        {"windows": windows, "length": length, "rows": rows, "steps": steps, "seed": seed}
    )
    chosen = read_layers(layers)
    source = find_source(model, gguf_file, trust_remote_code)
    target = None if out is None else check_target(out, overwrite, source.folder)
    with clean_stdout(as_json), progress_bar() as report:
        report(f"loading {source.name}", 0.0, 0.0)
        content = source_text(text)
        loaded, _ = load_model(source, dtype)
        tokenizer, reason = load_tokenizer(source)
        if tokenizer is None:
            raise ConfigError(f"{model!r} has no tokenizer, which the text needs: {reason}")
        ids = draw_windows(content.content, tokenizer, count=windows + held_out, length=length, seed=seed)
        if len(ids) < windows + held_out:
            raise ConfigError(
                f"The text holds {len(ids)} windows of {length} tokens, and {windows} to calibrate on and {held_out} "
                "held out are needed. Give more text, or lower --windows, --held-out or --length."
            )
        found: dict[str, Any] = {
            "model": source.name,
            "text": {"source": content.name, "sha256": content.sha256},
            "tokens": windows * length,
            "held_out_tokens": held_out * length,
        }
        if several:
            if name == "all" and not _causal(loaded):
                # NoPE would make an encoder a bag of words; CoPE and FoX count from the past
                specs = [pair for pair in specs if pair[0] not in ("nope", "cope", "fox")]
            starts = compare_starts(loaded, specs, ids, wanted, layers=chosen, report=report)
            found["starts"] = [row.to_dict() for row in starts]
            if target is not None:
                _write(found, target)
        else:
            row, done = measure_start(loaded, name, specs[0][1], ids, wanted, layers=chosen, report=report)
            report("saving", 0.0, 0.0)
            assert target is not None
            saved = save_model(loaded, target, tokenizer, trust_remote_code=trust_remote_code)
            found |= {**done.to_dict(), "perplexity": row.to_dict(), **saved, "out": str(out)}
            _write(found, target)
    if as_json:
        print_json(found)
    elif several:
        _print_starts(found)
    else:
        assert out is not None
        _print(found, model, out)


def _causal(model: Any) -> bool:
    from ..patchers.family import find_host

    return find_host(model).causal()


def _write(found: dict[str, Any], folder: Path) -> None:
    """Into the folder of the model, or of the comparison."""
    import json

    from ..config import finite

    folder.mkdir(parents=True, exist_ok=True)
    name = "starts.json" if "starts" in found else "calibration.json"
    beside = folder / f".{name}.part"
    beside.write_text(json.dumps(finite(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(folder / name)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_starts(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Perplexity with the default start and calibrated",
        caption=f"On {found['held_out_tokens']:,} tokens of {found['text']['source']} that calibration has not seen",
    )
    table.add_column("encoding")
    for column in ("stock", "default start", "calibrated", "divergence before", "after", "seconds"):
        table.add_column(column, justify="right")
    for row in found["starts"]:
        numbers = (row[key] for key in ("stock", "default", "calibrated", "before", "after", "seconds"))
        table.add_row(row["name"], *map(_number, numbers))
    Console().print(table)


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
    got = found["perplexity"]
    console.print(
        f"Perplexity on {found['held_out_tokens']:,} other tokens: stock {_number(got['stock'])}, default start "
        f"{_number(got['default'])}, calibrated {_number(got['calibrated'])}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Written: {out}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Evaluate: pe-retrofit eval {out} --against {model}", highlight=False, markup=False, soft_wrap=True)
