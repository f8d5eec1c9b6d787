"""``pe-retrofit export``: a plain model that needs no plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError

HELP = """Write a model with a RoPE scaling as a plain model, which transformers, vLLM, SGLang and llama.cpp read.

DIR is what pe-retrofit patch wrote, or a hub id. Native are linear, ntk, dynamic, yarn, longrope, llama3 and
partial_rope, alone and on all layers; anything else is refused with its layers. The result is loaded again and must
give the same logits. With --for, what a tool would read and yet run as something else is refused: llama.cpp drops
dynamic and longrope, for example. Without it the table tells.

Examples:

  pe-retrofit export my-llama-32k --native --out plain

  pe-retrofit export my-llama-32k --native --out plain --for vllm --for llamacpp

  pe-retrofit export my-llama-32k --native --out plain --legacy-rope-scaling --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("export", help=HELP)(run)


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Folder or hub id of a saved model.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    native: Annotated[bool, typer.Option("--native", help="As a plain model; the only form there is.")] = False,
    legacy: Annotated[
        bool,
        typer.Option(
            "--legacy-rope-scaling", help="Write rope_scaling and rope_theta too, as transformers 4 reads them."
        ),
    ] = False,
    targets: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="TOOL", help="transformers, vllm, sglang or llamacpp; may be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the model brings along.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Load, check, write, load again, compare."""
    from rich.console import Console

    from ..hub.native import export_native
    from .common import clean_stdout, print_json
    from .folder import check_target

    if not native:
        raise ConfigError("Say --native: a plain model is the only form that is exported.")
    target = check_target(out, overwrite, Path(model) if Path(model).is_dir() else None)
    console = Console(stderr=True)
    with clean_stdout(as_json), console.status("starting") as line:
        report = export_native(
            model,
            target,
            legacy=legacy,
            targets=targets or (),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            tell=line.update,
        )
    report["out"] = str(out)
    if as_json:
        print_json(report)
    else:
        print_words(report)


def print_words(report: dict[str, Any]) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    from ..hub.targets import TARGETS
    from .common import say

    say("Model", f"{report['model_type']} ({', '.join(report['architectures'])})")
    say("Rotation", str(report["rope_parameters"]))
    say("Context", f"{report['max_position_embeddings']:,} tokens")
    if report["legacy"]:
        say("Legacy", str(report["legacy"]))
    say("Reloaded", f"logits within {report['difference']:.3g} of the model's, relative to the largest")
    table = Table("tool", "runs it", "to know", box=None, pad_edge=False)
    for name, found in report["tools"].items():
        told = "; ".join([*found["ignores"], *found["notes"]])
        table.add_row(TARGETS[name].title, "no" if found["ignores"] else "yes", told)
    Console(highlight=False).print(table)
    say("Written", report["out"], "bold")
