"""``pe-retrofit recipes``: the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """List, show and copy the recipes that come with the package.

Examples:

  pe-retrofit recipes list

  pe-retrofit recipes list --json

  pe-retrofit recipes show smollm2_yarn4_lora

  pe-retrofit recipes copy smollm2_yarn4_lora my_recipe.yaml

  pe-retrofit recipes copy accelerate/fsdp2
"""


def register(app: typer.Typer) -> None:
    """Add the verb, with verbs of its own, to the application."""
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
    group.command("list")(list_them)
    group.command("show")(show)
    group.command("copy")(copy)
    app.add_typer(group, name="recipes")


def list_them(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """What there is: name, what it does, hardware, time."""
    from rich.console import Console
    from rich.table import Table

    from ..pipeline.shipped import LAUNCHERS, launchers, shipped
    from .common import print_json

    found = shipped()
    if as_json:
        configs = [{"name": f"{LAUNCHERS}/{name}", "path": str(path)} for name, path in launchers().items()]
        print_json({"recipes": [recipe.to_dict() for recipe in found], "launchers": configs})
        return
    table = Table(title="Recipes", caption="pe-retrofit train NAME, or pe-retrofit recipes copy NAME to change it")
    for column in ("name", "what", "hardware", "time"):
        table.add_column(column, overflow="fold")
    for recipe in found:
        table.add_row(recipe.name, recipe.what, recipe.hardware, recipe.time)
    console = Console()
    console.print(table)
    names = ", ".join(f"{LAUNCHERS}/{name}" for name in launchers())
    console.print(f"For --launch --config: {names}", highlight=False, markup=False)


def show(name: Annotated[str, typer.Argument(help="Of a recipe, or accelerate/NAME.")]) -> None:
    """Print a recipe."""
    from ..pipeline.shipped import find

    typer.echo(find(name).read_text(encoding="utf-8"), nl=False)


def copy(
    name: Annotated[str, typer.Argument(help="Of a recipe, or accelerate/NAME.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it."""
    from ..pipeline.shipped import copy as copy_it

    typer.echo(f"Written: {copy_it(name, target, force=force)}")
