"""What becomes of a RoPE scaling in the tools that serve models: a table read from their sources.

A tool may run a scaling, refuse it with an error, or read the config and run something else without a word. Only the
last is what :func:`refusals` is about.

Sources: transformers 5 ``modeling_rope_utils.py``; llama.cpp ``conversion/base.py`` (``set_gguf_parameters``),
``conversion/llama.py``, ``conversion/phi.py``, ``conversion/gptneox.py`` and ``src/llama-context.cpp``, as in the sdist
of llama-cpp-python 0.3.36: tiny Llamas were converted, read back, and (default, ntk, linear, yarn, llama3) run by
node-llama-cpp 3.21.1 with transformers' next tokens; vLLM ``model_executor/layers/rotary_embedding/__init__.py``,
``yarn_scaling_rope.py``, ``phi3_long_rope_scaled_rope.py`` and ``dynamic_ntk_scaling_rope.py``, and SGLang
``srt/layers/rotary_embedding/factory.py``, as of 2026, read and not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

_FIXED = "it computes one base for all lengths when the model is loaded, where the model's grows with the text"
_LONG = (
    "it uses the long factors for every text as soon as the context length it is started with exceeds the trained one; "
    "texts up to the trained length then differ from transformers'"
)
_SWITCHES = "it switches by the length of each call, so that with and without a cache longer texts differ"
_DROPPED = "its converter writes no scaling for it, so the file would run unscaled"


@dataclass(frozen=True)
class Target:
    """A tool.

    Attributes:
        title: its name, in words.
        runs: the values of ``rope_type`` it runs as the model does; others it refuses itself, or see ``ignores``.
        ignores: values of ``rope_type`` that it takes and runs as something else, and how.
        notes: what to know about the values that it runs.
        attention_factor: it reads the ``attention_factor`` of yarn and longrope from the config.
        architectures: where given, the scalings it keeps, by architecture; of others nothing is known.
    """

    title: str
    runs: tuple[str, ...]
    ignores: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    attention_factor: bool = False
    architectures: Mapping[str, tuple[str, ...]] | None = None


_LLAMA = ("default", "linear", "yarn", "llama3")
_TEXT = ("default", "linear", "yarn")

TARGETS = {
    "transformers": Target(
        "transformers",
        ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"),
        notes=dict.fromkeys(("dynamic", "longrope"), _SWITCHES),
        attention_factor=True,
    ),
    "vllm": Target(
        "vLLM",
        ("default", "linear", "yarn", "longrope", "llama3", "proportional"),
        ignores={"dynamic": _FIXED},
        notes={"longrope": _LONG, "proportional": "versions before its support of Gemma 4 stop with an error"},
    ),
    "sglang": Target(
        "SGLang",
        ("default", "linear", "yarn", "longrope", "llama3"),
        ignores={
            "dynamic": _FIXED,
            "proportional": "outside of Gemma 4 it does not read partial_rotary_factor from rope_parameters, so all "
            "frequencies would rotate",
        },
        notes={"longrope": _LONG},
    ),
    "llamacpp": Target(
        "llama.cpp",
        _LLAMA,
        ignores={
            "dynamic": _DROPPED,
            "proportional": _DROPPED,
            "longrope": "its converter writes the type without the factors, so the file would run unscaled",
        },
        notes={"llama3": "it becomes a tensor rope_freqs, not a key of the file"},
        architectures={
            **dict.fromkeys(
                ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "SmolLM3ForCausalLM"), _LLAMA
            ),
            **dict.fromkeys(("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Olmo2ForCausalLM"), _TEXT),
            **dict.fromkeys(("GPTNeoXForCausalLM",), ()),  # it writes no theta either
        },
    ),
}


def check_targets(names: list[str] | tuple[str, ...]) -> None:
    """Refuse names that are not in the table.

    Raises:
        ConfigError: with those that are.
    """
    if unknown := [n for n in names if n not in TARGETS]:
        raise ConfigError(
            f"for={', '.join(map(repr, unknown))} is unknown; the export is checked for {', '.join(TARGETS)}."
        )


def refusals(name: str, config: Mapping[str, Any]) -> list[str]:
    """What a tool would silently run as something else; empty when it runs the model as it is.

    Args:
        name: of :data:`TARGETS`.
        config: ``config.json`` of a plain model.
    """
    target = TARGETS[name]
    lines = []
    for rope in rope_sets(config):
        kind = str(rope.get("rope_type", "default"))
        if kind in target.ignores:
            lines.append(f"rope_type {kind!r}: {target.ignores[kind]}")
        elif kind not in target.runs:
            lines.append(f"rope_type {kind!r} is not known to it")
        elif not target.attention_factor and (line := _own_factor(rope, config)):
            lines.append(line)
    return list(dict.fromkeys([*lines, *_architecture(target, config)]))


def notes(name: str, config: Mapping[str, Any]) -> list[str]:
    """What to know about a model in a tool that runs it."""
    known = TARGETS[name].notes
    kinds = dict.fromkeys(str(rope.get("rope_type", "default")) for rope in rope_sets(config))
    return [f"rope_type {kind!r}: {known[kind]}" for kind in kinds if kind in known]


def rope_sets(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ``rope_parameters`` of a config, one for each kind of layer."""
    rope = config.get("rope_parameters") or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


def _architecture(target: Target, config: Mapping[str, Any]) -> list[str]:
    if target.architectures is None:
        return []
    name = (config.get("architectures") or ["none"])[0]
    kept = target.architectures.get(name)
    if kept is None:
        return [f"architecture {name!r}: what it keeps of the rotation was not looked at"]
    kinds = {str(rope.get("rope_type", "default")) for rope in rope_sets(config)}
    if kinds <= set(kept):
        return []
    if not kept:
        return [f"architecture {name!r}: its converter writes neither a scaling nor rope_theta"]
    return [f"architecture {name!r}: its converter keeps {', '.join(kept)}"]


def _own_factor(rope: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """An ``attention_factor`` that differs from what a tool computes by itself."""
    factor, own = rope.get("factor"), rope.get("attention_factor")
    if own is None or factor is None:
        return None
    if rope.get("rope_type") == "yarn":
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    elif rope.get("rope_type") == "longrope":
        trained = rope["original_max_position_embeddings"]
        grown = config.get("max_position_embeddings", trained * factor) / trained
        usual = math.sqrt(1 + math.log(grown) / math.log(trained)) if grown > 1 else 1.0
    else:
        return None
    if abs(own - usual) <= 1e-6:
        return None
    return f"attention_factor {own:g} is not read; it would use {usual:.6g}"


BEGIN, END = "<!-- targets: generated -->", "<!-- targets: end -->"


def markdown() -> str:
    """What becomes of each ``rope_type`` in each tool, as a Markdown table without the markers."""
    kinds = ("linear", "yarn", "llama3", "longrope", "dynamic", "proportional")
    rows = [["`rope_type`", *(t.title for t in TARGETS.values())], ["---"] * (1 + len(TARGETS))]
    for kind in kinds:
        rows.append([f"`{kind}`", *(_said(target, kind) for target in TARGETS.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _said(target: Target, kind: str) -> str:
    if kind in target.ignores:
        return f"no: {target.ignores[kind]}"
    if kind not in target.runs:
        return "refuses it"
    return f"yes; {target.notes[kind]}" if kind in target.notes else "yes"
