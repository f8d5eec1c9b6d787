"""What each encoding can do, from what its class declares: the rows of the README's table.

Nothing is patched or measured here; the test suite patches a small model for every cell and compares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .attention.select import candidates
from .config import EncodingConfig
from .encodings.learned import Learned
from .encodings.nope import Nope, NopeConfig
from .encodings.rope import Rope
from .patchers.descriptor import Family
from .patchers.family import FAMILIES
from .registry import NATIVE, get_encoding, list_encodings
from .sites import (
    BiasEncoding,
    HostShape,
    HybridEncoding,
    InputEncoding,
    LocalInput,
    PiecewiseEncoding,
    RotationEncoding,
    ScoreEncoding,
)

HOST = HostShape(4, 16, 16, 64, 128, True)
"""A decoder to ask encodings on, with options as in :data:`OPTIONS`."""

OPTIONS: dict[str, Any] = {"factor": 4.0, "max_positions": 256}
"""Values of required options, none of which changes an answer."""

OWN = "model's own"
"""In place of a kernel: the attention the model has."""


@dataclass(frozen=True)
class Capability:
    """What one encoding can do with its default options, in all layers, in place of the native encoding.

    Attributes:
        name / title / site / paper: of the encoding.
        families: family -> whether its usual member can carry it.
        causal / bidirectional: which attention it holds for.
        cache: ``yes``, or ``one pass`` where a filled cache cannot be continued. Encoders have none.
        kernels: device -> kernels of a decoder's prefill in the order they are tried; those of all layers for a hybrid.
            ``fused`` is PyTorch's attention within ours.
        learned: it has parameters of its own, all of which get gradients.
        ddp / fsdp2: trains with data parallelism, replicated and sharded, when it is patched first.
        tp / cp: runs with tensor and with context parallelism; where not, the first forward pass refuses. Tensor
            parallelism needs a plan of transformers' for the model, which encoders lack.
        saved: ``plain`` where transformers alone reads a patched model, ``plain (decoders)``, ``plain (encoders)`` or
            ``pe_retrofit``.
        identity: when patching changes nothing, in words; empty: never.
    """

    name: str
    title: str
    site: str
    paper: str
    families: dict[str, bool]
    causal: bool
    bidirectional: bool
    cache: str
    kernels: dict[str, list[str]]
    learned: bool
    ddp: bool
    fsdp2: bool
    tp: bool
    cp: bool
    saved: str
    identity: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def capabilities() -> list[Capability]:
    """One row per registered encoding, sorted by name."""
    return [capability(name) for name in list_encodings()]


def capability(name: str) -> Capability:
    """What one encoding can do.

    Raises:
        UnknownEncodingError: nothing has this name.
    """
    kind: Any = get_encoding(name)
    info = kind.info
    families = {family.name: family for family in FAMILIES}
    return Capability(
        name=name,
        title=info.title,
        site=kind.site,
        paper=info.paper,
        families={key: supported(kind, family) for key, family in families.items()},
        causal=info.causal,
        bidirectional=info.bidirectional,
        cache="one pass" if _needs_whole_text(kind) else "yes",
        kernels={device: kernels(kind, device) for device in ("cpu", "cuda")},
        learned=_learns(kind),
        ddp=True,
        fsdp2=True,
        tp=_splits(kind),
        cp=not (uses_our_attention(kind) or issubclass(kind, LocalInput) or _needs_whole_text(kind)),
        saved=on_disk(kind),
        identity=info.identity,
    )


def supported(kind: Any, family: Family) -> bool:
    """Whether an encoding can be put on a plain model of a family: a decoder if it rotates, else an encoder.

    Args:
        kind: encoding class.
        family: descriptor of the family.
    """
    if family.rotary is not None:
        return bool(kind.info.causal)
    needs_rotation = issubclass(kind, (RotationEncoding, PiecewiseEncoding)) and not issubclass(kind, (Nope, Rope))
    return bool(kind.info.bidirectional) and not needs_rotation


def on_disk(kind: Any) -> str:
    """How a patched model is saved, see :attr:`Capability.saved`."""
    if issubclass(kind, Rope):
        return "plain (decoders)"
    if issubclass(kind, RotationEncoding):
        own = kind.rope_parameters is not RotationEncoding.rope_parameters
        return "plain" if own and kind.expressible else "pe_retrofit"
    return "plain (encoders)" if issubclass(kind, Learned) else "pe_retrofit"


def kernels(kind: Any, device: str) -> list[str]:
    """Kernels of a decoder's prefill in the order they are tried."""
    if not uses_our_attention(kind):
        return [OWN]
    if issubclass(kind, HybridEncoding):
        return list(dict.fromkeys(name for one in _parts(kind) for name in _of_part(one, device)))
    if issubclass(kind, PiecewiseEncoding):
        return candidates([], device, pieces=True)
    if issubclass(kind, BiasEncoding):
        return candidates([_made(kind)], device)
    if issubclass(kind, ScoreEncoding):
        return candidates([], device, scores=[_made(kind)])
    return ["fused"]


