"""Rotations against transformers' own functions and models, and against the papers' formulas in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import brute
import pytest
import tiny
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pe_retrofit import HostShape, get_encoding, patch_model
from pe_retrofit.patchers import rotation
from pe_retrofit.patchers.family import find_host

DIMS = st.sampled_from([8, 32, 64, 80, 96, 128, 256])
BASES = st.sampled_from([1000.0, 10000.0, 100000.0, 500000.0, 1e6])
FACTORS = st.one_of(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.floats(1.0, 64.0))
TRAINED = st.sampled_from([128, 512, 2048, 8192, 32768])
SETTINGS = settings(max_examples=60, deadline=None)


def build(name: str, dim: int, theta: float, trained: int, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An encoding for heads of ``dim`` that rotate whole, and the model's rope parameters before."""
    kind = get_encoding(name)
    host = HostShape(2, dim, dim, 2 * dim, trained, True)
    return kind(kind.Config.from_options(options), host), {"rope_theta": theta, "rope_type": "default"}


def theirs(rope: dict[str, Any], dim: int, longest: int, length: int | None = None) -> tuple[torch.Tensor, float]:
    """Frequencies and factor that transformers makes of rope parameters."""
    if rope["rope_type"] == "default":
        config = hf.LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, rope_parameters=rope)
        made = hf.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        return made.inv_freq, made.attention_scaling
    config = hf.LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=longest, rope_parameters=dict(rope)
    )
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), seq_len=length)
    return inv_freq, float(scaling)


def assert_frequencies(found: torch.Tensor, expected: list[float]) -> None:
    """float32 against float64, relative to each frequency."""
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-12)


@SETTINGS
@given(DIMS, BASES, FACTORS, TRAINED)
def test_linear(dim: int, theta: float, factor: float, trained: int) -> None:
    encoding, rope = build("linear", dim, theta, trained, factor=factor)
    new = encoding.rope_parameters(rope)
    assert new == {"rope_theta": theta, "rope_type": "linear", "factor": factor}
    found, scaling = theirs(new, dim, encoding.max_position_embeddings())
    assert_frequencies(found, brute.linear(theta, dim, factor))
    assert scaling == 1.0
    assert encoding.max_position_embeddings() == round(trained * factor)


@SETTINGS
@given(DIMS, BASES, FACTORS, TRAINED)
def test_ntk(dim: int, theta: float, factor: float, trained: int) -> None:
    encoding, rope = build("ntk", dim, theta, trained, factor=factor)
    found, scaling = theirs(encoding.rope_parameters(rope), dim, trained)
    assert_frequencies(found, brute.ntk(theta, dim, factor))
    assert scaling == 1.0
    # The claim of the method: the highest frequency stays, the lowest is divided by s.
    assert found[0] == 1.0
    assert math.isclose(found[-1].item() * factor, brute.plain(theta, dim)[-1], rel_tol=1e-4)


