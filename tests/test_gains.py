"""Gains on unrotated queries: the formula in complex arithmetic, on models that rotate all or a part of each head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from hosts import HOSTS
from torch import Tensor

from pe_retrofit import NopeConfig, T5Config, UnsupportedError, patch_model, status, unpatch_model
from pe_retrofit.attention.gain import QueryGain

GAINS = NopeConfig(gains=True)


def moved(model: Any) -> Any:
    """The gains of a patched model at random."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, QueryGain):
            module.gain.data += torch.randn(module.gain.shape, generator=generator)
    return model


@pytest.mark.parametrize(("dim", "frequencies"), [(8, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("strength", [1.0, 0.3, 0.0])
def test_formula(dim: int, frequencies: int, strength: float) -> None:
    """``Re(q_m conj(k_m) (1 + s (g_m - 1)))`` summed, plus what is not rotated; one number at a time."""
    made = QueryGain(3, frequencies).double()
    generator = torch.Generator().manual_seed(0)
    made.gain.data.normal_(generator=generator)
    query, key = torch.randn(2, 2, 3, 5, dim, dtype=torch.float64, generator=generator)
    found = made.turn(query, strength) @ key.transpose(2, 3)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                for j in range(5):
                    q, k = query[b, h, i].tolist(), key[b, h, j].tolist()
                    total = sum(q[m] * k[m] for m in range(2 * frequencies, dim))
                    for m in range(frequencies):
                        g = 1 + strength * (complex(*made.gain[h, m].tolist()) - 1)
                        total += (g * complex(q[m], q[m + frequencies]) * complex(k[m], -k[m + frequencies])).real
                    assert found[b, h, i, j].item() == pytest.approx(total, rel=1e-12, abs=1e-12)


def test_a_distance_in_every_head() -> None:
    """With ``g_m = e^(i D theta_m)`` the logits are those that the rotation gives to keys D tokens before."""
    theta, distance = torch.tensor([1.0, 0.3, 0.05]), 4
    made = QueryGain(1, 3)
    made.gain.data = torch.stack((theta.mul(distance).cos(), theta.mul(distance).sin()), dim=-1)[None]
    query, key = torch.randn(2, 1, 1, 6, 6, generator=torch.Generator().manual_seed(1))

    def rotated(states: Tensor, position: int) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        cos, sin = (position * theta).cos(), (position * theta).sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    wanted = rotated(query, 9) @ rotated(key, 9 - distance).transpose(2, 3)
    assert (made.turn(query) @ key.transpose(2, 3) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("build", [tiny.llama, tiny.neox, lambda: HOSTS["stablelm"].fresh(), HOSTS["qwen3"].fresh])
@torch.no_grad()
def test_in_a_model(build: Callable[[], Any]) -> None:
    """The same as multiplying the rows of the query projection, where there is no norm between; 1 changes nothing."""
    ids, plain = tiny.ids(2, 20), patch_model(build(), "nope")
    model = patch_model(build(), GAINS)
    wanted = plain(input_ids=ids).logits
    assert (model(input_ids=ids).logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    found = moved(model)(input_ids=ids).logits
    assert (found - wanted).abs().max() > 0.01 * wanted.abs().max()
    attention = model.base_model.layers[0]
    attention = getattr(attention, "self_attn", None) or attention.attention
    gain = attention.position_encoding.gains.gain
    heads = model.config.num_attention_heads
    rotary = {"GPTNeoX": 8, "StableLm": 4, "Qwen3": 16, "Llama": 8}[type(model).__name__.removesuffix("ForCausalLM")]
    assert gain.shape == (heads, rotary // 2, 2)


@torch.no_grad()
def test_folded_into_the_projection() -> None:
    ids, model = tiny.ids(2, 20), moved(patch_model(tiny.llama(), GAINS))
    folded = patch_model(tiny.llama(), "nope")
    for ours, theirs in zip(model.model.layers, folded.model.layers, strict=True):
        gain = torch.view_as_complex(ours.self_attn.position_encoding.gains.gain.detach())
        rows = theirs.self_attn.q_proj.weight.view(4, 2, 4, 32)  # heads, halves, frequencies, hidden
        turned = torch.complex(rows[:, 0], rows[:, 1]) * gain[:, :, None]
        theirs.self_attn.q_proj.weight.copy_(torch.stack((turned.real, turned.imag), dim=1).view(32, 32))
    wanted = folded(input_ids=ids).logits
    assert (model(input_ids=ids).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_refused_where_nothing_rotates() -> None:
    with pytest.raises(UnsupportedError, match="gains=True of 'nope' takes the place of a rotation, and BertModel"):
        patch_model(tiny.bert(), NopeConfig(gains=True, allow_bag_of_words=True))
    model = HOSTS["smollm3"].fresh()
    with pytest.raises(UnsupportedError, match=r"and Layer 1 has none. Pass gains=False"):
        patch_model(model, GAINS)
    assert not status(model).patched
    patch_model(model, GAINS, layers=[0, 2])


@pytest.mark.parametrize("host", ["glm", "cohere", "gpt_oss"])
def test_refused_in_other_layouts(host: str) -> None:
    model = HOSTS[host].fresh()
    with pytest.raises(UnsupportedError, match=r"'nope with gains=True' needs .* rotate-half layout"):
        patch_model(model, GAINS)
    assert not status(model).patched
    patch_model(model, "nope")


def test_learned_parameters_are_counted_and_trained() -> None:
    model = patch_model(tiny.llama(), [GAINS, T5Config(16, 40)])
    assert status(model).patches[0].learned_parameters == 2 * (4 * 4 * 2 + 16 * 4)
    model.train()
    model(input_ids=tiny.ids(2, 12), labels=tiny.ids(2, 12)).loss.backward()
    gains = [m.gain for m in model.modules() if isinstance(m, QueryGain)]
    assert len(gains) == 2
    assert all(g.grad is not None and g.grad.abs().max() > 0 for g in gains)


@torch.no_grad()
def test_beside_a_temperature() -> None:
    """Both act on the logits: twice the temperature is twice the gain."""
    ids = tiny.ids(2, 20)
    hot = moved(patch_model(tiny.llama(), NopeConfig(gains=True, temperature=1.0, factor=2.718281828459045)))
    plain = moved(patch_model(tiny.llama(), GAINS))
    for module in plain.modules():
        if isinstance(module, QueryGain):
            module.gain.mul_(2.0)
    wanted = plain(input_ids=ids).logits
    assert (hot(input_ids=ids).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_copies_and_unpatching() -> None:
    model = tiny.llama()
    ids = tiny.ids(2, 20)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        moved(patch_model(model, GAINS))
        now = model(input_ids=ids).logits
        assert torch.equal(copy.deepcopy(model)(input_ids=ids).logits, now)
        assert torch.equal(unpatch_model(model)(input_ids=ids).logits, before)
