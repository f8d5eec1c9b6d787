"""``pe-retrofit eval``: the same questions to a model and to what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Evaluate a model on long-context tasks next to the original: tables, pictures, results.json.

MODEL is a hub id, a folder, an adapter's folder, a GGUF file, smollm2 or minilm (from Python packages), or NAME@MODEL,
which patches on the fly. Stopped by Ctrl-C or killed, the same command goes on where it was; more lengths, samples or
tasks can be added the same way. With several devices: torchrun --nproc_per_node 4 -m pe_retrofit.cli eval ...

Examples:

  pe-retrofit eval yarn:factor=2@smollm2 --tasks perplexity,passkey --lengths 2k,4k,8k,16k --out out/yarn

  pe-retrofit eval my-retrofit --against HuggingFaceTB/SmolLM2-135M --tasks ruler --lengths 4k,8k --out out/mine

  pe-retrofit eval alibi@smollm2 --tasks passkey --set passkey.digits=7 --generate --out out/alibi

  pe-retrofit eval learned:max_positions=4096,init=tile@minilm --tasks encoder --lengths 256,1k,4k --out out/tile

  pe-retrofit eval --list
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("eval", help=HELP)(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="What to evaluate.")] = "",
    tasks: Annotated[str, typer.Option(help="Tasks or groups of tasks, or all.")] = "perplexity,passkey",
    lengths: Annotated[str, typer.Option(help="In tokens: 512,2k,4k; the answer included.")] = "1k,2k,4k",
    against: Annotated[
        str, typer.Option(help="auto (the same without patch and adapter), none, a model, or a run's folder.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/eval"),
    samples: Annotated[int, typer.Option(help="Prompts per cell.")] = 5,
    depths: Annotated[str, typer.Option(help="Depths of needles, 0 to 1.")] = "0,0.25,0.5,0.75,1",
    text: Annotated[
        str | None, typer.Option(help="For perplexity, haystacks: .txt, .jsonl[:FIELD], .parquet, a folder, hub:NAME.")
    ] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="TASK.OPTION=VALUE; may be repeated.")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Generate where a forced answer would do.")] = False,
    seed: Annotated[int, typer.Option(help="Of all samples.")] = 0,
    batch_size: Annotated[str, typer.Option(help="Prompts per forward, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="File in the folder or repository.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the tasks and their options.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Run the evaluation."""
    from ..errors import ConfigError

    if list_them:
        _list(as_json)
        return
    if not model:
        raise ConfigError("Name a model to evaluate, e.g. yarn:factor=2@smollm2; --list shows the tasks.")
    from ..evaluation import Interrupted
    from ..evaluation import evaluate as run
    from .common import CommandError, clean_stdout, print_json
    from .numbers import read_lengths, read_numbers, read_size
    from .running import progress_bar, source_text

    settings: dict[str, Any] = {
        "lengths": read_lengths(lengths),
        "samples": samples,
        "depths": read_numbers(depths, "--depths"),
        "seed": seed,
        "generate": generate,
        "batch_size": read_size(batch_size),
    }
    if text is not None:
        settings["text"] = source_text(text)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        with clean_stdout(as_json), progress_bar() as report:
            results = run(
                model,
                tasks=names,
                against=against,
                out=out,
                options=_options(options or []),
                dtype=dtype,
                device=device,
                gguf_file=gguf_file,
                trust_remote_code=trust_remote_code,
                report=report,
                **settings,
            )
    except Interrupted:
        typer.echo(f"Interrupted. What was done is in {out}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    if not _is_main():
        return
    from ..evaluation.report import write_run

    written = [out / "results.json", *write_run(results, out)]
    if as_json:
        print_json(results)
    else:
        _print(results, written)
    if results.get("verdict", {}).get("broken"):
        raise CommandError(results["verdict"]["words"][0])
    failed = [name for name, task in results["tasks"].items() if task["status"] == "error"]
    if failed:
        raise CommandError(f"{', '.join(failed)}: {results['tasks'][failed[0]]['reason']}")


def _print(results: dict[str, Any], written: list[Path]) -> None:
    from rich.console import Console

    from ..evaluation.tables import show, tables
    from .common import name_files

    console = Console()
    for table in tables(results):
        show(table, console)
    for words in results.get("verdict", {}).get("words", []):
        console.print(words, highlight=False, soft_wrap=True)
    console.print(f"Written: {name_files(written)}", highlight=False, soft_wrap=True)


def _is_main() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _options(items: list[str]) -> dict[str, dict[str, Any]]:
    from ..errors import ConfigError
    from ..specs import read_value

    options: dict[str, dict[str, Any]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        task, dot, option = key.strip().partition(".")
        if not equals or not dot or not task or not option:
            raise ConfigError(f"--set {item!r} is not of the form TASK.OPTION=VALUE, such as passkey.digits=7.")
        if option in options.setdefault(task, {}):
            raise ConfigError(f"--set {key.strip()} is given twice; give it once.")
        options[task][option] = read_value(value.strip())
    return options


def _list(as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation import list_tasks
    from ..evaluation import tasks as _tasks  # noqa: F401  (registers them)
    from ..evaluation.bridges.lm_eval import HELP as LM_EVAL
    from ..evaluation.task import GROUPS, NEEDS
    from .common import print_json

    if as_json:
        print_json(
            {
                "tasks": [
                    {
                        "name": name,
                        "title": task.title,
                        "recipe": task.recipe,
                        "needs": task.needs,
                        "metric": task.metric,
                        "source": task.source,
                        "options": task.Options.describe(),
                    }
                    for name, task in list_tasks().items()
                ],
                "groups": {name: members() for name, members in GROUPS.items()},
                "others": {"lm_eval/NAME": LM_EVAL},
            }
        )
        return
    table = Table(title="Tasks", caption="Options: --set TASK.OPTION=VALUE", show_lines=True)
    for column in ("task", "what it asks", "for", "options"):
        table.add_column(column)
    for name, task in list_tasks().items():
        rows = "\n".join(f"{o['option']}={o['default']}: {o['help']}" for o in task.Options.describe())
        table.add_row(name, task.recipe, NEEDS[task.needs], rows or "none")
    console = Console()
    console.print(table)
    for name, members in GROUPS.items():
        console.print(f"{name}: {', '.join(members())}", highlight=False)
    console.print(f"lm_eval/NAME: {LM_EVAL}", highlight=False, markup=False)
