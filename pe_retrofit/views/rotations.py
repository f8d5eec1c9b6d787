"""Rotations: how attention turns queries and keys, before and after."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from ..attention.late import LateRotation
from ..attention.scale import LogitScale
from ..config import EncodingConfig
from ..encodings.rope import Rope
from ..patching import patch_model
from ..registry import get_encoding
from ..sites import default_inv_freq
from .kinds import RotationView, Shape, Turning


def see_rotation(config: EncodingConfig, shape: Shape) -> RotationView:
    """What is installed on a small model that rotates; RoPE, which that one has, as models without one get it."""
    encoding: Any = get_encoding(config.name)(config, shape.host)  # type: ignore[call-arg]
    if isinstance(encoding, Rope):
        after = {"patched": Turning(encoding.added_inv_freq())}
    else:
        model = rotary_model(shape)
        patch_model(model, config, verify=False)
        after = installed_rotation(model, shape.trained)
    return RotationView(
        stock=Turning(default_inv_freq(shape.theta, shape.head_dim)),
        after=after,
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
        return _late(late, trained)
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


def _late(late: LateRotation, trained: int) -> dict[str, Turning]:
    """One per length of the text that turns otherwise."""
    turnings: dict[str, Turning] = {}
    for times in (1, 2, 4):
        inv_freq = late.encoding.inv_freq(times * trained, late.rope)
        if not any(torch.equal(inv_freq, other.inv_freq) for other in turnings.values()):
            turnings[f"in a text of {times * trained:,} tokens"] = Turning(inv_freq, late.scaling**2, _decay(late))
    return turnings if len(turnings) > 1 else {"patched": next(iter(turnings.values()))}


def _decay(late: LateRotation) -> Tensor | None:
    """``[d / 2]``: factor of each frequency on the product of a query and the key just before it."""
    place = torch.tensor([[1]])
    query = late.encoding.amplitude(place, 0, query=True)
    key = late.encoding.amplitude(place - 1, 0, query=False)
    return None if query is None or key is None else (query * key)[0, 0].double()
