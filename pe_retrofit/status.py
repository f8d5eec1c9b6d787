"""What is patched where: a dataclass people can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .attention.piecewise import PiecewiseRotation
from .attention.select import candidates
from .installing import Applied
from .patchers.family import Host, find_host
from .patching import STATE
from .registry import NATIVE, config_from_dict, get_encoding
from .sites import BiasEncoding, LocalInput, ScoreEncoding


@dataclass(frozen=True)
class PatchInfo:
    """One patch.

    Attributes:
        encodings: in words, e.g. ``native + t5``.
        options: each encoding with its options.
        layers: indices of the patched layers.
        identity: exact identity within the trained length when patched; None when it was not measured.
        max_change / relative_change: of the last hidden state, absolute and over its root mean square.
        kernel: the kernels tried in order, the one forced, or ``the model's own`` when none of ours is involved.
        native: a saved model is a plain transformers model.
        learned_parameters: how many numbers are learned.
    """

    encodings: str
    options: list[dict[str, Any]]
    layers: list[int]
    identity: bool | None
    max_change: float | None
    relative_change: float | None
    kernel: str
    native: bool
    learned_parameters: int


@dataclass(frozen=True)
class Status:
    """State of a model.

    Attributes:
        model / family: class and family.
        patched: whether any patch is on.
        num_layers: layers of the model.
        attention: the attention implementation in use.
        position_ids, cache, supports: what works with the patches, in words.
        patches: one entry per patch.
    """

    model: str
    family: str
    patched: bool
    num_layers: int
    attention: str
    supports: dict[str, str] = field(default_factory=dict)
    patches: list[PatchInfo] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.family}), {self.num_layers} layers, attention {self.attention!r}"]
        if not self.patched:
            return lines[0] + ": not patched"
        for patch in self.patches:
            where = "all layers" if len(patch.layers) == self.num_layers else f"layers {patch.layers}"
            if patch.identity is None:
                effect = "effect not measured"
            elif patch.identity:
                effect = "an exact identity within the trained length"
            else:
                effect = f"changes the output by up to {patch.relative_change:.3g} of its size"
            lines.append(
                f"  {patch.encodings} on {where}: {effect}; kernel {patch.kernel}; "
                f"{'plain config' if patch.native else 'own model_type'} on disk; "
                f"{patch.learned_parameters:,} learned parameters"
            )
        lines += [f"  {what}: {how}" for what, how in self.supports.items()]
        return "\n".join(lines)


def status(model: nn.Module) -> Status:
    """What is patched on a model, and what works with it.

    Raises:
        UnsupportedError: the model fits no family.
    """
    host = find_host(model)
    applied: list[Applied] = getattr(host.base, STATE, [])
    infos = [
        PatchInfo(
            encodings=a.names,
            options=a.entries,
            layers=a.layers,
            identity=a.proof.identity if a.proof else None,
            max_change=a.proof.max_change if a.proof else None,
            relative_change=a.proof.relative_change if a.proof else None,
            kernel=_kernel(host, a),
            native=a.native,
            learned_parameters=_learned(host.base, a),
        )
        for a in applied
    ]
    return Status(
        model=type(model).__name__,
        family=host.family.name,
        patched=bool(applied),
        num_layers=len(host.layers),
        attention=str(host.config._attn_implementation),
        supports=_supports(applied),
        patches=infos,
    )


def _kernel(host: Host, applied: Applied) -> str:
    if applied.kernel is None:
        return "the model's own"
    if applied.kernel != "auto":
        return f"{applied.kernel} (forced)"
    attention: Any = host.attentions[applied.children[0]]
    children = attention.position_encoding.values()
    biases = [m for m in children if isinstance(m, BiasEncoding)]
    scores = [m for m in children if isinstance(m, ScoreEncoding)]
    pieces = any(isinstance(m, PiecewiseRotation) for m in children)
    if not (biases or scores or pieces):
        return "fused"
    device = host.reference_parameter(applied.children[0]).device.type
    return f"auto on {device}: {', else '.join(candidates(biases, device, scores=scores, pieces=pieces))}"


def _learned(base: nn.Module, applied: Applied) -> int:
    named = ((name, p) for name, p in base.named_parameters() if ".position_encoding." in f".{name}")
    layers = {str(i) for i in applied.layers}
    names = {e["name"] for e in applied.entries} | {"gains" for e in applied.entries if e.get("gains")}
    total = 0
    for name, parameter in named:
        parts = name.split(".")
        owners = parts[parts.index("position_encoding") + 1 :]  # peft's wrappers may stand between
        numbers = [part for part in parts[: parts.index("position_encoding")] if part.isdigit()]
        if names & set(owners) and (not numbers or numbers[0] in layers):
            total += parameter.numel()
    return total


def _supports(applied: list[Applied]) -> dict[str, str]:
    if not applied:
        return {}
    ours = any(a.kernel for a in applied)
    configs = [config_from_dict(e) for a in applied for e in a.entries if e["name"] not in NATIVE]
    kinds = [get_encoding(config.name) for config in configs]
    relative = all(kind.is_relative(config) for kind, config in zip(kinds, configs, strict=True))
    whole = any(getattr(kind, "needs_length", False) for kind in kinds)
    local = any(issubclass(kind, LocalInput) for kind in kinds)
    whole_heads = any(issubclass(kind, ScoreEncoding) and kind.per_head is None for kind in kinds)
    caches = "dynamic, static, sliding-window, quantised; a cache filled elsewhere is refused"
    return {
        "caches": "none can be continued: whole texts only, with use_cache=False" if whole else caches,
        "attention backends": "pe_retrofit only" if ours else "any the model supports",
        "output_attentions": "per call" if ours else "as the model does",
        "shift of all positions": "changes nothing" if relative else "changes the output",
        "tensor parallelism": "refused" if whole_heads else "as the model does",
        "context parallelism": "refused" if ours or whole or local else "as the model does",
    }
