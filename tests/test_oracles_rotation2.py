"""Fourier position embedding against its formula in complex float64 loops."""

from __future__ import annotations

import cmath
import copy
import math
from typing import Any

import brute
import pytest
import tiny
import torch
import transformers as hf
from matrix import distance, learned_parameters, logits, randomise
from test_hybrids import smollm3
from torch import Tensor

from pe_retrofit import ConfigError, FopeConfig, UnsupportedError, patch_model, status
from pe_retrofit.encodings.fope import Fope

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
YARN_FACTOR = 0.1 * math.log(2.0) + 1


def wave(position: int, frequencies: list[float], cos: Tensor, sin: Tensor, kept: int, size: float) -> list[complex]:
    """The factor of each dimension at a position: a series of those kept, 1 for the others."""
    made = []
    for m in range(len(frequencies)):
        if m >= kept:
            made.append(complex(size))
            continue
        total = cmath.rect(size, position * frequencies[m])
        for w in range(kept):
            angle = position * frequencies[w]
            total += size * complex(cos[w, m].item() * math.cos(angle), sin[w, m].item() * math.sin(angle))
        made.append(total)
    return made


def weights_by_hand(model: Any, hidden: Tensor, places: list[int], waves: list[list[complex]]) -> Tensor:
    """Attention weights ``[h, n, n]`` of the first layer: ``Re sum_m q_m h_m(i) conj(k_m h_m(j))``."""
    attention = model.model.layers[0].self_attn
    d, heads = attention.head_dim, model.config.num_attention_heads
    half = len(waves[0])
    query = attention.q_proj(hidden)[0].view(len(places), heads, d).tolist()
    key = attention.k_proj(hidden)[0].view(len(places), -1, d).tolist()
    groups = heads // model.config.num_key_value_heads
    result = torch.zeros(heads, len(places), len(places), dtype=torch.float64)
    for h in range(heads):
        for i in range(len(places)):
            scores = []
            for j in range(i + 1):
                q, k, total = query[i][h], key[j][h // groups], 0.0
                for m in range(half):
                    left = complex(q[m], q[m + half]) * waves[i][m]
                    right = complex(k[m], k[m + half]) * waves[j][m]
                    total += (left * right.conjugate()).real
                scores.append(total * d**-0.5)
            result[h, i, : i + 1] = torch.tensor(scores, dtype=torch.float64).softmax(0)
    return result


CASES = [
    pytest.param({}, {}, 3, id="clipped"),
    pytest.param({"clip": False}, {}, 8, id="unclipped"),
    pytest.param({"original_max_position_embeddings": 7}, {}, 1, id="shorter"),
    pytest.param({"clip": False}, {"rope_parameters": YARN}, 8, id="yarn"),
    pytest.param({}, {"rope_parameters": YARN}, 2, id="yarn-clipped"),
]


@pytest.mark.parametrize(("options", "host", "kept"), CASES)
@torch.no_grad()
def test_attention_weights(options: dict[str, Any], host: dict[str, Any], kept: int) -> None:
    """Of positions with gaps, far beyond the trained length of 64."""
    more = {"num_hidden_layers": 1, "head_dim": 16, "max_position_embeddings": 64, **host}
    model = tiny.llama(**more).double()
    model.set_attn_implementation("eager")
    frequencies = brute.yarn(10000.0, 16, 2.0, 64, 32, 1) if host else brute.plain(10000.0, 16)
    patch_model(model, "fope", **options)
    fope = model.model.layers[0].self_attn.position_encoding.fope
    assert fope.kept == kept
    randomise(model, 0.5)
    assert not torch.equal(fope.cos_coef, fope.sin_coef)

    seen: list[Tensor] = []
    attention = model.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True)
    places = [0, 1, 2, 5, 6, 30, 63, 64, 200, 1000]
    ids = tiny.ids(1, len(places))
    inputs = {"position_ids": torch.tensor([places]), "attention_mask": torch.ones_like(ids)}
    found = model(input_ids=ids, output_attentions=True, **inputs).attentions[0][0]
    size = YARN_FACTOR if host else 1.0
    waves = [wave(p, frequencies, fope.cos_coef, fope.sin_coef, kept, size) for p in places]
    wanted = weights_by_hand(model, seen[0], places, waves)
    assert (found - wanted).abs().max() < 1e-4  # cos and sin of angles up to 1000 are float32
    single = [wave(p, frequencies, 0 * fope.cos_coef, 0 * fope.sin_coef, kept, size) for p in places]
    assert (wanted - weights_by_hand(model, seen[0], places, single)).abs().max() > 1e-2, "the series must matter"