def uses_our_attention(kind: Any) -> bool:
    """Whether a decoder runs on our attention function, with default options."""
    if issubclass(kind, HybridEncoding):
        return any(_of_part(one, "cpu") for one in _parts(kind))
    if issubclass(kind, RotationEncoding):
        return kind.length_dependent
    return issubclass(kind, (BiasEncoding, ScoreEncoding, PiecewiseEncoding))


def _splits(kind: Any) -> bool:
    """Whether tensor parallelism can split its heads: a score that learns has to say what it holds for each of them."""
    if issubclass(kind, HybridEncoding):
        return all(_splits(get_encoding(one.name)) for one in _parts(kind))
    return not (issubclass(kind, ScoreEncoding) and kind.per_head is None and _learns(kind))


def _needs_whole_text(kind: Any) -> bool:
    return issubclass(kind, InputEncoding) and kind.needs_length


def _learns(kind: Any) -> bool:
    if issubclass(kind, HybridEncoding):
        return any(_learns(get_encoding(one.name)) for one in _parts(kind))
    return issubclass(kind, nn.Module) and any(True for _ in _made(kind).parameters())


def _parts(kind: Any) -> list[EncodingConfig]:
    """The encodings that a hybrid puts on layers."""
    hybrid = _made(kind)
    found: list[EncodingConfig] = []
    for spec in hybrid.layers(max(8, hybrid.least_layers())).values():
        items = spec if isinstance(spec, (list, tuple)) else [spec]
        found += [get_encoding(i).Config() if isinstance(i, str) else i for i in items if i not in NATIVE]
    return found


def _of_part(config: EncodingConfig, device: str) -> list[str]:
    """Kernels of a hybrid's layer; none where it runs on the model's own."""
    if isinstance(config, NopeConfig):
        return ["fused"] if config.attn_scale else []
    names = kernels(get_encoding(config.name), device)
    return [] if names == [OWN] else names


def _made(kind: Any) -> Any:
    """An instance on a small decoder."""
    required = [row["option"] for row in kind.Config.describe() if row["default"] == "required"]
    config = kind.Config.from_options({key: OPTIONS[key] for key in required if key in OPTIONS})
    return kind(config) if issubclass(kind, HybridEncoding) else kind(config, HOST)


BEGIN, END = "<!-- capabilities: generated -->", "<!-- capabilities: end -->"


def markdown() -> str:
    """The table in Markdown, one row per registered encoding."""
    names = list(dict.fromkeys(family.name for family in FAMILIES))
    head = ["encoding", *(f"`{n}`" for n in names), "attention", "cache", "kernels on CPUs", "on CUDA"]
    head += ["learned", "DDP", "FSDP2", "TP", "CP"]
    rows = [head, ["---"] * len(head)]
    both = {(True, True): "both", (True, False): "causal", (False, True): "bidirectional"}
    for row in capabilities():
        marks = [_yes(row.families[name]) for name in names]
        runs = [", ".join(row.kernels[device]) for device in ("cpu", "cuda")]
        scales = [_yes(value) for value in (row.learned, row.ddp, row.fsdp2, row.tp, row.cp)]
        rows.append([f"`{row.name}`", *marks, both[row.causal, row.bidirectional], row.cache, *runs, *scales])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
