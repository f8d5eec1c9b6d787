"""KERPLE, FIRE, continuous, Sandwich and window biases against brute force, x-transformers and transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import brute
import brute_bias
import pytest
import tiny
import torch
from torch import Tensor, nn
from x_transformers.x_transformers import DynamicPositionBias

from pe_retrofit import (
    BiasEncoding,
    ConfigError,
    FireConfig,
    KerpleConfig,
    MlpConfig,
    SandwichConfig,
    WindowConfig,
    get_encoding,
    patch_model,
)
from pe_retrofit.attention import toeplitz
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import KERNELS, obstacle
from pe_retrofit.encodings import mlp
from pe_retrofit.encodings.alibi import alibi_slopes
from pe_retrofit.encodings.fire import POINTS

HEADS = 5
CONFIGS = {
    "kerple": KerpleConfig(),
    "kerple_power": KerpleConfig("power"),
    "fire": FireConfig(width=7, length=12),
    "mlp": MlpConfig(width=7),
    "mlp_deep": MlpConfig(width=6, layers=3, activation="silu"),
    "sandwich": SandwichConfig(dim=16),
    "window": WindowConfig(6),
}


def made(config: Any, *, heads: int = HEADS, causal: bool = True, dtype: torch.dtype = torch.float64) -> BiasEncoding:
    """An encoding on its own, started and then moved, so that no parameter is zero and some are out of bounds."""
    kind = get_encoding(config.name)
    assert issubclass(kind, BiasEncoding)
    bias = kind(config, tiny.shape(heads, causal=causal))
    bias.start(keeps_native=False)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return bias.to(dtype)


def formula(bias: BiasEncoding) -> Callable[[int, int, int], float]:
    """``b(h, i, j)`` by brute force, with the parameters of an encoding."""
    config: Any = bias.config
    numbers = {name: parameter.tolist() for name, parameter in bias.named_parameters()}

    def network(x: float) -> list[float]:
        count = sum(name.startswith("network.weights") for name in numbers)
        weights = [numbers[f"network.weights.{n}"] for n in range(count)]
        biases = [numbers[f"network.biases.{n}"] for n in range(count)]
        return brute_bias.perceptron(x, weights, biases, getattr(config, "activation", "relu"))

    if config.name == "kerple":
        return lambda h, i, j: brute_bias.kerple(config.variant, numbers["r1"][h], numbers["r2"][h], i - j)
    if config.name == "sandwich":
        heads = bias.host.num_heads
        return lambda h, i, j: numbers["gate"][h] * brute_bias.sandwich(config.dim, config.base, h, heads, i, j)
    if config.name == "mlp":
        return lambda h, i, j: network(brute_bias.log_distance(i - j))[h]
    if config.name == "fire":
        length = numbers["threshold"][0] * config.length
        return lambda h, i, j: network(brute_bias.fire_argument(i, j, numbers["c"][0], length))[h]
    return lambda h, i, j: brute_bias.window(config.size, i - j)


def table(bias: BiasEncoding, query: list[int], key: list[int]) -> Tensor:
    """Brute force for all pairs: ``[1, h, q, k]``."""
    b = formula(bias)
    return torch.tensor([[[[b(h, i, j) for j in key] for i in query] for h in range(HEADS)]], dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_values(name: str, causal: bool) -> None:
    """All pairs, near and far, the key on either side; then the same in float32."""
    query, key = [0, 1, 5, 11, 12, 13, 40, 700, 131_071], [0, 1, 2, 4, 11, 12, 14, 39, 699, 131_000, 131_072]
    bias = made(CONFIGS[name], causal=causal)
    wanted = table(bias, query, key)
    at = torch.tensor([query]), torch.tensor([key])
    torch.testing.assert_close(bias.bias_at(*at, causal=causal).double(), wanted, rtol=1e-9, atol=1e-9)
    narrow = copy.deepcopy(bias).float()
    found = narrow.bias_at(*at, causal=causal)
    assert found.dtype == torch.float32
    finite = wanted.isfinite()
    size = wanted[finite].abs().max()
    assert ((found.double() - wanted)[finite].abs().max() / size) < 1e-5 if size else torch.equal(found, wanted.float())
    # many pairs of few distances take another way to the same numbers
    close = list(range(20))
    at = torch.tensor([close]), torch.tensor([close])
    torch.testing.assert_close(bias.bias_at(*at, causal=causal).double(), table(bias, close, close))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_attention(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel that runs the encoding, against softmax written out."""
    monkeypatch.setattr(toeplitz, "BLOCK", 7)
    bias = made(CONFIGS[name], causal=causal)
    call = tiny.make_call(biases=[bias], heads=HEADS, groups=HEADS, queries=21, causal=causal)
    wanted = brute.attention(
        call.query, call.key, call.value, call.scaling, formula(bias), lambda n, i, j: j <= i or not causal
    )
    names = {kernel for kernel in KERNELS if obstacle(kernel, call) is None}
    assert names == {"dense", "blockwise", "eager"} | (set() if name == "fire" else {"toeplitz", "flex"})
    for kernel in names:
        tolerance = 1e-5 if kernel == "flex" else 1e-9  # its table is float32
        found = KERNELS[kernel](call)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=lambda m, k=kernel: f"{k}: {m}")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("window", "fire")])
