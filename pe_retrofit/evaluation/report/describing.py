"""Facts about models and runs, as name and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...plots import thousands

Facts = list[tuple[str, str]]


def facts(model: Mapping[str, Any]) -> Facts:
    """A model: what it is, and the options of every encoding on it."""
    about = model["about"]
    found: Facts = [("name", str(about.get("name")))]
    if about.get("base") and about["base"] != about.get("name"):
        found.append(("made from", str(about["base"])))
    if about.get("from_run"):
        found.append(("answers from run", str(about["from_run"])))
    found.append(("class", f"{about.get('class')}, {_count(about.get('parameters'))} parameters, {about.get('dtype')}"))
    if model.get("trained_length"):
        found.append(("trained length", f"{thousands(model['trained_length'])} tokens"))
    if model.get("context_length") and model["context_length"] != model["trained_length"]:
        found.append(("extended length", f"{thousands(model['context_length'])} tokens"))
    for patch in about.get("encoding") or []:
        for entry in patch["encodings"]:
            found.append((f"encoding {entry['name']}", _options(entry) or "no options"))
        found.append(("on layers", f"{layers(patch['layers'])}; kernel: {patch['kernel']}"))
    if not about.get("encoding"):
        found.append(("encoding", "the model's own"))
    found.append(("native encoding", _native(about.get("native_encoding"))))
    found.append(("attention", str(about.get("attention"))))
    if about.get("adapter"):
        found.append(("adapter", "yes"))
    tokenizer = about.get("tokenizer") or {}
    found.append(("tokenizer", f"{tokenizer.get('class')}, {_count(tokenizer.get('vocabulary'))} tokens"))
    return found


def measured(comparison: Mapping[str, Any], model: Mapping[str, Any]) -> Facts:
    """A run: machine, versions, seed and text, and what each task cost."""
    setting, text, device = model["setting"], model["setting"]["text"], model["device"]
    found: Facts = [
        ("date", str(model["date"])),
        ("state", str(model["status"])),
        ("seed", str(model["seed"])),
        ("samples", f"{setting['samples']} per cell"),
        ("depths", ", ".join(f"{depth:g}" for depth in setting["depths"])),
        ("text", f"{text['source']}; {_count(text['characters'])} characters"),
        ("text SHA-256", str(text["sha256"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in model["versions"].items())),
        ("device", f"{model['about'].get('device')}; " + ", ".join(f"{k}: {v}" for k, v in device.items())),
    ]
    for task in comparison["tasks"]:
        cost = task["cost"].get(model["label"])
        if cost is not None:
            found.append((f"{task['name']} took", cost_text(cost)))
    return found


def cost_text(cost: Mapping[str, Any]) -> str:
    """Time, speed and memory, as far as they are known."""
    parts = []
    if cost.get("seconds") is not None:
        parts.append(f"{cost['seconds']:,.1f} s")
    if cost.get("tokens_per_second") is not None:
        parts.append(f"{cost['tokens_per_second']:,.0f} tokens/s")
    if cost.get("peak_memory_bytes"):
        parts.append(f"peak memory {cost['peak_memory_bytes'] / 2**20:,.0f} MiB")
    return ", ".join(parts) or "-"


def layers(numbers: Any) -> str:
    """``0-29``, ``0, 3, 6``: consecutive ones as a range."""
    found: list[list[int]] = []
    for number in numbers or []:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found) or "none"


def _options(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.items() if key != "name" and value is not None)


def _native(native: Any) -> str:
    if not isinstance(native, dict):
        return str(native)
    sets = [(name, options) for name, options in native.items() if isinstance(options, dict)]
    return "; ".join(("" if name in ("None", "null") else f"{name}: ") + _options(o) for name, o in sets) or "-"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
