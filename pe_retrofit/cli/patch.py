"""``pe-retrofit patch``: patch a model and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Patch a model, save it with its tokenizer, load it again and check that it gives the same logits.

MODEL is a hub id, a folder, or a GGUF file. NAME is an encoding (see pe-retrofit list); + composes, and native keeps
what the model has. The folder --out appears whole or not at all.

Examples:

  pe-retrofit patch my-org/my-llama yarn factor=4 --out my-llama-32k

  pe-retrofit patch ./my-llama native+t5 num_buckets=64 --dtype bfloat16 --out my-llama-t5

  pe-retrofit patch ./my-llama nope --layers 3::4 --out my-llama-hybrid

  pe-retrofit patch ./my-llama rnope window=2048 --out my-llama-rnope

  pe-retrofit patch ./minilm learned max_positions=2048 --out minilm-2k --json
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("patch", help=HELP)(run)


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, or .gguf file.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Encoding, such as alibi or native+t5.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the encoding, such as factor=4.")
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Keep the model's own encoding underneath (the same as native+NAME).")
    ] = False,
    layers: Annotated[str, typer.Option(help="all, indices (0,3,7) or a slice (3::4, -4:).")] = "all",
    dtype: Annotated[str, typer.Option(help="auto (as stored; GGUF: fastest), float32, bfloat16, float16.")] = "auto",
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the folder or repository MODEL.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the model brings along.")
    ] = False,
    code: Annotated[
        bool, typer.Option("--code/--no-code", help="Put the code beside it, for loading without pe_retrofit.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Load, patch, save, load again, compare."""
    from rich.console import Console

    from ..loading import find_source
    from ..specs import read_layers, read_spec
    from .common import clean_stdout, print_json
    from .folder import check_target

    spec, _ = read_spec(name, options or [])
    if native and "native" not in spec:
        spec = ["native", *spec]
    chosen = read_layers(layers)
    source = find_source(model, gguf_file, trust_remote_code)
    target = check_target(out, overwrite, source.folder)
    console = Console(stderr=True)
    with clean_stdout(as_json), console.status("starting") as line:
        report = patch_and_save(source, spec, chosen, dtype, target, line.update, code=code)
    report["out"] = str(out)
    if as_json:
        print_json(report)
    else:
        print_words(report)


def patch_and_save(
    source: Any, spec: list[Any], layers: Any, dtype: str, target: Path, tell: Any, *, code: bool = True
) -> dict[str, Any]:
    """Load, patch, save whole, load again, compare.

    Returns:
        What was done, in JSON values.

    Raises:
        ConfigError, UnsupportedError: the model cannot be loaded or patched.
        CommandError: it cannot be written, or the saved model differs from the patched one.
    """
    from transformers.utils import logging

    from ..errors import SavedDiffersError
    from ..hub.saving import context_length, save_model
    from ..loading import load_model, load_tokenizer
    from ..patching import patch_model
    from ..status import status
    from .common import CommandError

    logging.disable_progress_bar()  # one line tells what goes on
    tell(f"loading {source.name}")
    model, auto = load_model(source, dtype)
    tokenizer, no_tokenizer = load_tokenizer(source)
    before = context_length(model)
    tell("patching")
    patch_model(model, spec, layers=layers)
    state = status(model)
    after = context_length(model)
    if tokenizer is not None and after > before:
        tokenizer.model_max_length = after
    tell("saving, and loading what was saved")
    try:
        trust = bool(source.kwargs.get("trust_remote_code"))
        saved = save_model(model, target, tokenizer, code=code, trust_remote_code=trust)
    except OSError as error:
        raise CommandError(f"{error}. Nothing was changed.") from error
    except SavedDiffersError as error:
        raise CommandError(str(error)) from error
    return {
        "model": source.name,
        "auto_class": auto.__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "status": state.to_dict(),
        "summary": str(state),
        "context_length": {"before": before, "after": after},
        "tokenizer": "saved" if tokenizer is not None else f"none: {no_tokenizer}",
        "reload_difference": saved["reload_difference"],
        "code": saved["code"],
        "plain": all(patch.native for patch in state.patches),
        "needs": needs(state, auto.__name__, code=bool(saved["code"])),
    }


def needs(state: Any, auto: str, *, code: bool = False) -> str:
    """What loading the folder takes, in words."""
    from ..registry import NATIVE, get_encoding

    if not all(patch.native for patch in state.patches):
        other = (
            "trust_remote_code=True where it is not installed" if code else "without it, loading fails with an error"
        )
        return f"import pe_retrofit before {auto}.from_pretrained; {other}"
    names = [entry["name"] for patch in state.patches for entry in patch.options if entry["name"] not in NATIVE]
    late = [name for name in names if getattr(get_encoding(name), "length_dependent", False)]
    if late:
        return (
            f"plain transformers; it switches {late[0]} by the length of each call, though: for results that agree "
            "with and without a cache beyond the trained length, patch the model again after loading"
        )
    return f"plain transformers: {auto}.from_pretrained"


def print_words(report: dict[str, Any]) -> None:
    """For people."""
    from rich.console import Console

    from .common import say

    Console(highlight=False).print(report["summary"], markup=False, soft_wrap=True)
    lengths = report["context_length"]
    if lengths["after"] != lengths["before"]:
        say("Context", f"{lengths['before']:,} to {lengths['after']:,} tokens")
    say("Tokenizer", report["tokenizer"])
    say("Reloaded", f"largest difference of the logits {report['reload_difference']:.3g} ({report['dtype']})")
    say("Needs", report["needs"])
    say("Written", report["out"], "bold")
