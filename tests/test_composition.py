"""Encodings at several sites at once: the order of the list does not matter where the mathematics does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix import HOSTS, distance, learned_parameters, logits, tokens

from pe_retrofit import SelfExtendConfig, UnsupportedError, patch_model, status

SPECS: list[list[Any]] = [
    ["native", "fire"],
    ["alibi", "shaw"],
    ["nope", "t5"],
    [SelfExtendConfig(6, 3), "alibi"],
    ["native", "conv"],
    ["native", "t5", "deberta", "conv"],
    ["rope", "kerple", "fox"],
    ["native", "sinusoidal", "mlp"],
]


def built(spec: list[Any]) -> Any:
    model = HOSTS["llama"].fresh()
    patch_model(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(learned_parameters(model), key=lambda item: item[0]):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "+".join(getattr(s, "name", s) for s in spec))
def test_order_does_not_matter(spec: list[Any]) -> None:
    ids = tokens(2, 40)
    one, other = built(spec), built(spec[::-1])
    assert distance(logits(other, ids), logits(one, ids)) < 1e-5
    parts = status(one).patches[0].encodings.split(" + ")
    assert sorted(parts) == sorted(status(other).patches[0].encodings.split(" + "))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (["yarn", "self_extend"], "both decide the rotation"),
        (["native", "self_extend"], "keeps the rotation that 'self_extend' replaces"),
        (["t5", "t5"], "appears twice"),
        (["sinusoidal", "conv"], "both act on the input"),
        (["native", "rnope"], "cannot be a part of something"),
    ],
)
def test_what_does_not_compose_says_why(spec: list[Any], why: str) -> None:
    spec = [{"name": "yarn", "factor": 2.0} if part == "yarn" else part for part in spec]
    with pytest.raises(UnsupportedError, match=why):
        patch_model(HOSTS["llama"].fresh(), spec)
