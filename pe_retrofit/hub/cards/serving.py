"""What runs a saved model and what does not, with the flags that it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..targets import TARGETS, notes, refusals
from .checking import is_number
from .folder import ADAPTED, PATCHED, Saved
from .rope import SCALINGS
from .text import code, fence, one_line, plain

FLAGS = ("linear", "yarn")
"""Scalings that llama.cpp takes as flags."""

BASE = "# the same, for a copy of the base model that does not say it itself"

OWN = (
    "vLLM, SGLang, TGI and other engines that bring their own attention, and llama.cpp with everything built on it "
    "(Ollama, LM Studio), cannot run it: they do not know this encoding, and a GGUF file has no place for it."
)
STOPS = (
    "The `model_type` is `pe_retrofit`, so that they stop with an error instead of running the architecture without it."
)
WITH_CODE = "None of them was tried with the code that comes along."
UNTRIED = "This was read from the engines' sources and documentation; they were not run with this model."


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
    if saved.pipeline != "text-generation" or not saved.rope:
        lines.append("- **Everything else** that reads a plain checkpoint of this architecture: it is one. Not tried.")
        return "\n".join(lines)
    config, commands = _config(saved), _commands(saved, repo)
    for name in ("vllm", "sglang", "llamacpp"):
        title, problems = TARGETS[name].title, refusals(name, config)
        if problems:
            lines.append(f"- **{title}**: no; {plain('; '.join(problems), 600)}.")
            continue
        known = plain("; ".join(notes(name, config)), 600)
        lines += [f"- **{title}**: yes{f', but {known}' if known else ''}.", "", fence(commands[name], "bash"), ""]
    return "\n".join([*lines, UNTRIED]) if lines[-1] == "" else "\n".join([*lines, "", UNTRIED])


def _late(saved: Saved) -> str:
    late = [name for name in saved.names if name in ("dynamic", "longrope")]
    return (
        f". It switches {code(late[0])} by the length of each call, though, so that runs with and without a cache "
        "differ beyond the trained length, until `pe_retrofit.patch_model` is called on the model again."
        if late
        else ""
    )


def _config(saved: Saved) -> dict[str, Any]:
    """What :mod:`~pe_retrofit.hub.targets` looks at, without anything that could be more than a number."""
    sets = {key: part for key, part in saved.rope.items() if isinstance(part, dict)}
    rope = {key: _numbers(part, saved) for key, part in sets.items()} if sets else _numbers(saved.rope, saved)
    config: dict[str, Any] = {"rope_parameters": rope, "architectures": [saved.architecture]}
    return config if saved.reach is None else {**config, "max_position_embeddings": saved.reach}


def _numbers(rope: Mapping[str, Any], saved: Saved) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in rope.items():
        numbers = isinstance(value, list) and all(map(is_number, value))
        if (is_number(value) or numbers) and str(key).isidentifier():
            found[key] = value
    if "attention_factor" in found and "original_max_position_embeddings" not in found and saved.trained:
        found["original_max_position_embeddings"] = saved.trained
    return {**dict(sorted(found.items())), "rope_type": one_line(rope.get("rope_type", "default"), 60)}


def _commands(saved: Saved, repo: str) -> dict[str, str]:
    """By engine: how this model is served, and how the same is said of a copy of the base model."""
    rope, reach = _config(saved)["rope_parameters"], saved.reach
    limits = {"vllm": "--max-model-len", "sglang": "--context-length", "llamacpp": "-c"}
    limit = {name: f" {flag} {reach}" if reach else "" for name, flag in limits.items()}
    vllm, sglang = "vllm serve", "python -m sglang.launch_server --model-path"
    found = {
        "vllm": f"{vllm} {repo}{limit['vllm']}",
        "sglang": f"{sglang} {repo}{limit['sglang']}",
        "llamacpp": f"llama-server -m MODEL.gguf{limit['llamacpp']}",
    }
    kind = rope.get("rope_type")
    if kind not in SCALINGS:
        return found
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    vllm_json, sglang_json = json.dumps({"rope_parameters": rope}), json.dumps({"rope_scaling": scaling})
    found["vllm"] += f"\n{BASE}\n{vllm} BASE_MODEL --hf-overrides '{vllm_json}'{limit['vllm']}"
    found["sglang"] += f"\n{BASE}\n{sglang} BASE_MODEL --json-model-override-args '{sglang_json}'{limit['sglang']}"
    if kind in FLAGS:
        found["llamacpp"] += f"\n{BASE}\n{found['llamacpp']}{_llama_cpp(saved, rope)}"
    return found


def _llama_cpp(saved: Saved, rope: Mapping[str, Any]) -> str:
    flags = f" --rope-scaling {rope['rope_type']} --rope-scale {rope['factor']:g}"
    if rope["rope_type"] == "linear":
        return flags
    flags += f" --yarn-orig-ctx {saved.trained}" if saved.trained else ""
    for key, flag, usual in (("beta_fast", "--yarn-beta-fast", 32), ("beta_slow", "--yarn-beta-slow", 1)):
        flags += f" {flag} {rope[key]:g}" if rope.get(key, usual) != usual else ""
    return flags
