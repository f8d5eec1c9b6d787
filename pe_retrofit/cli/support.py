"""What the encodings are, as a Markdown table for the README."""

from __future__ import annotations

BEGIN, END = "<!-- encodings: generated -->", "<!-- encodings: end -->"


def markdown() -> str:
    """The table, one row per registered encoding, without the markers."""
    from ..capabilities import capabilities

    head = ["encoding", "what it is", "acts on", "saved as", "exact identity", "paper"]
    rows = [head, ["---"] * len(head)]
    for row in capabilities():
        cells = [row.title, row.site, row.saved, row.identity or "never", row.paper]
        rows.append([f"`{row.name}`", *(cell.replace("|", "\\|") for cell in cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
