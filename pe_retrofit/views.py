"""An encoding as numbers to look at: what is installed on a small model, at each position, distance or frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from .attention.late import LateRotation
from .attention.scale import LogitScale
from .config import EncodingConfig
from .layering import split_spec
from .patching import patch_model
from .plan import parse_spec
from .registry import get_encoding
from .sites import (
    BiasEncoding,
    HostShape,
    HybridEncoding,
    InputEncoding,
    LocalInput,
    default_inv_freq,
)

SEED = 0

LAYERS = 8
"""How many layers of a hybrid are shown at least."""


@dataclass(frozen=True)
class BiasView:
    """A bias.

    Attributes:
        distances: int64 ``[n]``, ``i - j`` from 0 (decoders) or from ``-(length - 1)`` (encoders).
        bias: ``[h, n]`` at these distances, seen from the last query.
        matrix: ``[h, q, k]``, NaN where attention is masked.
        buckets: int64 ``[n]``, the row of the learned table each distance reads; None where there is none.
        note: what was filled in to have something to see.
    """

    distances: Tensor
    bias: Tensor
    matrix: Tensor
    buckets: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class Turning:
    """A rotation.

    Attributes:
        inv_freq: float32 ``[d / 2]``, radians per token; 0: not rotated.
        amplitude: factor on the attention logits that comes with it.
    """

    inv_freq: Tensor
    amplitude: float = 1.0

    @property
    def periods(self) -> Tensor:
        """``[d / 2]`` tokens per turn; infinite where nothing turns."""
        return 2 * math.pi / self.inv_freq.double()

    def kernel(self, distances: Tensor) -> Tensor:
        """``[n]``: logit of a query and a key of equal content, 1 for stock RoPE at distance 0."""
        angles = distances.double()[:, None] * self.inv_freq.double()
        return self.amplitude * angles.cos().mean(-1)


@dataclass(frozen=True)
class RotationView:
    """A rotation before and after.

    Attributes:
        stock: the model's own.
        after: by label; several where the rotation depends on the length of the text.
        trained, extended: lengths in tokens.
        theta: the model's rotary base.
    """

    stock: Turning
    after: dict[str, Turning]
    trained: int
    extended: int
    theta: float


@dataclass(frozen=True)
class InputView:
    """Vectors added to the embeddings.

    Attributes:
        vectors: ``[length, hidden_size]``.
        note: what was filled in to have something to see.
    """

    vectors: Tensor
    note: str = ""


@dataclass(frozen=True)
class HybridView:
    """What each layer gets.

    Attributes:
        layers: in words, from the first layer on, e.g. ``["nope", "native + window", ...]``.
        note: the options that the encodings have there.
    """

    layers: list[str]
    note: str = ""


@dataclass(frozen=True)
class Shape:
    """The model an encoding is shown on.

    Attributes:
        heads, head_dim: of its attention.
        length: positions to show.
        trained, theta: of its RoPE.
        causal: a decoder.
    """

    heads: int = 8
    head_dim: int = 64
    length: int = 64
    trained: int = 4096
    theta: float = 10000.0
    causal: bool = True
    host: HostShape = field(init=False)

    def __post_init__(self) -> None:
        width = self.heads * self.head_dim
        host = HostShape(self.heads, self.head_dim, self.head_dim, width, self.trained, self.causal)
        object.__setattr__(self, "host", host)


def view(config: EncodingConfig, shape: Shape) -> BiasView | RotationView | InputView | HybridView:
    """What an encoding looks like on a model of this shape."""
    kind = get_encoding(config.name)
    if issubclass(kind, HybridEncoding):
        return _hybrid(config, max(LAYERS, 2 * kind(config).least_layers()))
    if issubclass(kind, BiasEncoding):
        return _bias(kind(config, shape.host), shape)
    if issubclass(kind, InputEncoding):
        return _input(kind(config, replace(shape.host, hidden_size=min(128, shape.host.hidden_size))), shape)
    return _rotation(config, shape)


@torch.no_grad()
def fill_zero_parameters(module: nn.Module, scale: float = 1.0, seed: int = SEED) -> list[str]:
    """Give learned parameters that are all zero normal random values, so that there is something to see or measure.

    Returns:
        Names of the parameters filled.
    """
    generator = torch.Generator().manual_seed(seed)
    filled = []
    for name, parameter in module.named_parameters():
        if not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            filled.append(name)
    return filled


def _bias(module: BiasEncoding, shape: Shape) -> BiasView:
    filled = fill_zero_parameters(module)
    n, causal = shape.length, shape.causal
    positions = torch.arange(n)[None]
    distances = torch.arange(0 if causal else 1 - n, n)
    with torch.no_grad():
        matrix = module.bias_at(positions, positions, causal=causal)[0].double()
        origin = torch.tensor([[n - 1]])  # the last query, so that every distance has a key
        bias = module.bias_at(origin, origin - distances[None], causal=causal)[0, :, 0].double()
        prepared = module.prepare(distances, causal=causal)
    if causal:
        matrix = matrix.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("nan"))
    shared = not prepared.is_floating_point() and prepared.shape == distances.shape
    buckets = prepared if shared and not torch.equal(prepared, distances) else None
    note = f"{', '.join(filled)}: zero at the start, shown with random values (seed {SEED})" if filled else ""
    return BiasView(distances, bias, matrix, buckets, note)


def _hybrid(config: EncodingConfig, count: int) -> HybridView:
    words, options = [""] * count, {}
    for part in split_spec(config, {}, None, count):
        configs, keeps = parse_spec(part.spec, {})
        for layer in part.layers:
            words[layer] = " + ".join((["native"] if keeps else []) + [c.name for c in configs])
        for one in configs:
            given = {row["option"]: getattr(one, row["option"]) for row in type(one).describe()}
            shown = [f"{key} = {value}" for key, value in given.items() if value not in (None, False, 0.0, 1.0)]
            options[one.name] = f"{one.name}: {', '.join(shown) or 'defaults'}"
    return HybridView(words, "; ".join(options.values()))


def _input(module: InputEncoding, shape: Shape) -> InputView:
    module.fit(None, keeps_native=False, embedding_rms=1.0)
    if isinstance(module, LocalInput):
        return _response(module)
    rows = getattr(module.config, "max_positions", shape.length)
    with torch.no_grad():
        positions = torch.arange(min(shape.length, rows))
        if module(positions).any():
            return InputView(module(positions).double(), "at the size of the token embeddings (rms 1)")
        filled = fill_zero_parameters(module)
        note = f"{', '.join(filled)}: zero at the start, shown with random values (seed {SEED})"
        return InputView(module(positions).double(), note)


def _response(module: LocalInput) -> InputView:
    """What one token brings to itself and to each of its neighbours: for a convolution, its kernel."""
    filled = fill_zero_parameters(module)
    before, after = module.sides
    text = torch.zeros(1, before + 1 + after, module.host.hidden_size)
    with torch.no_grad():
        nothing = module(text)
        text[:, after] = 1.0
        added = module(text) - text - nothing
    note = f"what a token of ones, at {after}, brings to the tokens it reaches"
    if filled:
        note += f"; {', '.join(filled)}: zero at the start, shown with random values (seed {SEED})"
    return InputView(added[0].double(), note)


def _rotation(config: EncodingConfig, shape: Shape) -> RotationView:
    model = rotary_model(shape)
    encoding: Any = get_encoding(config.name)(config, shape.host)  # type: ignore[call-arg]
    patch_model(model, config, verify=False)
    return RotationView(
        stock=Turning(default_inv_freq(shape.theta, shape.head_dim)),
        after=installed_rotation(model, shape.trained),
        trained=shape.trained,
        extended=max(shape.trained, encoding.max_position_embeddings() if encoding.extends else shape.trained),
        theta=shape.theta,
    )


def rotary_model(shape: Shape) -> LlamaModel:
    """One layer with one head, to read a rotation from."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=shape.head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=shape.trained,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
    )
    return LlamaModel(config).eval()


