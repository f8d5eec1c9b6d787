"""``pe-retrofit merge``: fold an adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Fold a LoRA adapter into its base model, which is patched as it was in training, and save one whole model.

ADAPTER is a folder, or a repository on the Hub, with adapter_model.safetensors and position_encoding.json, as
pe-retrofit train writes them. The merged model is loaded again and must give the adapter's logits. The folder --out
appears whole or not at all.

Examples:

  pe-retrofit merge out/my-recipe/model --out my-llama-t5

  pe-retrofit merge me/my-llama-t5-lora --out my-llama-t5 --dtype bfloat16

  pe-retrofit merge out/qlora/model --base my-org/my-llama --dtype float32 --out merged --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("merge", help=HELP)(run)


def run(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder, or id of a repository on the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    base: Annotated[
        str | None, typer.Option(help="Hub id, folder or .gguf file of the base; by default the adapter names it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Of the adapter on the Hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the base model brings along.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Load, merge, compare, save, load again."""
    from rich.console import Console

    from ..hub.merging import merge_adapter
    from .common import clean_stdout, print_json
    from .folder import check_target

    source = Path(adapter) if Path(adapter).is_dir() else None
    target = check_target(out, overwrite, source)
    console = Console(stderr=True)
    with clean_stdout(as_json), console.status("starting") as line:
        report = merge_adapter(
            adapter,
            target,
            base=base,
            dtype=dtype,
            revision=revision,
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
    from .common import say

    names = [" + ".join(str(e.get("name", "?")) for e in patch["encodings"]) for patch in report["patches"]]
    say("Adapter", report["adapter"])
    say("Base", f"{report['base']} ({report['dtype']})")
    say("Encoding", "; ".join(names) or "the model's own")
    say("Positions", f"{report['saved']['learned_positions']:,} learned parameters")
    say("Merged", f"logits within {report['merge_difference']:.3g} of the adapter's, relative to the largest")
    say("Reloaded", f"largest difference of the logits {report['saved']['reload_difference']:.3g}")
    say("Tokenizer", report["tokenizer"])
    say("Written", report["out"], "bold")
