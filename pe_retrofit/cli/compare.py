"""``pe-retrofit compare``: runs next to one another, or the answers of several models to the user's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Compare runs of `pe-retrofit eval`, or the answers of models to your own prompts.

Without --prompts, each argument is a results folder (or results.json); any number, one too. Runs must have asked the
same questions where they have the same cells, or the comparison is refused. Written: compare.html (one file that loads
nothing), compare.md for a model card, compare.json and pictures/.

With --prompts FILE.jsonl, each argument is a model, named as for `eval`. Each line of the file is {"prompt": "..."} or
{"messages": [...]} for the chat template, and may have "id", "max_new_tokens" and "reference" (a text, or several,
that the answer must contain). Models are loaded one after the other. Stopped, the same command goes on where it was.
Written: prompts.html, prompts.md, prompts.json, generations.jsonl.

Examples:

  pe-retrofit compare out/yarn out/alibi out/nope --out out/compare

  pe-retrofit compare out/yarn/results.json --json

  pe-retrofit compare --prompts prompts.jsonl smollm2 yarn:factor=2@smollm2 alibi@smollm2 --out out/prompts

  pe-retrofit compare --prompts prompts.jsonl base-folder retrofit-folder --temperature 0.7 --seed 1
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("compare", help=HELP)(compare)


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Results folders; models with --prompts.")],
    prompts: Annotated[Path | None, typer.Option(help="A .jsonl file of prompts, for an A/B of models.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("out/compare"),
    max_new_tokens: Annotated[
        int | None, typer.Option(help="With --prompts: tokens per answer where a line names none.", show_default="128")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --prompts: 0 is greedy, else sampling.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --prompts: of the sampling.", show_default="0")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --prompts: auto, float32, bfloat16, float16.", show_default="auto")
    ] = None,
    device: Annotated[str | None, typer.Option(help="With --prompts: cpu, cuda, ...; cuda where there is one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With --prompts: run code that comes with a model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
) -> None:
    """Compare runs or models."""
    from ..errors import ConfigError

    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if prompts is not None:
        _prompts(names, prompts, out, given, as_json)
        return
    if given:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} needs --prompts FILE.jsonl.")
    _runs(names, out, as_json)


def _runs(names: list[str], out: Path, as_json: bool) -> None:
    from ..evaluation.report import compare as put_together
    from ..evaluation.report import read_runs, write_comparison
    from .common import clean_stdout, name_files, print_json

    with clean_stdout(as_json):
        comparison = put_together(read_runs(names))
        written = write_comparison(comparison, out)
    if as_json:
        print_json(comparison)
        return
    _print(comparison)
    typer.echo(f"Written: {name_files(written)}")


def _print(comparison: dict[str, Any]) -> None:
    """The overview as one table where it fits; else one table per task."""
    from rich.console import Console

    from ..evaluation.report import overview, task_tables
    from ..evaluation.tables import show

    console = Console()
    table = overview(comparison)
    widest = [max(len(row[i]) for row in (table.head, *table.rows)) + 3 for i in range(len(table.head))]
    if sum(widest) < console.width:
        show(table, console)
    else:
        for part in task_tables(comparison):
            show(part, console)
        console.print(table.caption, highlight=False, markup=False)
    for model in comparison["models"]:
        if model["role"] == "run":
            words = " ".join((model["verdict"] or {}).get("words", []))
            text = f"{model['label']}: {model['headline']['text']}. {words}".strip()
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    for note in comparison["notes"]:
        console.print(f"Note: {note}", highlight=False, markup=False, soft_wrap=True)


def _prompts(names: list[str], file: Path, out: Path, given: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from ..evaluation.prompts import Interrupted, compare_prompts
    from ..evaluation.report.answers import answers_table, turned, write_answers
    from ..evaluation.tables import show
    from .common import clean_stdout, name_files, print_json
    from .running import progress_bar

    try:
        with clean_stdout(as_json), progress_bar() as report:
            answers = compare_prompts(names, file, out, report=report, **given)
            written = write_answers(answers, out)
    except Interrupted:
        typer.echo(f"Interrupted. What was done is in {out}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(answers)
        return
    show(turned(answers_table(answers)), Console())
    typer.echo(f"Written: {name_files(written)}")
