"""What runs a saved model and what does not, with the flags that it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .checking import is_number
from .folder import ADAPTED, PATCHED, Saved
from .rope import SCALINGS
from .text import code, fence

ENGINES = ("linear", "dynamic", "yarn", "longrope", "llama3")
"""Values of ``rope_type`` that vLLM and SGLang read."""

GGUF = ("linear", "yarn")
"""Scalings that llama.cpp takes as flags; a GGUF file itself names none, linear, yarn or longrope."""

OWN = (
    "vLLM, SGLang, TGI and other engines that bring their own attention, and llama.cpp with everything built on it "
    "(Ollama, LM Studio), cannot run it: they do not know this encoding, and a GGUF file has no place for it."
)
STOPS = (
    "The `model_type` is `pe_retrofit`, so that they stop with an error instead of running the architecture without it."
)
WITH_CODE = "None of them was tried with the code that comes along."
UNTRIED = "The flags are those of the engines' own documentation; they were not run with this model."


def serving(saved: Saved, repo: str) -> str:
    """The section, as Markdown."""
    if saved.form == PATCHED:
        return "\n".join(
            [
                f"- **transformers**: yes, {_needs(saved)}.",
                f"- **Everything else**: no. {OWN} {WITH_CODE if saved.remote_code else STOPS}",
            ]
        )
    if saved.form == ADAPTED:
        return "\n".join(
            [
                "- **transformers with peft**: yes, with `pe_retrofit`, which patches the base model first.",
                "- **Everything else**: no. On an unpatched base model it runs without its encoding, and what comes "
                "out is not this model. Merge it, and load the result.",
            ]
        )
    return _plain(saved, repo)


def _needs(saved: Saved) -> str:
    without = ", or without it through `trust_remote_code=True`" if saved.remote_code else ""
    return f"with `pe_retrofit` installed and imported{without}"


def _plain(saved: Saved, repo: str) -> str:
    lines = ["- **transformers**: yes, without any plugin" + (_late(saved) or ".")]
    kinds = rope_types(saved.rope)
    if saved.head not in ("ForCausalLM", "LMHeadModel") or not kinds:
        lines.append("- **Everything else** that reads a plain checkpoint of this architecture: it is one. Not tried.")
        return "\n".join(lines)
    known = all(kind in ENGINES or kind == "default" for kind in kinds)
    single = kinds[0] if len(kinds) == 1 else ""
    length = saved.reach or 0
    if known:
        lines += [
            "- **vLLM** and **SGLang**: yes; `config.json` says it all.",
            "",
            _engines(saved, repo, single, length),
        ]
    else:
        lines.append(f"- **vLLM**, **SGLang**: not known to read `rope_type` {', '.join(map(code, kinds))}.")
    lines += ["", _llama_cpp(saved, single, kinds, length), "", UNTRIED]
    return "\n".join(lines)


def _late(saved: Saved) -> str:
    late = [name for name in saved.names if name in ("dynamic", "longrope")]
    return (
        f". It switches {code(late[0])} by the length of each call, though, so that runs with and without a cache "
        "differ beyond the trained length, until `pe_retrofit.patch_model` is called on the model again."
        if late
        else ""
    )


def rope_types(rope: Mapping[str, Any]) -> list[str]:
    """Every ``rope_type`` of a config, each once; words that are none of transformers' are left out."""
    nested = [part for part in rope.values() if isinstance(part, dict)] or ([dict(rope)] if rope else [])
    found = [str(part.get("rope_type", "default")) for part in nested]
    return [kind for kind in dict.fromkeys(found) if kind in SCALINGS or kind == "default"]


def _engines(saved: Saved, repo: str, single: str, length: int) -> str:
    limit = f" --max-model-len {length}" if length else ""
    context = f" --context-length {length}" if length else ""
    lines = [f"vllm serve {repo}{limit}", f"python -m sglang.launch_server --model-path {repo}{context}"]
    if single and single != "default":
        rope = numbers_of(saved.rope)
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        lines += [
            "",
            "# the same said on the command line, for a copy of the base model",
            f"vllm serve BASE_MODEL --hf-overrides '{json.dumps({'rope_parameters': rope})}'{limit}",
            "python -m sglang.launch_server --model-path BASE_MODEL "
            f"--json-model-override-args '{json.dumps({'rope_scaling': scaling})}'{context}",
        ]
    return fence("\n".join(lines), "bash")


def _llama_cpp(saved: Saved, single: str, kinds: list[str], length: int) -> str:
    start = "- **llama.cpp** (GGUF)"
    if single == "default":
        return f"{start}: yes, after conversion; the base of the rotation is all that changed."
    if single == "llama3":
        return (
            f"{start}: no flag and no GGUF scaling type; the converter writes such frequencies into the file for "
            "architectures that were released with them. Check the converted file before use."
        )
    if single == "longrope":
        return (
            f"{start}: a GGUF file knows `longrope`, with its factors as tensors; there is no flag for them, and the "
            "converter writes them for few architectures only. Check the converted file before use."
        )
    if single not in GGUF:
        named = ", ".join(map(code, kinds))
        return f"{start}: no. A GGUF file knows the scalings none, linear, yarn and longrope; not {named}."
    rope = saved.rope
    factor = rope.get("factor")
    flags = f"llama-server -m MODEL.gguf -c {length} --rope-scaling {single} --rope-scale {factor:g}"
    if single == "yarn":
        flags += f" --yarn-orig-ctx {saved.trained}" if saved.trained else ""
        for key, flag, usual in (("beta_fast", "--yarn-beta-fast", 32), ("beta_slow", "--yarn-beta-slow", 1)):
            flags += f" {flag} {rope[key]:g}" if is_number(rope.get(key)) and rope[key] != usual else ""
    own = single == "yarn" and is_number(rope.get("attention_factor"))
    note = " Its `attention_factor` differs from YaRN's own, which these flags do not say." if own else ""
    return f"{start}: yes.{note}\n\n{fence(flags, 'bash')}"


def numbers_of(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rope parameters without anything that could be more than a number, for a command line."""
    found: dict[str, Any] = {}
    for key, value in rope.items():
        numbers = isinstance(value, list) and all(map(is_number, value))
        if (is_number(value) or numbers) and str(key).isidentifier():
            found[key] = value
    found["rope_type"] = rope_types(rope)[0]
    return dict(sorted(found.items()))