def test_gradient_through_the_toeplitz_kernel(name: str) -> None:
    bias = made(CONFIGS[name])
    grads = []
    for kernel in ("toeplitz", "eager"):
        bias.zero_grad()
        call = tiny.make_call(biases=[bias], heads=HEADS, groups=1, queries=30)
        KERNELS[kernel](call).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in bias.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() == dict(bias.named_parameters()).keys()
    for parameter, grad in grads[1].items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(grads[0][parameter], grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2])
def test_mlp_against_x_transformers(depth: int) -> None:
    torch.manual_seed(0)
    theirs = DynamicPositionBias(16, heads=HEADS, depth=depth, log_distance=True)
    ours = made(MlpConfig(width=16, layers=depth + 1, activation="silu"))
    linear = [module for module in theirs.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == depth + 1
    with torch.no_grad():
        for n, layer in enumerate(linear):
            ours.network.weights[n].copy_(layer.weight)
            ours.network.biases[n].copy_(layer.bias)
        expected = theirs(23, 31)  # 23 queries after 8 keys
        found = ours.bias_at(torch.arange(8, 31)[None], torch.arange(31)[None], causal=False)[0]
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


def test_kerple_power_of_one_is_alibi() -> None:
    ours = made(KerpleConfig("power"), heads=8)
    with torch.no_grad():
        ours.r1.copy_(torch.tensor(alibi_slopes(8)))
        ours.r2.fill_(1.0)
    distance = torch.arange(0, 3000, 7)
    torch.testing.assert_close(
        ours.bias(distance, causal=True), tiny.alibi(8).bias(distance, causal=True).double(), rtol=1e-9, atol=1e-6
    )


@pytest.mark.parametrize("variant", ["log", "power"])
def test_kerple_start_and_bounds(variant: str) -> None:
    """The authors' ranges; a parameter beyond its bound counts as the bound and still gets a gradient."""
    bias = get_encoding("kerple")(KerpleConfig(variant), tiny.shape(64))
    bias.start(keeps_native=False)
    high = {"log": 1.0, "power": 2.0}[variant]
    for parameter, top in ((bias.r1, 2.0), (bias.r2, high)):
        assert 0 <= parameter.min() < 0.2 * top
        assert 0.8 * top < parameter.max() <= top
    bias.start(keeps_native=True)
    assert bias.silent
    assert not bias.bias(torch.arange(9), causal=True).any()
    with torch.no_grad():
        bias.r1.fill_(-1.0)
        bias.r2.fill_(-1.0)
    distance = torch.arange(-4, 5)
    values = bias.bias(distance, causal=False)
    assert not values.any()
    values.sum().backward()
    assert torch.isfinite(bias.r1.grad).all()
    assert torch.isfinite(bias.r2.grad).all()
    with torch.no_grad():
        bias.r1.fill_(1.0)
    bias.zero_grad()
    bias.bias(distance, causal=False).sum().backward()
    assert (bias.r2.grad < 0).all()


@pytest.mark.parametrize("name", ["kerple", "fire", "mlp", "sandwich"])
def test_start_is_the_same_every_time_and_draws_no_random_numbers(name: str) -> None:
    states, numbers = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        bias = get_encoding(name)(get_encoding(name).Config(), tiny.shape())
        bias.start(keeps_native=True)
        states.append(torch.equal(before, torch.random.get_rng_state()))
        numbers.append(bias.state_dict())
        assert bias.silent
    assert all(states)
    assert all(torch.equal(numbers[0][key], numbers[1][key]) for key in numbers[0])


def test_sandwich_at_the_start() -> None:
    """The paper's bias where it replaces, and its shape: 0 at distance 0, falling at first."""
    bias = get_encoding("sandwich")(SandwichConfig(), tiny.shape(8))
    bias.start(keeps_native=False)
    values = bias.bias(bias.prepare(torch.arange(65), causal=True), causal=True)
    assert values[:, 0].abs().max() < 1e-6
    assert (values[:, 1:] < 0).all()
    assert (values[:, :4].diff() < 0).all()
    torch.testing.assert_close(values[0], values[7] * 8)  # 8/8 against 64/8
    with pytest.raises(ConfigError, match="dim=7 must be even"):
        SandwichConfig(7)


def test_fire_is_relative_up_to_its_threshold_only() -> None:
    bias = made(FireConfig(length=100))
    with torch.no_grad():
        bias.threshold.fill_(-1.0)  # used by its absolute value
    at = torch.arange(50)[None]
    near, shifted, far = (bias.bias_at(at + n, at + n, causal=True) for n in (0, 50, 5000))
    torch.testing.assert_close(near, shifted, rtol=1e-12, atol=1e-12)
    assert (near - far).abs().max() > 0.05


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_fire_table(scale: float) -> None:
    """The fast path stays within half a step of the table times the network's steepest slope."""
    torch.manual_seed(0)
    bias = made(FireConfig(), dtype=torch.float32)
    with torch.no_grad():
        bias.network.weights[0].mul_(scale)
        bias.c.fill_(0.1)
        bias.threshold.fill_(1.0)
    query, key = torch.arange(2000, 2300)[None], torch.arange(2300)[None]
    exact = copy.deepcopy(bias).double().bias_at(query, key, causal=True)
    with torch.no_grad():
        fast = bias.fast(torch.arange(2000 - 2299, 2300), causal=True)
        found = fast(query, key).double()
        x = torch.linspace(0, 1, 2**12 + 1, dtype=torch.float64)
        slope = copy.deepcopy(bias.network).double()(x).diff().abs().max() * 2**12
        again = fast(query[:, :9], key[:, :5])
    spread = exact.max() - exact.min()
    seen = key[:, None, :] <= query[:, :, None]  # of later keys nothing is promised
    error = (found - exact)[:, :, seen[0]].abs().max()
    assert (again - exact[:, :, :9, :5]).abs().max() <= error
    assert error <= 1.01 * slope / (2 * POINTS) + 1e-6 * spread
    assert error < 2e-5 * spread


def test_window_is_that_of_mistral() -> None:
    """A Mistral without a window, given ours, against the same Mistral with its own."""
    theirs = tiny.mistral(window=6)
    ours = tiny.mistral(window=6)
    ours.config.sliding_window = None
    ids = tiny.ids(2, 30)
    with torch.no_grad():
        open_ended = ours(ids).logits
        patch_model(ours, ["native", WindowConfig(6)])
        found, expected = ours(ids).logits, theirs(ids).logits
    assert (open_ended - expected).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("queries", "past"), [(40, 0), (9, 31), (1, 39)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_window_never_touches_what_it_cannot_reach(
    queries: int, past: int, causal: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far keys and values that are no numbers change nothing: the kernel leaves them out."""
    monkeypatch.setattr(toeplitz, "BLOCK", 8)
    mask = tiny.causal_mask(queries, past) if causal else torch.ones(1, 1, queries, queries + past, dtype=torch.bool)
    bias = made(WindowConfig(5), heads=4, causal=causal)
    call = tiny.make_call(
        biases=[bias, tiny.alibi(causal=causal)],
        queries=queries,
        past=past,
        causal=causal,
        mask=mask if masked else None,
        groups=2,
    )
    wanted = eager_attention(call)[0]
    torch.testing.assert_close(KERNELS["toeplitz"](call), wanted, rtol=1e-6, atol=1e-6)
    block = min(queries, 32 if masked else 8)  # masked blocks have 32 rows at least
    rows = slice(queries - block, queries)  # the last block
    first = past + queries - block - 4
    assert first > 0
    key, value = call.key.clone(), call.value.clone()
    key[:, :, :first], value[:, :, :first] = torch.nan, torch.nan
    found = KERNELS["toeplitz"](replace(call, key=key, value=value))
    torch.testing.assert_close(found[:, :, rows], wanted[:, :, rows], rtol=1e-6, atol=1e-6)


def test_window_with_a_learned_bias_trains() -> None:
    biases = [made(WindowConfig(5), heads=4), made(KerpleConfig(), heads=4)]
    grads = []
    for kernel in ("toeplitz", "eager"):
        biases[1].zero_grad()
        KERNELS[kernel](tiny.make_call(biases=biases, queries=30)).square().sum().backward()
        grads.append(biases[1].r1.grad.clone())
    assert torch.isfinite(grads[0]).all()
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_window_as_long_as_the_model_is_an_identity() -> None:
    ids = tiny.ids(1, tiny.LENGTH)
    model = tiny.llama()
    with torch.no_grad():
        before = model(ids).logits
        patch_model(model, ["native", WindowConfig(tiny.LENGTH)])
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)


def test_networks_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, through a network and through what comes before it, as in one piece."""
    bias = made(FireConfig(width=6, length=9))
    found = []
    for chunk in (2**18, 50):
        monkeypatch.setattr(mlp, "CHUNK", chunk)
        bias.zero_grad()
        at = torch.arange(17)[None]
        values = bias.bias_at(at, at, causal=True)
        (values * torch.linspace(-1, 1, values.numel(), dtype=torch.float64).view(values.shape)).sum().backward()
        found.append([values.detach(), *[p.grad.clone() for p in bias.parameters()]])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_networks_of_half_precision_parameters_at_far_positions() -> None:
    for config in (MlpConfig(), FireConfig()):
        bias = made(config, dtype=torch.bfloat16)
        at = torch.tensor([[0, 131_071, 131_072]])
        found = bias.bias_at(at, at, causal=True)
        exact = copy.deepcopy(bias).double().bias_at(at, at, causal=True)
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() / exact.abs().max() < 1e-5
