"""``pe-retrofit card``: the model card of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Write the model card of a saved model or adapter: what was done to it, how it is loaded, what was measured,
what serves it, and what it is not good for.

DIR is what pe-retrofit patch, calibrate, train or save_pretrained wrote. Within the folder of a pe-retrofit train run
the recipe and the last evaluation are found by themselves. Pictures beside the results are copied into DIR. What
nothing tells, such as the license, is left out with a note.

Examples:

  pe-retrofit card out/my-recipe/model --license apache-2.0 --dry-run

  pe-retrofit card my-llama-32k --results out/eval --base-model my-org/my-llama

  pe-retrofit card my-llama-t5 --recipe my.yaml --dataset emozilla/pg19 --language en --overwrite
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("card", help=HELP)(run)


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a saved model or adapter.")],
    results: Annotated[
        Path | None, typer.Option(help="results.json of pe-retrofit eval, its folder, or that of a training run.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file; by default recipe.yaml in DIR, or the run's.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Id on the Hub, or a folder.")] = None,
    license: Annotated[str | None, typer.Option(help="As the Hub names it, such as apache-2.0.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Id on the Hub of training data; may be repeated.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Code such as en; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Title and repository id, such as me/my-llama-32k.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files; write nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that was not written here, or was edited.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Read, plan, and show or write."""
    from ..hub.card import plan_card, write_plan
    from .common import clean_stdout, print_json

    with clean_stdout(as_json):
        plan = plan_card(
            folder,
            results=results,
            recipe=recipe,
            base_model=base_model,
            license=license,
            datasets=dataset or (),
            language=language,
            name=name,
        )
        files = plan.files if dry_run else write_plan(plan, overwrite=overwrite)
    if as_json:
        found: dict[str, Any] = {"files": [str(path) for path in files], "written": not dry_run, "said": plan.said}
        print_json({**found, "card": str(plan.card), "metadata": plan.card.data.to_dict()})
        return
    if dry_run:
        typer.echo(str(plan.card))
    _print_words(plan.said, files, plan.pictures, written=not dry_run)


def _print_words(said: list[str], files: list[Path], pictures: dict[str, Path], *, written: bool) -> None:
    """Where things come from, and the files; on stderr beside a card that is only shown."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, stderr=not written)

    def say(title: str, text: str) -> None:
        console.print(Text.assemble((f"{title:<11}", "dim"), text), soft_wrap=True)

    for line in said:
        say("Known", line)
    for path in files:
        source = pictures.get(path.name)
        say("Written" if written else "Would write", f" {path}" + (f" (from {source})" if source else ""))
