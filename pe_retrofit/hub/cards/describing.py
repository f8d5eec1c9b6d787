"""What was done to a model, in words: one sentence, the layers, and each encoding with formula, options and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...config import EncodingConfig
from ...encodings.learned import Learned
from ...registry import get_encoding
from ...sites import PiecewiseEncoding
from .folder import Group, Saved, keeps_rotation
from .text import code, fence, one_line, plain, ranges, table

MOST_ENCODINGS = 40
"""Encodings with different options that are written out."""


def sentence(saved: Saved, base: str) -> str:
    """``X with ALiBi in place of its rotary encoding (RoPE), on all layers.``"""
    parts = [f"{phrase(group, saved)}, on {where(group)}" for group in saved.groups[:6]]
    more = "; and more, see below" if len(saved.groups) > 6 else ""
    rest = "; the other layers as they were" if _some_left(saved) else ""
    return f"{base} with {'; '.join(parts)}{more}{rest}."


def phrase(group: Group, saved: Saved) -> str:
    """What a group of layers has, in words."""
    native = native_name(saved)
    if not group.entries:
        return f"{native} as it was"
    titles = " and ".join(plain(short_title(entry)) for entry in group.entries)
    if group.on_top:
        return f"{titles} on top of {native}"
    kinds = [get_encoding(entry.name) for entry in group.entries]
    if all(issubclass(kind, Learned) for kind in kinds) and not saved.rotates:
        return f"its position table extended to {group.entries[0].to_dict()['max_positions']:,} positions"
    if all(issubclass(kind, PiecewiseEncoding) for kind in kinds):
        return f"{native} read at the positions of {titles}"
    if all(map(keeps_rotation, group.entries)):
        return f"{native} turned into {titles}"
    return f"{titles} in place of {native}"


def native_name(saved: Saved) -> str:
    """What the model had."""
    if saved.rotates is None:
        return "its own positional encoding" if saved.form != "plain" else "its table of positions"
    return "its rotary encoding (RoPE)" if saved.rotates else "its table of positions"


def short_title(entry: EncodingConfig) -> str:
    """``ALiBi``."""
    return get_encoding(entry.name).info.title.split(",")[0]


def where(group: Group) -> str:
    """``all layers``, ``layers 0-3, 6``."""
    if group.layers is None:
        return "all layers"
    return f"{'layer' if len(group.layers) == 1 else 'layers'} {one_line(ranges(group.layers), 200)}"


def layer_table(saved: Saved) -> str:
    """Layers and what they have; empty where all have the same."""
    if len(saved.groups) == 1 and saved.groups[0].layers is None:
        return ""
    rows = []
    for group in saved.groups[:MOST_ENCODINGS]:
        names = [*(["native"] if group.on_top else []), *(entry.name for entry in group.entries)]
        rows.append([where(group), " + ".join(map(code, names)), phrase(group, saved)])
    if _some_left(saved):
        rows.append(["the others", code("native"), f"{native_name(saved)} as it was"])
    lines = ["| layers | encodings | in words |", "| --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def encodings(saved: Saved) -> Iterator[str]:
    """A section per encoding."""
    for entry in saved.encodings[:MOST_ENCODINGS]:
        yield section(entry, saved)
    if len(saved.encodings) > MOST_ENCODINGS:
        yield f"{len(saved.encodings) - MOST_ENCODINGS} more differ in their options; config.json has all of them."


def section(entry: EncodingConfig, saved: Saved) -> str:
    """Formula, paper, layers, and every option with its value."""
    info = get_encoding(entry.name).info
    on = [where(group) for group in saved.groups if entry in group.entries]
    lines = [f"### {code(entry.name)}: {plain(info.title)}", "", fence(info.formula, "text"), ""]
    lines.append(f"- Paper: {linked(info.paper)}")
    lines.append(f"- On {'; '.join(on)}")
    lines.append(f"- Exact identity: {plain(info.identity or 'never')}")
    if info.breaks:
        lines.append(f"- **For teaching, not for use:** {plain(info.breaks)}")
    values = entry.to_dict()
    rows = [
        [code(option["option"]), _value(values[option["option"]]), plain(option["help"])] for option in entry.describe()
    ]
    if rows:
        lines += ["", table(["option", "value", "meaning"], rows).replace("---:", "---")]
    return "\n".join(lines)


def linked(paper: str) -> str:
    """A paper with a link to arXiv, where it names one."""
    link = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    if link is None:
        return plain(paper)
    return f"{plain(paper[: link.start()])} [{link[0]}](https://arxiv.org/abs/{link[1]}){plain(paper[link.end() :])}"


def _value(value: object) -> str:
    if value is None:
        return "none"
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return code(one_line(shown, 120))


def _some_left(saved: Saved) -> bool:
    """Whether layers are in no group."""
    if any(group.layers is None for group in saved.groups):
        return False
    named = {layer for group in saved.groups for layer in group.layers or ()}
    return saved.layers is None or len(named) < saved.layers
