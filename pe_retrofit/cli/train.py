"""``pe-retrofit train``: a recipe from patch to saved model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Run a recipe: patch, calibrate, transfer, fine-tune, evaluate, save; any stage may be left out.

RECIPE is a YAML or JSON file, or the name of one that comes with the package (pe-retrofit recipes list). A run that was
interrupted goes on with the same command: finished steps are not done again, and training resumes from its last
checkpoint. Values are changed with section.key=value; a section is left out with section=false.

Examples:

  pe-retrofit train my_recipe.yaml

  pe-retrofit train smollm2_yarn4_lora finetune.seed=1 run.folder=out/seed1

  pe-retrofit train my_recipe.yaml patch=alibi fade=false --print-config > alibi.yaml

  pe-retrofit train my_recipe.yaml --dry-run

  pe-retrofit train my_recipe.yaml --launch --processes 8 --config fsdp2
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("train", help=HELP)(train)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="File, or the name of a recipe of the package.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Other values, such as patch.factor=8.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the recipe with every default filled in, and stop.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all that can be checked, and stop.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart/--resume", help="Start over in the folder of an earlier run, or go on with it.")
    ] = False,
    launch: Annotated[bool, typer.Option("--launch", help="Run several processes, through accelerate.")] = False,
    processes: Annotated[
        int | None, typer.Option(help="With --launch: how many; one per accelerator if unsaid.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="With --launch: accelerate's file, or ddp, fsdp2, zero3, cpu2.")
    ] = None,
    expect: Annotated[str | None, typer.Option(hidden=True, help="What --launch asked for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> None:
    """Read, check, launch or run."""
    from ..errors import ConfigError
    from ..pipeline import load_recipe
    from ..pipeline.overriding import read_overrides
    from ..pipeline.shipped import named_or_file

    if not launch and (processes is not None or config is not None):
        raise ConfigError("--processes and --config say how to launch; add --launch.")
    made = load_recipe(named_or_file(recipe), read_overrides(overrides or []))
    if print_config:
        typer.echo(made.to_yaml(), nl=False)
        return
    if dry_run:
        _dry_run(made, restart, as_json)
    elif launch:
        _launch(made, recipe, overrides or [], restart, processes, config, as_json)
    else:
        _run(made, restart, expect, as_json)


def _dry_run(recipe: Any, restart: bool, as_json: bool) -> None:
    from ..pipeline.checks import check_recipe
    from ..pipeline.run import step_names
    from .common import print_json

    notes = check_recipe(recipe, again=restart)
    steps = step_names(recipe)
    if as_json:
        print_json({"name": recipe.name, "folder": str(recipe.folder), "steps": steps, "not_checked": notes})
        return
    typer.echo(f"{recipe.name}: the recipe is valid. Steps: {', '.join(steps)}. Folder: {recipe.folder}")
    for note in notes:
        typer.echo(f"not checked: {note}")


def _launch(
    recipe: Any,
    name: str,
    overrides: list[str],
    again: bool,
    processes: int | None,
    config: str | None,
    as_json: bool,
) -> None:
    from ..pipeline.checks import check_recipe
    from ..pipeline.launching import LaunchFailed, launch, plan_launch
    from ..pipeline.store import restart

    plan = plan_launch(processes, config)
    check_recipe(recipe, again=again)
    if again:
        restart(recipe.folder, recipe["save"].folder if recipe["save"] is not None else "model")
    words = ["train", name, *overrides, "--expect", plan.expectation, *(["--json"] if as_json else [])]
    try:
        launch(plan, words)
    except LaunchFailed as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        _interrupted(recipe)


def _run(recipe: Any, again: bool, expect: str | None, as_json: bool) -> None:
    from ..evaluation import Interrupted
    from ..pipeline.checks import check_recipe
    from ..pipeline.launching import check_expectation
    from ..pipeline.run import loading_lines, run
    from ..pipeline.summary import markdown
    from .common import clean_stdout, print_json
    from .running import progress_bar

    check_recipe(recipe, again=again)
    for noise in ("transformers", "torch.utils.data"):  # about names to come, and about machines without a GPU
        warnings.filterwarnings("ignore", module=noise)
    kind = None
    try:
        with clean_stdout(as_json), progress_bar() as report:
            if expect is not None:
                kind = check_expectation(expect)
            found = run(recipe, again=again, kind=kind, report=report, tell=typer.echo)
    except (Interrupted, KeyboardInterrupt):
        _interrupted(recipe)
    if not _is_main():
        return
    if as_json:
        print_json(found)
        return
    typer.echo()
    typer.echo(markdown(found))
    for line in loading_lines(recipe, found):
        typer.echo(line)


def _interrupted(recipe: Any) -> None:
    folder: Path = recipe.folder
    if _is_main():
        typer.echo(f"Interrupted. What was done is in {folder}; the same command goes on from there.", err=True)
    raise typer.Exit(130) from None


def _is_main() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"
