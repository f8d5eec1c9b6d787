"""The reference of the command line, from the help of its verbs."""

from __future__ import annotations

from typing import Any

import typer
from typer.main import get_command

from docsite.prose import cell, code, inline
from pe_retrofit.cli.app import build


def page() -> str:
    """Every verb with its help, examples, arguments and options."""
    app: Any = get_command(build())
    told = [
        "# Command line",
        "`pe-retrofit VERB --help` says the same. Most verbs take `--json`, which prints JSON on stdout and nothing "
        "else. Wrong input ends with exit code 2 and one message, a failed run with 1.",
    ]
    for name, command in app.commands.items():
        told += _verb(f"pe-retrofit {name}", command, 2)
    return "\n\n".join(told) + "\n"


def _verb(name: str, command: Any, level: int) -> list[str]:
    told = [f"{'#' * level} {name}", *_help(command.help or "")]
    within = getattr(command, "commands", None)
    if within:
        for verb, one in within.items():
            told += _verb(f"{name} {verb}", one, level + 1)
        return told
    return [*told, *_parameters(name, command)]


def _help(text: str) -> list[str]:
    """Paragraphs; what is indented or begins with the program's name is an example."""
    told: list[str] = []
    examples: list[str] = []
    for paragraph in text.replace("\b", "").strip().split("\n\n"):
        lines = [line for line in paragraph.strip("\n").splitlines() if line.strip()]
        if lines and all(line.startswith(("  ", "pe-retrofit ")) for line in lines):
            examples += [line.strip() for line in lines]
            continue
        if examples:
            told.append(code("\n".join(examples)))
            examples = []
        told.append(inline(" ".join(lines)))
    return [*told, code("\n".join(examples))] if examples else told


def _parameters(name: str, command: Any) -> list[str]:
    context = typer.Context(command, info_name=name)
    rows = ["| argument or option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        record = None if getattr(parameter, "hidden", False) else parameter.get_help_record(context)
        if record and record[0] != "--help":
            rows.append(f"| `{record[0].replace('|', chr(92) + '|')}` | {cell(record[1])} |")
    return ["\n".join(rows)] if len(rows) > 2 else []
