"""``pe-retrofit check``: the properties of an encoding, measured."""

from __future__ import annotations

from typing import Annotated, Any

import typer

HELP = """Measure the textbook properties of an encoding on a small random model patched with it.

Every yes or no comes with the figure it rests on. NAME may be a composition (native+t5), or native for the unpatched
model. Options of the encoding are given as key=value. Required ones, and those whose default is a length that the small
model never reaches, have other values where they are not given; these are stated.

Examples:

  pe-retrofit check alibi

  pe-retrofit check yarn factor=16

  pe-retrofit check learned max_positions=512 --family bert --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("check", help=HELP)(run)


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Encoding, such as alibi, native+t5 or native.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the encoding, such as factor=4.")
    ] = None,
    family: Annotated[str, typer.Option(help="Small model: llama, gpt_neox (decoders) or bert (encoder).")] = "llama",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Measure and report."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..probes import example_options
    from ..properties import PROPERTIES, check_encoding
    from ..specs import read_spec
    from .common import clean_stdout, print_json

    spec, filled = read_spec(name, options or [], examples=example_options)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn())
    with clean_stdout(as_json), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("patching", total=len(PROPERTIES) + 1)
        report = check_encoding(spec, family, progress=lambda what: progress.update(task, description=what, advance=1))
    if as_json:
        print_json({**report.to_dict(), "chosen": filled, "example_values": filled, "lacking": report.lacking})
    else:
        print_table(report, filled)


def print_table(report: Any, filled: dict[str, Any]) -> None:
    """For people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("property", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("measured")
    words = {True: "[green]yes[/]", False: "[red]no[/]", None: "[dim]n/a[/]"}
    for row in report.properties:
        table.add_row(f"[bold]{row.name}[/]\n", words[row.holds], f"{row.figure}\n[dim]{row.meaning}[/]\n")
    console = Console(highlight=False)
    console.print(
        f"[bold cyan]{report.encoding}[/] on a random {report.family} with {report.layers} layers, "
        f"trained length L = {report.trained_length} tokens"
    )
    for key, value in filled.items():
        console.print(f"  {key} = {value} (example for this small model; give {key}=... for yours)")
    if report.filled:
        console.print(f"  zero at the start, random here: {', '.join(report.filled)}")
    for start in report.starts:
        change = "an exact identity" if start.identity else f"changes the output by {start.change:.2g} of its size"
        console.print(f"  at the start, up to L: {start.encoding}: {change}")
    if report.breaks:
        console.print(f"  [yellow]for teaching: {report.breaks}[/]")
    console.print(table)
    lacking = ", ".join(report.lacking)
    console.print(f"Does not hold: [red]{lacking}[/]" if lacking else "All of it holds.")
