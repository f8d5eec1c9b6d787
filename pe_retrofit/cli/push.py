"""``pe-retrofit push``: send the folder of a saved model or adapter to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..hub.pushing import Pushed

HELP = """Push a saved model or adapter to the Hub, in one commit.

DIR holds config.json or adapter_config.json, and safetensors; REPO is namespace/name, and is made if it does not exist.
A push that broke off is taken up by pushing again: what has arrived is not sent a second time, and where the Hub has
all of it there is no new commit. Pickles, credentials and links out of the folder are refused; hidden and temporary
files stay here.

The token comes from HF_TOKEN or from `hf auth login`. There is no option for it: it would stay in the shell's history.

Examples:

  pe-retrofit push my-llama-t5 my-name/my-llama-t5 --dry-run

  pe-retrofit push my-llama-t5 my-name/my-llama-t5 --private

  pe-retrofit push my-llama-t5 my-name/my-llama-t5 --revision step-2000 --message "After 2000 steps"

  pe-retrofit push my-llama-t5 somebody/their-llama --create-pr --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("push", help=HELP)(run)


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved model or adapter.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="namespace/name on the Hub.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; one that exists has to be so.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if need be, or refs/pr/N; main if not given.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request against main.")] = False,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Check, send, say how others load it."""
    from ..hub.pushing import push_folder
    from .common import clean_stdout, print_json
    from .running import progress_bar

    with clean_stdout(as_json), progress_bar() as report:
        pushed = push_folder(
            folder,
            repo,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            dry_run=dry_run,
            report=report,
        )
    load = ways_to_load(folder, pushed.repo_id, pushed.revision)
    if as_json:
        print_json({**pushed.to_dict(), "load": load})
    else:
        print_words(pushed, load)


def ways_to_load(folder: Path, repo_id: str, revision: str) -> list[dict[str, str]]:
    """How others load what the folder holds: for each way its name and Python code."""
    import json

    from ..hub.cards.folder import head_of
    from ..marking import MODEL_TYPE

    at = "" if revision == "main" else f", revision={json.dumps(revision)}"
    name = f'"{repo_id}"{at}'
    if not (folder / "config.json").is_file():
        return [{"with": "the plugin", "code": f"import pe_retrofit\nmodel = pe_retrofit.load_adapter({name})"}]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _, auto = head_of(config.get("architectures") or [])
    start = f"from transformers import {auto}\nmodel = {auto}.from_pretrained({name}"
    ways = []
    if config.get("model_type") == MODEL_TYPE:
        ways.append({"with": "the plugin", "code": f"import pe_retrofit\n{start})"})
    elif not config.get("auto_map"):
        ways.append({"with": "plain transformers", "code": f"{start})"})
    if config.get("auto_map"):
        ways.append({"with": "the code in the repository", "code": f"{start}, trust_remote_code=True)"})
    return ways


def print_words(pushed: Pushed, load: list[dict[str, str]]) -> None:
    """For people."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Would be sent" if pushed.dry_run else "On the Hub", show_footer=True)
    table.add_column("file", f"{len(pushed.files)} files", overflow="fold")
    table.add_column("size", decimal(pushed.bytes), justify="right")
    table.add_column("stored")
    for file in pushed.files:
        table.add_row(escape(file.path), decimal(file.size), file.mode)
    console = Console(highlight=False)
    console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if pushed.left_out:
        say(f"Left out: {', '.join(pushed.left_out)}")
    if pushed.removed:
        say(f"Removed, because loaders would take them in place of these: {', '.join(pushed.removed)}")
    if pushed.dry_run:
        say(f"Nothing was sent. Without --dry-run it goes to {pushed.url}")
    elif not pushed.changed:
        say(f"The Hub had all of it: no new commit. {pushed.url}")
    else:
        new = " (new repository)" if pushed.created else ""
        say(f"Pushed{new}: {decimal(pushed.sent_bytes)} sent, commit {pushed.commit}. {pushed.pr_url or pushed.url}")
    for way in load:
        say(f"\nTo load it with {way['with']}:\n")
        for line in way["code"].splitlines():
            say(f"    {line}")