@torch.no_grad()
def installed_rotation(model: LlamaModel, trained: int) -> dict[str, Turning]:
    """How the attention of a model turns queries and keys now, read from what reaches it."""
    attention: Any = model.layers[0].self_attn
    children = list(getattr(attention, "position_encoding", {}).values())
    factor = math.prod(child.factor for child in children if isinstance(child, LogitScale))
    late = next((child for child in children if isinstance(child, LateRotation)), None)
    if late is not None:
        turnings: dict[str, Turning] = {}
        for times in (1, 2, 4):
            inv_freq = late.encoding.inv_freq(times * trained, late.rope)
            if not any(torch.equal(inv_freq, other.inv_freq) for other in turnings.values()):
                turnings[f"in a text of {times * trained:,} tokens"] = Turning(inv_freq, late.scaling**2)
        return turnings
    seen: list[tuple[Tensor, Tensor]] = []
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    try:
        model(torch.tensor([[0, 1]]), use_cache=False)
    finally:
        handle.remove()
    # at position 1 the angle is the frequency
    cos, sin = (part[0, 1, : part.shape[-1] // 2].double() for part in seen[0])
    amplitude = (cos.square() + sin.square()).mean().item()
    inv_freq = torch.atan2(sin, cos).float()
    growing = next((child for child in children if isinstance(child, LogitScale) and child.attn_scale), None)
    if growing is not None:
        places = [trained // 2, 4 * trained, 16 * trained]
        own = growing.at(torch.tensor(places)).tolist()
        return {
            f"for the query at {place:,}": Turning(inv_freq, amplitude * factor * times)
            for place, times in zip(places, own, strict=True)
        }
    return {"patched": Turning(inv_freq, amplitude * factor)}
