"""``pe-retrofit list``: which encodings there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

HELP = """List the encodings: where they act, which models they suit, their options, their papers.

Examples:

  pe-retrofit list

  pe-retrofit list --json

  pe-retrofit list --capabilities
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("list", help=HELP)(run)


def run(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="What each can do: families, caches, kernels, parallel training.")
    ] = False,
) -> None:
    """Print the table."""
    from .common import print_json

    if capabilities:
        from ..capabilities import capabilities as every

        found = every()
        if as_json:
            print_json([row.to_dict() for row in found])
        else:
            print_capabilities(found)
        return
    rows = encodings()
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


def encodings() -> list[dict[str, Any]]:
    """One row per registered encoding, in JSON values."""
    from ..capabilities import on_disk
    from ..registry import get_encoding, list_encodings

    rows = []
    for name in list_encodings():
        kind = get_encoding(name)
        info = kind.info
        rows.append(
            {
                "name": name,
                "title": info.title,
                "site": kind.site,
                "causal": info.causal,
                "bidirectional": info.bidirectional,
                "on_disk": on_disk(kind),
                "identity": info.identity,
                "formula": info.formula,
                "options": kind.Config.describe(),
                "paper": info.paper,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """For people: three lines per encoding, which fit a narrow terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("name", style="bold cyan", no_wrap=True)
    table.add_column("what it is, options, paper")
    for title in ("site", "models", "on disk"):
        table.add_column(title, no_wrap=True)
    both = {(True, True): "both", (True, False): "decoders", (False, True): "encoders"}
    for row in rows:
        options = ", ".join(option_text(option) for option in row["options"]) or "no options"
        about = Text.assemble(row["title"], "\n", (options, "green"), "\n", (row["paper"], "dim"))
        table.add_row(row["name"], about, row["site"], both[row["causal"], row["bidirectional"]], row["on_disk"])
        table.add_row()
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "On disk: [bold]plain[/] models need nothing but transformers (when all layers are patched); "
        "[bold]pe_retrofit[/] models need [bold]import pe_retrofit[/] before they are loaded.\n"
        "Compose with +: [bold]native+t5[/] keeps the model's own encoding and adds T5's bias. "
        "More: [bold]pe-retrofit show NAME[/]."
    )


def print_capabilities(rows: list[Any]) -> None:
    """For people: one line per encoding."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("name", style="bold cyan", no_wrap=True)
    for title in ("families", "attention", "cache", "kernels (CPU)", "learned", "DDP", "FSDP2", "TP", "CP", "on disk"):
        table.add_column(title)
    both = {(True, True): "both", (True, False): "causal", (False, True): "bidirect."}
    for row in rows:
        words = ["[green]yes[/]" if value else "[red]no[/]" for value in (row.ddp, row.fsdp2, row.tp, row.cp)]
        families = ", ".join(name for name, fits in row.families.items() if fits)
        table.add_row(
            row.name,
            families,
            both[row.causal, row.bidirectional],
            row.cache,
            ", ".join(row.kernels["cpu"]),
            "yes" if row.learned else "no",
            *words,
            row.saved,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Default options, all layers, in place of the native encoding. Cache: of decoders. TP, CP: tensor and context "
        "parallelism; [red]no[/] is refused at the first pass. Patch first, then shard."
    )


def option_text(option: dict[str, Any]) -> str:
    """``factor (required)`` or ``beta_fast=32.0``."""
    if option["default"] == "required":
        return f"{option['option']} (required)"
    value = option["default"]
    words = {None: "auto", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else value
    return f"{option['option']}={shown}"