@pytest.mark.parametrize(("trained", "kept"), [(6, 0), (7, 1), (64, 3), (512, 4), (8192, 7), (2**20, 8)])
def test_what_is_clipped(trained: int, kept: int) -> None:
    """A frequency stays if its period, ``2 pi / w``, fits into the trained length."""
    frequencies = brute.plain(10000.0, 16)
    assert sum(2 * math.pi / w <= trained for w in frequencies) == kept
    host = tiny.shape(dim=16).__class__(4, 16, 16, 64, trained, True)
    fope = Fope(FopeConfig(), host, frequencies)
    assert fope.kept == kept
    assert fope.cos_coef.shape == fope.sin_coef.shape == (kept, kept)
    angles = torch.tensor([3.0 * w for w in frequencies] * 2)[None, None]
    cos, sin = fope(angles.cos(), angles.sin())
    still = torch.arange(16) % 8 >= kept
    assert torch.equal(cos[0, 0], torch.where(still, 1.0, angles.cos()[0, 0]))
    assert torch.equal(sin[0, 0], torch.where(still, 0.0, angles.sin()[0, 0]))


def test_start_is_partial_rotation() -> None:
    """Clipped and untrained, FoPE is the rotation without the low frequencies: p-RoPE."""
    model, ids = tiny.llama(head_dim=16, max_position_embeddings=64), tiny.ids(2, 50)
    other = patch_model(copy.deepcopy(model), "partial_rope", p=3 / 8)
    patch_model(model, "fope")
    assert distance(logits(model, ids), logits(other, ids)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_training_by_gradient_under_autocast_and_checkpointing() -> None:
    """Same gradients with checkpointing; the series stays in float32 where the model computes in bfloat16."""
    ids = tiny.ids(2, 20)
    grads = []
    for checkpointing in (False, True):
        model = patch_model(tiny.llama(head_dim=16, max_position_embeddings=64), "fope")
        randomise(model, 0.2)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads.append({n: p.grad for n, p in learned_parameters(model)})
    assert len(grads[0]) == 4
    for name, grad in grads[0].items():
        assert grad.abs().max() > 0, name
        assert torch.allclose(grad, grads[1][name], atol=1e-7), name
    seen: list[tuple[Tensor, Tensor]] = []
    fope = model.model.layers[0].self_attn.position_encoding.fope
    fope.register_forward_hook(lambda m, args, output: seen.append((args[0], output[0])))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model.eval()(input_ids=ids)
    given, mixed = (t.double() for t in seen[0])
    wanted = given[..., :3] @ (torch.eye(3, dtype=torch.float64) + fope.cos_coef.detach().double())
    assert (mixed[..., :3] - wanted).abs().max() < 1e-6


def test_layers_have_matrices_of_their_own() -> None:
    model = patch_model(tiny.llama(head_dim=16, max_position_embeddings=64), "fope", layers=[1])
    assert [name.split(".")[2] for name, _ in learned_parameters(model)] == ["1", "1"]
    assert status(model).patches[0].learned_parameters == 2 * 3 * 3
    assert status(model).supports["attention backends"] == "any the model supports"


def test_beside_a_bias_of_other_layers() -> None:
    """The attention function of another patch leaves these layers to the rotation."""
    ids = tiny.ids(2, 30)
    spec = {"0": FopeConfig(), "1": ["native", "alibi"]}
    model = patch_model(tiny.llama(head_dim=16), spec)
    randomise(model, 0.3)
    steps = patch_model(tiny.llama(head_dim=16), "fope", layers=[0])
    randomise(steps, 0.3)
    wanted = logits(patch_model(steps, ["native", "alibi"], layers=[1]), ids)
    assert distance(logits(model, ids), wanted) < 1e-6
    assert distance(logits(patch_model(tiny.llama(head_dim=16), ["native", "alibi"], layers=[1]), ids), wanted) > 1e-3


def dynamic() -> Any:
    return tiny.llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})


@pytest.mark.parametrize(
    ("build", "spec", "options", "error", "words"),
    [
        (tiny.bert, "fope", {}, UnsupportedError, "has none"),
        (dynamic, "fope", {"clip": False}, UnsupportedError, "rope_type='dynamic'"),
        (lambda: tiny.llama(max_position_embeddings=2**20), "fope", {}, UnsupportedError, "clips nothing here"),
        (lambda: smollm3(tiny.llama(num_hidden_layers=4)), {"3": "fope"}, {}, UnsupportedError, "do not rotate"),
        (tiny.llama, ["fope", "shaw"], {}, UnsupportedError, "before their rotation"),
        (tiny.llama, ["fope", "nope"], {}, UnsupportedError, "both decide the rotation"),
        (tiny.llama, ["native", "fope"], {}, UnsupportedError, "keeps the rotation"),
        (tiny.llama, "fope", {"clip": 1}, ConfigError, "must be true or false"),
        (tiny.llama, "fope", {"kernel": "eager"}, UnsupportedError, "has no meaning"),
    ],
)
def test_refusals(build: Any, spec: Any, options: dict[str, Any], error: type, words: str) -> None:
    model = build()
    with pytest.raises(error, match=words):
        patch_model(model, spec, **options)
    assert not status(model).patched
    assert not learned_parameters(model)


def test_hosts_that_rotate_a_part() -> None:
    """StableLM and GPT-NeoX rotate the first dimensions of a head; the series is over those."""
    config = hf.StableLmConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        partial_rotary_factor=0.5,
    )
    model = patch_model(hf.StableLmForCausalLM(config).eval(), "fope", clip=False)
    assert {tuple(p.shape) for _, p in learned_parameters(model)} == {(8, 8)}