@SETTINGS
@given(DIMS, BASES, FACTORS, TRAINED, st.sampled_from([32.0, 16.0, 4.0]), st.sampled_from([1.0, 2.0]))
def test_yarn(dim: int, theta: float, factor: float, trained: int, fast: float, slow: float) -> None:
    encoding, rope = build("yarn", dim, theta, trained, factor=factor, beta_fast=fast, beta_slow=slow)
    new = encoding.rope_parameters(rope)
    asked = {"rope_theta": theta, "rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow}
    assert new == {**asked, "original_max_position_embeddings": trained}
    found, scaling = theirs(new, dim, round(trained * factor))
    assert_frequencies(found, brute.yarn(theta, dim, factor, trained, fast, slow))
    assert math.isclose(scaling, 0.1 * math.log(factor) + 1, rel_tol=1e-6)


@SETTINGS
@given(DIMS, BASES, FACTORS, TRAINED, st.sampled_from([(1.0, 4.0), (0.5, 2.0), (2.0, 8.0)]))
def test_llama3(dim: int, theta: float, factor: float, trained: int, bounds: tuple[float, float]) -> None:
    low, high = bounds
    options = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    encoding, rope = build("llama3", dim, theta, trained, **options)
    found, scaling = theirs(encoding.rope_parameters(rope), dim, round(trained * factor))
    assert_frequencies(found, brute.llama3(theta, dim, factor, trained, low, high))
    assert scaling == 1.0


@SETTINGS
@given(DIMS, BASES, st.floats(0.0, 1.0))
def test_partial_rope(dim: int, theta: float, p: float) -> None:
    encoding, rope = build("partial_rope", dim, theta, 512, p=p)
    found, scaling = theirs(encoding.rope_parameters(rope), dim, 512)
    assert_frequencies(found, brute.partial(theta, dim, p))
    assert scaling == 1.0
    assert int((found > 0).sum()) == encoding.kept()


@SETTINGS
@given(DIMS, BASES, FACTORS, TRAINED, st.integers(1, 200_000))
def test_dynamic(dim: int, theta: float, factor: float, trained: int, length: int) -> None:
    encoding, rope = build("dynamic", dim, theta, trained, factor=factor)
    found = encoding.inv_freq(length, rope)
    expected, _ = theirs(encoding.rope_parameters(rope), dim, trained, length)
    assert torch.equal(found, expected)
    assert_frequencies(found, brute.dynamic(theta, dim, factor, trained, length))


@pytest.mark.parametrize("trained", [1, 7, 32, 64, 100, 8192])
def test_dynamic_length_of_each_query(trained: int) -> None:
    """Query i counts i + 1 tokens; beyond L that is rounded up, by less than a 64th of L."""
    encoding, _ = build("dynamic", 8, 1e4, trained, factor=2.0)
    positions = torch.arange(4 * trained)
    lengths = encoding.groups(positions)
    exact = (positions + 1).clamp_min(trained)
    assert (lengths >= exact).all()
    assert (lengths - exact < max(1, trained // 64)).all()
    if trained <= 127:
        assert torch.equal(lengths, exact)


@SETTINGS
@given(st.sampled_from([8, 64, 96]), BASES, FACTORS, TRAINED, st.booleans(), st.randoms())
def test_longrope(dim: int, theta: float, factor: float, trained: int, beyond: bool, random: Any) -> None:
    short, long = ([random.uniform(1.0, 40.0) for _ in range(dim // 2)] for _ in range(2))
    options = {"factor": factor, "long_factor": long, "short_factor": short}
    encoding, rope = build("longrope", dim, theta, trained, **options)
    length = trained + beyond
    found = encoding.inv_freq(length, rope)
    expected, scaling = theirs(encoding.rope_parameters(rope), dim, round(trained * factor), length)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    assert_frequencies(found, brute.longrope(theta, dim, long if beyond else short))
    assert math.isclose(scaling, math.sqrt(1 + math.log(factor) / math.log(trained)), rel_tol=1e-6)
    assert encoding.groups(torch.tensor([0, trained - 1, trained, 9 * trained])).tolist() == [
        trained,
        trained,
        trained + 1,
        trained + 1,
    ]


@pytest.mark.parametrize("name", ["linear", "ntk", "yarn", "llama3", "partial_rope"])
@pytest.mark.parametrize("build_model", [tiny.llama, tiny.neox])
def test_frequencies_of_single_layers(name: str, build_model: Any) -> None:
    """Where only some layers change, the package computes the rotation itself: the same numbers."""
    host = find_host(build_model())
    kind = get_encoding(name)
    options = {"p": 0.5} if name == "partial_rope" else {"factor": 4.0}
    encoding = kind(kind.Config.from_options(options), host.shape())
    found, scaling = rotation.frequencies(host, encoding, 0)
    d, theta = host.shape().rotary_dim, 10000.0
    assert d == 8
    expected = {
        "linear": brute.linear(theta, d, 4.0),
        "ntk": brute.ntk(theta, d, 4.0),
        "yarn": brute.yarn(theta, d, 4.0, tiny.LENGTH, 32.0, 1.0),
        "llama3": brute.llama3(theta, d, 4.0, tiny.LENGTH, 1.0, 4.0),
        "partial_rope": brute.partial(theta, d, 0.5),
    }[name]
    assert_frequencies(torch.tensor(found), expected)
    assert math.isclose(scaling, 0.1 * math.log(4.0) + 1 if name == "yarn" else 1.0, rel_tol=1e-6)


WRITTEN = {
    "linear": ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "ntk": ({"factor": 4.0}, {"rope_type": "default", "rope_theta": 10000.0 * 4.0 ** (8 / 6)}),
    "yarn": (
        {"factor": 4.0, "beta_fast": 8.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "original_max_position_embeddings": tiny.LENGTH},
    ),
    "llama3": (
        {"factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": tiny.LENGTH,
        },
    ),
    "partial_rope": ({"p": 0.5}, {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
}
"""Options of ours, and what a user would write by hand for transformers."""


def by_hand(model: Any, rope: dict[str, Any], longest: int) -> Any:
    """A plain transformers model with the same weights and hand-written rope parameters."""
    config = copy.deepcopy(model.config)
    kept = {k: v for k, v in config.rope_parameters.items() if k == "partial_rotary_factor"}
    config.rope_parameters = {"rope_theta": 10000.0, **kept, **rope}
    config.max_position_embeddings = longest
    plain = type(model)(config).eval()
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize(
    ("name", "build_model"),
    [(name, build) for name in WRITTEN for build in (tiny.llama, tiny.mistral, tiny.neox)][:-1],  # the last: see below
)
def test_model_equals_plain_transformers(name: str, build_model: Any) -> None:
    """All but p-RoPE on GPT-NeoX, for which transformers has no type: heads that rotate in part."""
    options, rope = WRITTEN[name]
    model = build_model()
    tokens = tiny.ids(2, 3 * tiny.LENGTH)
    expected = by_hand(model, rope, tiny.LENGTH * 4)(tokens).logits
    before = model(tokens).logits
    patch_model(model, name, **options)
    found = model(tokens).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(found, before, atol=1e-3)
    some = build_model()  # every layer by its own hook: the other code path, the same model
    for layer in range(2):
        patch_model(some, name, layers=[layer], **options)
    torch.testing.assert_close(some(tokens).logits, expected, rtol=1e-4, atol=1e-4)


LONG = {"factor": 4.0, "long_factor": [1.0, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3]}
LATE = {
    "dynamic": ({"factor": 3.0}, {"rope_type": "dynamic", "factor": 3.0}),
    "longrope": (LONG, {"rope_type": "longrope", "original_max_position_embeddings": tiny.LENGTH, **LONG}),
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("build_model", [tiny.llama, tiny.neox])
def test_length_dependent_models(name: str, build_model: Any) -> None:
    """Up to L the whole model is transformers'. Beyond, its rule uses one rotation for the whole call, ours one per
    query: they agree where only the last query of one layer is looked at."""
    options, rope = LATE[name]
    longest = tiny.LENGTH if name == "dynamic" else tiny.LENGTH * 4
    deep = build_model()
    plain = by_hand(deep, rope, longest)
    patch_model(deep, name, **options)
    short = tiny.ids(2, tiny.LENGTH)
    torch.testing.assert_close(deep(short).logits, plain(short).logits, rtol=1e-4, atol=1e-4)

    shallow = build_model(num_hidden_layers=1) if build_model is tiny.llama else cut(build_model())
    plain = by_hand(shallow, rope, longest)
    patch_model(shallow, name, **options)
    for length in (tiny.LENGTH - 3, tiny.LENGTH + 1, tiny.LENGTH + 7, 2 * tiny.LENGTH, 4 * tiny.LENGTH):
        tokens = tiny.ids(2, length, seed=length)
        with torch.no_grad():
            ours, other = shallow(tokens).logits[:, -1], plain(tokens, use_cache=False).logits[:, -1]
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    whole = shallow(tokens).logits
    assert not torch.allclose(whole, plain(tokens).logits, atol=1e-3)  # earlier queries see less text


def cut(model: Any) -> Any:
    """The model with its first layer only."""
    model.gpt_neox.layers = model.gpt_neox.layers[:1]
    model.config.num_hidden_layers = 1
    return model
