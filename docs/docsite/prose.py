"""Docstrings as Markdown."""

from __future__ import annotations

import re
from textwrap import dedent

_ROLE = re.compile(
    r":(?:class|func|meth|mod|data|attr):`~?(?:[\w.]*\.)?(\w+)(?:\s*<[^>]*>)?`|:\w+:`([^`<]+?)\s*<[^>]+>`"
)
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
_ITEM = re.compile(r"^([\w*.`, /]+?): (.*)$", re.DOTALL)


def markdown(documentation: str) -> str:
    """A docstring: paragraphs as they are, ``Args:`` and its like as lists, code as code, papers as links."""
    lines = dedent(documentation).strip().splitlines()
    parts: list[str] = []
    section, block = "", []

    def flush() -> None:
        if any(line.strip() for line in block):
            parts.append(_items(section, block) if section else _paragraphs(block))

    for line in lines:
        found = re.fullmatch(rf"({'|'.join(_SECTIONS)}):", line)
        if found or (section and line and not line.startswith(" ")):
            flush()
            section, block = (found[1], []) if found else ("", [line])
        else:
            block.append(line)
    flush()
    return "\n\n".join(parts)


def inline(text: str) -> str:
    """A run of prose: code stays code, everything else is safe from Markdown."""
    text = _ROLE.sub(lambda m: f"`{m[1] or m[2]}`", " ".join(text.split())).replace("``", "`")
    pieces = text.split("`")
    for at in range(0, len(pieces), 2):
        plain = re.sub(r"([*_\[\]|])", r"\\\1", pieces[at]).replace("<", "&lt;")
        pieces[at] = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", plain)
    return "`".join(pieces)


def cell(text: str) -> str:
    """Prose within a table."""
    pieces = inline(text).split("`")
    for at in range(1, len(pieces), 2):
        pieces[at] = pieces[at].replace("|", "\\|")
    return "`".join(pieces)


def code(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


def _paragraphs(lines: list[str]) -> str:
    """Running text; indented stretches, lists and examples stay as they are laid out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if paragraph.startswith((">>>", "    ")):
            found.append(code(dedent(paragraph), "python" if ">>>" in paragraph else "text"))
        elif re.match(r"[-*] ", paragraph):
            bullets = re.split(r"\n(?=[-*] )", paragraph)
            found.append("\n".join("- " + inline(bullet[2:]) for bullet in bullets))
        else:
            found.append(inline(paragraph))
    return "\n\n".join(found)


def _items(section: str, lines: list[str]) -> str:
    """``name: meaning`` lines of a section as a list; prose without names as a paragraph."""
    entries: list[str] = []
    for line in dedent("\n".join(lines)).strip("\n").splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line)
    title = "Arguments" if section == "Args" else section
    if section in ("Returns", "Yields"):
        return f"**{title}** {inline(' '.join(entries))}"
    rows = []
    for entry in entries:
        found = _ITEM.match(entry)
        rows.append(f"- {_names(found[1])}: {inline(found[2])}" if found else f"- {inline(entry)}")
    return f"**{title}**\n\n" + "\n".join(rows)


def _names(text: str) -> str:
    return ", ".join(f"`{name.strip('` ')}`" for name in re.split(r"[,/]", text))
