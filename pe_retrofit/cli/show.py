"""``pe-retrofit show``: what an encoding is, in words, numbers and a picture."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Show an encoding: formula, paper, options, and a picture of its bias, score, rotation or vectors.

Options of the encoding are given as key=value. Without --out the picture is drawn with characters.

Examples:

  pe-retrofit show alibi

  pe-retrofit show yarn factor=4 --trained 8192 --theta 100000 --out yarn.png

  pe-retrofit show t5 num_buckets=16 --encoder --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("show", help=HELP)(run)


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the encoding, see pe-retrofit list.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the encoding, such as factor=4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the picture to this PNG file.")] = None,
    heads: Annotated[int, typer.Option(min=1, max=256, help="Attention heads of the model it is shown on.")] = 8,
    head_dim: Annotated[int, typer.Option(min=4, max=512, help="Size of a head; even.")] = 64,
    length: Annotated[int, typer.Option(min=2, max=2048, help="Positions shown, in tokens.")] = 64,
    trained: Annotated[int, typer.Option(min=2, max=2**20, help="Trained length L, in tokens.")] = 4096,
    theta: Annotated[float, typer.Option(min=2.0, max=1e12, help="Base of the model's RoPE.")] = 10000.0,
    encoder: Annotated[bool, typer.Option("--encoder", help="Show it on a bidirectional model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Describe one encoding."""
    from ..errors import ConfigError, UnsupportedError
    from ..probes import example_options
    from ..registry import NATIVE, get_encoding
    from ..specs import read_spec
    from .common import clean_stdout, print_json

    if "+" in name or name in NATIVE:
        raise ConfigError(f"{name!r} cannot be shown: name one encoding, such as alibi or yarn.")
    if head_dim % 2:
        raise ConfigError(f"--head-dim {head_dim} must be even: rotations turn pairs of dimensions.")
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {str(out)!r} must end in .png.")
    (config,), filled = read_spec(name, options or [], examples=partial(example_options, small=False))
    kind = get_encoding(name)
    if encoder and not kind.info.bidirectional:
        raise UnsupportedError(f"{name!r} holds for causal attention only; leave out --encoder.")
    with clean_stdout(as_json):
        from ..views import Shape, view

        seen = view(config, Shape(heads, head_dim, length, trained, theta, not encoder))
        if out is not None:
            from ..pictures import draw

            draw(seen, heading(kind, config), out)
    if as_json:
        print_json({**facts(kind, config, filled), "shown": numbers(seen), "picture": str(out) if out else None})
    else:
        print_words(kind, config, filled, seen, out)


def heading(kind: Any, config: Any) -> str:
    """Title with the options that differ from their defaults."""
    changed = [
        f"{row['option']} = {value}"
        for row in kind.Config.describe()
        if (value := getattr(config, row["option"])) != row["default"]
    ]
    return f"{kind.info.title} ({', '.join(changed)})" if changed else kind.info.title


def facts(kind: Any, config: Any, filled: dict[str, Any]) -> dict[str, Any]:
    """Everything but the picture, in JSON values."""
    info = kind.info
    chosen = config.to_dict()
    return {
        "name": config.name,
        "title": info.title,
        "site": kind.site,
        "causal": info.causal,
        "bidirectional": info.bidirectional,
        "formula": info.formula,
        "paper": info.paper,
        "identity": info.identity,
        "documentation": inspect.getdoc(kind) or "",
        "options": [{**row, "value": chosen[row["option"]]} for row in kind.Config.describe()],
        "example_values": filled,
    }


def numbers(seen: Any) -> dict[str, Any]:
    """The picture as numbers, in JSON values."""
    from ..views import BiasView, HybridView, PiecewiseView, RotationView

    if isinstance(seen, BiasView):
        return {
            "distance": seen.distances.tolist(),
            "bias": seen.bias.tolist(),
            "bucket": None if seen.buckets is None else seen.buckets.tolist(),
            "counted": None if seen.counted is None else seen.counted.tolist(),
            "queries": {
                str(query): {"distance": at.tolist(), "bias": bias.tolist()}
                for query, (at, bias) in seen.queries.items()
            },
            "position": seen.positions.tolist(),
            "matrix": seen.matrix.tolist(),
            "what": seen.what,
            "note": seen.note,
        }
    if isinstance(seen, PiecewiseView):
        return {
            "trained": seen.trained,
            "distance": seen.distances.tolist(),
            "effective": seen.effective.tolist(),
            "position": seen.positions.tolist(),
            "matrix": seen.matrix.tolist(),
        }
    if isinstance(seen, HybridView):
        return {"layers": seen.layers, "note": seen.note}
    if isinstance(seen, RotationView):
        curves = {"stock": seen.stock, **seen.after}
        return {
            "trained": seen.trained,
            "extended": seen.extended,
            "theta": seen.theta,
            "inv_freq": {label: turning.inv_freq.tolist() for label, turning in curves.items()},
            "attention_factor": {label: turning.amplitude for label, turning in curves.items()},
            "decay": {label: t.decay.tolist() for label, t in curves.items() if t.decay is not None},
        }
    return {"vectors": seen.vectors.tolist(), "note": seen.note}


def print_words(kind: Any, config: Any, filled: dict[str, Any], seen: Any, out: Path | None) -> None:
    """For people."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from .sketch import sketch

    console, info = Console(highlight=False), kind.info
    console.print(Text.assemble((config.name, "bold cyan"), "  ", (info.title, "bold")))
    both = {(True, True): "decoders and encoders", (True, False): "decoders only", (False, True): "encoders only"}
    site = {
        "bias": "the attention logits",
        "rotation": "queries and keys",
        "input": "the token embeddings",
        "score": "the score of queries and keys",
        "hybrid": "different layers differently",
    }
    console.print(f"  Acts on {site[kind.site]}; for {both[info.causal, info.bidirectional]}.", markup=False)
    console.print(Text.assemble(("  Formula  ", "dim"), info.formula))
    console.print(Text.assemble(("  Paper    ", "dim"), info.paper))
    console.print(Text.assemble(("  Identity ", "dim"), info.identity or "never: it replaces what the model has"))
    console.print()
    console.print(Padding(Text(reflow(inspect.getdoc(kind) or "")), (0, 0, 0, 2)))
    console.print()
    rows = kind.Config.describe()
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for title in ("option", "default", "shown with", "meaning"):
            table.add_column(title, no_wrap=title == "option", style="cyan" if title == "option" else "")
        for row in rows:
            value = getattr(config, row["option"])
            note = f"{value} (example)" if row["option"] in filled else str(value)
            table.add_row(row["option"], str(row["default"]), note, row["help"])
        console.print(table)
    if note := getattr(seen, "note", ""):
        console.print(f"  {note}", style="yellow", markup=False)
    for line in sketch(seen):
        console.print("  " + line, markup=False, soft_wrap=True)
    console.print()
    told = f"Picture written: {out}" if out else "Write it as a picture with --out FILE.png."
    console.print(told, markup=False, soft_wrap=True)


def reflow(documentation: str) -> str:
    """A docstring for people: paragraphs on one line each, without the backquotes."""
    paragraphs = documentation.replace("``", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
