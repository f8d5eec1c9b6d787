"""How a saved model is loaded, in code that runs."""

from __future__ import annotations

import json

from .folder import ADAPTED, PATCHED, Saved
from .metadata import is_repo_id
from .text import fence

INSTALL = "pip install pe_retrofit"


def loading(saved: Saved, repo: str, base: str) -> str:
    """The section, as Markdown.

    Args:
        saved: the model.
        repo: id of the repository, or its name.
        base: id of the base model; only adapters need it.
    """
    if saved.form == ADAPTED:
        return _adapter(saved, repo, base)
    if saved.form == PATCHED:
        return _patched(saved, repo)
    code = "trust_remote_code=True" if saved.remote_code else ""
    say = "The repository brings the architecture's code." if saved.remote_code else "Plain transformers:"
    return f"{say}\n\n{fence(_from_pretrained(saved, repo, code), 'python')}"


def _patched(saved: Saved, repo: str) -> str:
    parts = [
        "With the plugin:",
        fence(INSTALL, "bash"),
        fence("import pe_retrofit\n" + _from_pretrained(saved, repo, ""), "python"),
        "Use an Auto class: `import pe_retrofit` teaches those to load it. Without the plugin loading stops with an "
        "error that says so.",
    ]
    if saved.remote_code:
        parts += [
            "Without the plugin, with the code in this repository:",
            fence(_from_pretrained(saved, repo, "trust_remote_code=True"), "python"),
        ]
    return "\n\n".join(parts)


def _from_pretrained(saved: Saved, repo: str, more: str) -> str:
    extra = f", {more}" if more else ""
    names = f"{saved.auto}, AutoTokenizer" if saved.tokenizer else saved.auto
    lines = [
        f"from transformers import {names}",
        "",
        f"name = {json.dumps(repo)}  # the repository, or a folder with its files",
        f"model = {saved.auto}.from_pretrained(name{extra})",
    ]
    if saved.tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained(name{extra})")
    else:
        lines.append("# the tokenizer is the base model's")
    return "\n".join(lines)


def _adapter(saved: Saved, repo: str, base: str) -> str:
    lines = ["from pe_retrofit import load_adapter"]
    named = f"name = {json.dumps(repo)}  # the repository, or a folder with its files"
    if is_repo_id(base) and base == saved.base:
        lines += ["", named, "model = load_adapter(name)  # its base comes from the Hub"]
    else:
        lines = [
            f"from transformers import {saved.auto}",
            "",
            *lines,
            "",
            named,
            f"base = {saved.auto}.from_pretrained({json.dumps(base or 'BASE_MODEL')})",
            "model = load_adapter(name, base, patch=True)",
        ]
    return "\n\n".join(
        [
            "The adapter and its positions alone; its base model is patched as it was in training:",
            fence(f"{INSTALL} peft", "bash"),
            fence("\n".join(lines), "python"),
            "`peft` alone does not patch the base model; it stops with an error, or puts the adapter on another model.",
        ]
    )
