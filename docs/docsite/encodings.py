"""The page of each encoding, their index, and the gallery."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from docsite.prose import cell, code, inline, markdown
from docsite.shown import GROUPS, Shown, by_group, every
from docsite.tiles import AXES
from pe_retrofit.capabilities import Capability, capability
from pe_retrofit.patchers import FAMILIES
from pe_retrofit.views import Shape

SITES = {
    "bias": "the attention logits, from positions alone",
    "score": "the attention logits, from queries and keys",
    "rotation": "queries and keys, by turning them",
    "input": "the token embeddings",
    "hybrid": "different layers differently",
}
SAVED = {
    "plain": "as a plain model, which transformers reads without this package, when all layers are patched",
    "plain (decoders)": "decoders as a plain model, which transformers reads without this package; encoders under the "
    "`model_type` `pe_retrofit`",
    "plain (encoders)": "encoders as a plain model, which transformers reads without this package; decoders under the "
    "`model_type` `pe_retrofit`",
    "pe_retrofit": "under the `model_type` `pe_retrofit`, which needs `import pe_retrofit` where it is loaded, and "
    "fails to load where the package is missing",
}
KERNEL_NOTE = {
    True: "The model keeps its own attention, whichever implementation it is set to; no kernel of ours runs.",
    False: "Attention runs through the implementation `pe_retrofit`; the kernels of a decoder's prefill, in the order "
    "they are tried:",
}


def page(one: Shown) -> str:
    """The page of one encoding."""
    info, can = one.kind.info, capability(one.name)
    both = {(True, True): "decoders and encoders", (True, False): "decoders only", (False, True): "encoders only"}
    told = [
        f"# {one.name}: {inline(info.title)}",
        f"Acts on {SITES[one.kind.site]}. For {both[info.causal, info.bidirectional]}.",
        code(info.formula),
    ]
    if info.breaks:
        told.append(f'!!! warning "For teaching"\n\n    {inline(info.breaks[0].upper() + info.breaks[1:])}.')
    told += [
        f"![{one.name}: what it adds or turns](../pictures/{one.name}.png)",
        f"*{_picture_words(one)}*",
        "## Use it",
        code(_python(one), "python"),
        code(_shell(one)),
        "## How it works",
        markdown(inspect.getdoc(one.kind) or ""),
        "## Options",
        _options(one),
        _parameters(one),
        "## Exact identity",
        _identity(info),
        "## What it works with",
        _works_with(can),
        "## How it is saved",
        f"{SAVED[can.saved][0].upper()}{SAVED[can.saved][1:]}.",
    ]
    return "\n\n".join(part for part in told if part) + "\n"


def _picture_words(one: Shown) -> str:
    shape = Shape()
    examples = f" with {', '.join(f'{k} = {v}' for k, v in one.filled.items())}" if one.filled else ""
    return (
        f"Drawn by `pe-retrofit show`{examples}, on a model of {shape.heads} heads of size {shape.head_dim}, trained "
        f"to {shape.trained:,} tokens."
    )


def _python(one: Shown) -> str:
    given = "".join(f", {key}={value!r}" for key, value in one.filled.items())
    config, beside = one.kind.Config.__name__, "native" in one.kind.info.identity
    names = f"{config}, patch_model" if beside and given else "patch_model"
    lines = [f"from pe_retrofit import {names}", "", f'patch_model(model, "{one.name}"{given})']
    if beside:
        added = f"{config}({given[2:]})" if given else f'"{one.name}"'
        lines.append(f'patch_model(model, ["native", {added}])  # on top of what the model has')
    return "\n".join(lines)


def _shell(one: Shown) -> str:
    given = "".join(f" {key}={value}" for key, value in one.filled.items())
    beside = "native" in one.kind.info.identity
    return "\n".join(
        [
            f"pe-retrofit patch MODEL {one.name}{given} --out DIR",
            *([f"pe-retrofit patch MODEL native+{one.name}{given} --out DIR"] if beside else []),
            f"pe-retrofit show {one.name}{given} --out {one.name}.png",
            f"pe-retrofit check {one.name}{given}",
        ]
    )


def limits(field: Any) -> str:
    """What an option may be, in the words of its own refusal."""
    check = field.metadata.get("check")
    if check is None:
        return ""
    said = [words for wrong in (object(), [object()]) if (words := check(wrong))]
    words = "; ".join(dict.fromkeys(word.removeprefix("must be ").removeprefix("must ") for word in said))
    none = check(None) is None
    return f"{words}; or None" if none else words


def _options(one: Shown) -> str:
    fields = dataclasses.fields(one.kind.Config)
    if not fields:
        return "None."
    rows = ["| option | default | what is allowed | meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append(f"| `{field.name}` | {default} | {cell(limits(field))} | {cell(field.metadata.get('help', ''))} |")
    return "\n".join(rows) + "\n\nWrong values are refused by name, all at once."


def _parameters(one: Shown) -> str:
    """What it learns, on the model of the picture."""
    if one.group == "hybrid" or not hasattr(one.kind, "parameters"):
        return ""
    shape = Shape(causal=one.kind.info.causal)
    found = [(name, list(p.shape)) for name, p in one.kind(one.config, shape.host).named_parameters()]
    if not found:
        return ""
    listed = ", ".join(f"`{name} {size}`" for name, size in found)
    where = "once, beside the embeddings" if one.group == "input" else "in each layer"
    return (
        f"Learned {where}, on {shape.heads} heads of size {shape.head_dim} (hidden size "
        f"{shape.host.hidden_size}): {listed}."
    )


def _identity(info: Any) -> str:
    if not info.identity:
        return "Never: a patched model differs from the original at once. `patch_model` measures by how much."
    return (
        "A patched model gives the same logits as the original, which `patch_model` measures, when: "
        f"**{inline(info.identity)}**."
    )


def _works_with(can: Capability) -> str:
    families = list(dict.fromkeys(family.name for family in FAMILIES))
    members = {name: ", ".join(f.examples for f in FAMILIES if f.name == name) for name in families}
    rows = ["| family | | members |", "| --- | --- | --- |"]
    rows += [f"| `{name}` | {_yes(can.families[name])} | {members[name]} |" for name in families]
    own = can.kernels["cpu"] == can.kernels["cuda"] == ["model's own"]
    kernels = [KERNEL_NOTE[own]]
    if not own:
        kernels = [KERNEL_NOTE[own], "| device | kernels |\n| --- | --- |"]
        kernels[1] += "".join(f"\n| {device} | {', '.join(names)} |" for device, names in can.kernels.items())
    cache = "yes" if can.cache == "yes" else "one pass only: a filled cache cannot be continued"
    more = [
        ("cached decoding", cache),
        ("parameters of its own", _yes(can.learned)),
        ("data parallelism (DDP, FSDP2)", _yes(can.ddp and can.fsdp2)),
        ("tensor parallelism", _yes(can.tp)),
        ("context parallelism", _yes(can.cp)),
    ]
    table = "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in more)
    note = "With default options, in all layers, in place of what the model has; as `status(model)` tells."
    return "\n\n".join(["\n".join(rows), *kernels, table, note])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def index() -> str:
    """All encodings by group."""
    told = [
        "# Encodings",
        f"{len(every())} encodings, by where they act. *Identity* says when a patched model gives exactly the logits "
        "it gave before; *plain* models are read by transformers without this package. Pictures of all of them are in "
        "the [gallery](../gallery.md), and [which one to take](../which_encoding.md) has numbers.",
    ]
    for group, members in by_group().items():
        rows = [f"## {GROUPS[group]}", "", "| encoding | what it is | identity | saved as | paper |"]
        rows.append("| --- | --- | --- | --- | --- |")
        for one in members:
            can, info = capability(one.name), one.kind.info
            words = [info.title, info.identity or "never", can.saved, info.paper]
            rows.append(f"| [`{one.name}`]({one.name}.md) | {' | '.join(cell(word) for word in words)} |")
        told.append("\n".join(rows))
    return "\n\n".join(told) + "\n"


def gallery() -> str:
    """All tiles on one page."""
    told = [
        "# Gallery",
        "What each encoding adds, takes away or turns, in one small picture. Orange adds, blue takes away, white is "
        "zero, each picture on its own scale; grey is masked. What is zero at the start is shown with random values. "
        "Click one for its page.",
    ]
    about = {
        "bias": "The bias of one head, for every query and key.",
        "score": "What one head adds for random queries and keys.",
        "pieces": "The distance at which a pair is scored, from 0 (white) to the trained length L (violet).",
        "rotation": "The cosine of each frequency at each distance. Dashed: where stock RoPE has made one turn.",
        "input": "The vector of each position, or what one token brings to its neighbours.",
        "hybrid": "What each layer gets.",
    }
    for group, members in by_group().items():
        across, down = AXES[group]
        axes = f" Across: {across}; down: {down}." if across else ""
        told += [f"## {GROUPS[group]}", about[group] + axes, '<div class="tiles" markdown>']
        told += [
            f'[![{one.name}](tiles/{one.name}.png)`{one.name}`](encodings/{one.name}.md "{one.kind.info.title}")'
            for one in members
        ]
        told.append("</div>")
    return "\n\n".join(told) + "\n"
