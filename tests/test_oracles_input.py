"""The input encodings against their formulas in float64, torch's own layers, and where they stand in a model."""

from __future__ import annotations

import warnings
from typing import Any

import brute_input as brute
import pytest
import torch
from matrix import HOSTS, PAD, distance, logits, tokens
from torch import Tensor

from pe_retrofit import (
    ConvConfig,
    HostShape,
    IntegerConfig,
    NormalizedConfig,
    RandomConfig,
    RecurrentConfig,
    UnsupportedError,
    get_encoding,
    patch_model,
    status,
)
from pe_retrofit.encodings.random_ import uniform
from pe_retrofit.positions import resolve
from pe_retrofit.sites.input import text_lengths
from pe_retrofit.sites.local import neighbours

WIDTH = 6
EXACT = 1e-12


def made(config: Any, *, causal: bool = True, width: int = WIDTH) -> Any:
    """An encoding on its own in float64, with random parameters."""
    module = get_encoding(config.name)(config, HostShape(2, 4, 4, width, 32, causal)).double()  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def random_states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def first_tap(kernel: int, causal: bool) -> int:
    return -(kernel - 1) if causal else -(kernel // 2)


KERNELS = [(kernel, True) for kernel in (2, 3, 5)] + [(kernel, False) for kernel in (3, 5)]


@pytest.mark.parametrize(("kernel", "causal"), KERNELS)
@torch.no_grad()
def test_conv_is_the_formula_and_torchs_convolution(kernel: int, causal: bool) -> None:
    module, x = made(ConvConfig(kernel), causal=causal), random_states(2, 9, WIDTH)
    found, first = module(x), first_tap(kernel, causal)
    for row in range(2):
        wanted = brute.conv(x[row], module.weight, first, range(9), [True] * 9)
        assert distance(found[row], wanted) < EXACT
    padded = torch.nn.functional.pad(x.transpose(1, 2), (-first, kernel - 1 + first))
    wanted = torch.nn.functional.conv1d(padded, module.weight[:, None], groups=WIDTH).transpose(1, 2)
    assert distance(found, x + wanted) < EXACT


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_recurrent_is_the_formula_and_torchs_gru(causal: bool) -> None:
    window, state, n = 4, 3, 8
    module, x = made(RecurrentConfig(window, state), causal=causal), random_states(2, n, WIDTH)
    found = module(x)
    for row in range(2):
        wanted = brute.recurrent(x[row], dict(module.named_parameters()), window, range(n), [True] * n, causal=causal)
        assert distance(found[row], wanted) < EXACT
    z = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    read = []
    for way in range(1 if causal else 2):
        gru = torch.nn.GRU(WIDTH, state, batch_first=True).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{name}_l0").copy_(getattr(module, name)[way])
        windows = [z[:, max(0, i - window + 1) : i + 1] if way == 0 else z[:, i : i + window].flip(1) for i in range(n)]
        read.append(torch.stack([gru(part)[1][0] for part in windows], dim=1))
    wanted = x + module.gate * torch.cat(read, dim=-1) @ module.out.t()
    assert distance(found, wanted) < EXACT


LAYOUTS = {
    "left padding": ([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    "left padding counted on": (list(range(12)), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    "right padding": (list(range(12)), [1] * 8 + [0] * 4),
    "a hole": (list(range(12)), [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1]),
    "packed": ([0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1, 2], None),
    "gaps": ([0, 1, 5, 6, 7, 20, 22, 23, 24, 25, 40, 41], [1] * 12),
    "gaps that would line up": ([0, 1, 2, 3, 0, 5, 6, 0, 8, 9, 10, 0], [1] * 12),
    "far away": (list(range(131072 - 12, 131072)), [1] * 12),
}


def laid_out(name: str) -> tuple[Any, list[int], list[bool]]:
    """Positions of a pass over twelve tokens, and what they are token by token."""
    ids, mask = LAYOUTS[name]
    positions = resolve(
        query_length=12,
        batch_size=1,
        device=torch.device("cpu"),
        position_ids=torch.tensor([ids]),
        attention_mask=None if mask is None else torch.tensor([mask]),
        packs_by_position=True,
    )
    return positions, ids, [True] * 12 if mask is None else [bool(m) for m in mask]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_only_tokens_of_the_same_text_count(layout: str, causal: bool) -> None:
    positions, ids, real = laid_out(layout)
    x = random_states(1, 12, WIDTH)
    kept = [i for i in range(12) if real[i]]  # what a padding token gets is nobody's business
    module = made(ConvConfig(5), causal=causal)
    found = module(x, None, neighbours(positions, *module.sides))[0]
    wanted = brute.conv(x[0], module.weight, first_tap(5, causal), ids, real)
    assert distance(found[kept], wanted[kept]) < EXACT
    module = made(RecurrentConfig(4, 3), causal=causal)
    found = module(x, None, neighbours(positions, *module.sides))[0]
    wanted = brute.recurrent(x[0], dict(module.named_parameters()), 4, ids, real, causal=causal)
    assert distance(found[kept], wanted[kept]) < EXACT


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_normalized_counts_the_real_tokens_of_each_text(layout: str) -> None:
    positions, ids, real = laid_out(layout)
    module, kept = made(NormalizedConfig()), [i for i in range(12) if real[i]]
    found = module(positions.query, text_lengths(positions))[0]
    wanted = brute.alternating(brute.shares(ids, real), WIDTH, module.gate.item())
    assert distance(found[kept], wanted[kept]) < 1e-7  # shares are float32


@torch.no_grad()
def test_normalized_of_one_token_is_zero() -> None:
    module = made(NormalizedConfig())
    assert not module(torch.tensor([[0]])).any()
    assert not module(torch.tensor([[0]]), torch.tensor([[1]])).any()
    assert distance(module(torch.arange(5)), brute.alternating([0, 0.25, 0.5, 0.75, 1], WIDTH, module.gate)) < 1e-7


@torch.no_grad()
def test_integer_is_exact_wherever_it_stands() -> None:
    module, ids = made(IntegerConfig()), [0, 1, 2, 255, 256, 257, 131071, 2**23 + 1]
    assert distance(module(torch.tensor(ids)), brute.alternating(ids, WIDTH, module.gate.item())) < EXACT
    rough = module.bfloat16()
    assert rough(torch.tensor(ids)).dtype == torch.bfloat16


def test_random_is_a_function_of_seed_and_position() -> None:
    ids = [0, 1, 2, 77, 131071, 2**31, 2**32 - 1]
    for seed in (0, 1, 2**31 - 1):
        found = uniform(torch.tensor(ids), seed)
        assert found.dtype == torch.float32
        assert found.tolist() == [brute.hashed(i, seed) for i in ids]
    module = made(RandomConfig(seed=4))
    wanted = brute.alternating([brute.hashed(i, 4) for i in ids], WIDTH, module.gate.item())
    assert distance(module(torch.tensor(ids)).detach(), wanted) < EXACT


def test_random_is_uniform_and_has_no_memory() -> None:
    values = uniform(torch.arange(2**16), 0).double()
    assert values.abs().max() < 1
    counts = torch.histc(values, bins=64, min=-1, max=1)
    assert ((counts - 1024).square() / 1024).sum() < 150  # chi-square with 63 degrees of freedom
    for lag in (1, 2, 64, 1024):
        assert abs((values[lag:] * values[:-lag]).mean() * 3) < 0.02
    other = uniform(torch.arange(2**16), 1).double()
    assert abs((values * other).mean() * 3) < 0.02


def at_first_layer(model: Any, **inputs: Any) -> Tensor:
    """What the first layer is given."""
    base, seen = model.base_model, []
    layers = base.layers if hasattr(base, "layers") else base.encoder.layer
    handle = layers[0].register_forward_pre_hook(
        lambda m, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    try:
        logits(model, **inputs)
    finally:
        handle.remove()
    return seen[0]


SPECS = [
    (ConvConfig(3), lambda x, m, p, r, c: brute.conv(x, m.weight, first_tap(3, c), p, r)),
    (
        RecurrentConfig(4, 5),
        lambda x, m, p, r, c: brute.recurrent(x, dict(m.named_parameters()), 4, p, r, causal=c),
    ),
    (IntegerConfig(), lambda x, m, p, r, c: x + brute.alternating(p, x.shape[1], m.gate.item())),
    (NormalizedConfig(), lambda x, m, p, r, c: x + brute.alternating(brute.shares(p, r), x.shape[1], m.gate.item())),
    (
        RandomConfig(),
        lambda x, m, p, r, c: x + brute.alternating([brute.hashed(i, 0) for i in p], x.shape[1], m.gate.item()),
    ),
]


@pytest.mark.filterwarnings("ignore:.*is for teaching and diagnosis")
@pytest.mark.parametrize(("config", "formula"), SPECS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("native", [True, False], ids=["on top", "instead"])
@torch.no_grad()
def test_what_reaches_the_first_layer_of_a_decoder(config: Any, formula: Any, native: bool) -> None:
    model, ids = HOSTS["llama"].fresh().double(), tokens(2, 12)
    ids[0, :4] = PAD
    mask = (ids != PAD).long()
    patch_model(model, ["native", config] if native else config)
    (module,) = model.base_model.position_encoding.children()
    for parameter in module.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    found = at_first_layer(model, ids=ids, attention_mask=mask, use_cache=False)
    embedded = model.get_input_embeddings()(ids)
    for row in range(2):
        real = [bool(m) for m in mask[row]]
        positions = (mask[row].cumsum(0) - 1).clamp_min(0).tolist()
        wanted, start = formula(embedded[row], module, positions, real, True), 4 if row == 0 else 0
        assert distance(found[row, start:], wanted[start:]) < 1e-6
        assert distance(found[row, start:], embedded[row, start:]) > 1e-2


@pytest.mark.filterwarnings("ignore:.*is for teaching and diagnosis")
@pytest.mark.parametrize(("config", "formula"), SPECS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("name", ["bert", "roberta"])
@torch.no_grad()
def test_where_it_stands_in_an_encoder(name: str, config: Any, formula: Any) -> None:
    """Convolution and recurrence: after the embedding block, without its positions; the others: inside, as a table."""
    model, ids = HOSTS[name].fresh().double(), tokens(2, 12)
    ids[0, 8:] = PAD
    mask = (ids != PAD).long()
    patch_model(model, config)
    block, local = model.base_model.embeddings, config.name in ("conv", "recurrent")
    (module,) = (model.base_model if local else block.position_embeddings).position_encoding.children()
    for parameter in module.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    found = at_first_layer(model, ids=ids, attention_mask=mask)
    plain = block.word_embeddings(ids) + block.token_type_embeddings(torch.zeros_like(ids))
    for row in range(2):
        real, end = [bool(m) for m in mask[row]], int(mask[row].sum())
        if local:
            wanted = formula(block.LayerNorm(plain[row]), module, range(12), real, False)
        else:
            wanted = block.LayerNorm(formula(plain[row], module, range(12), real, False))
        assert distance(found[row, :end], wanted[:end]) < 1e-6


def test_even_kernels_have_no_middle() -> None:
    model = HOSTS["bert"].fresh()
    with pytest.raises(UnsupportedError, match=r"kernel_size=4 has no middle.*Use an odd one, such as 5\."):
        patch_model(model, "conv", kernel_size=4)
    patch_model(HOSTS["llama"].fresh(), "conv", kernel_size=4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("integer", "not bounded.*does not extrapolate"),
        ("normalized", "not consistent across lengths.*nor relative"),
        ("random", "not relative and has no order"),
    ],
)
@pytest.mark.parametrize("host", ["llama", "bert"])
def test_baselines_say_what_they_break(host: str, name: str, words: str) -> None:
    with pytest.warns(UserWarning, match=f"'{name}' is for teaching and diagnosis.*{words}") as caught:
        patch_model(HOSTS[host].fresh(), name)
    assert caught[0].filename == __file__, "the warning points at the call"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch_model(HOSTS[host].fresh(), "conv")


@pytest.mark.filterwarnings("ignore:.*is for teaching and diagnosis")
@pytest.mark.parametrize("host", ["llama", "gpt_neox", "bert_decoder"])
def test_normalized_reads_whole_texts_only(host: str) -> None:
    model, ids = patch_model(HOSTS[host].fresh().double(), "normalized"), tokens(1, 12)
    assert "use_cache=False" in status(model).supports["caches"]
    assert "static" in status(patch_model(HOSTS[host].fresh(), "random")).supports["caches"]
    with torch.no_grad():
        prefill = model(ids, use_cache=True)
        with pytest.raises(UnsupportedError, match=r"'normalized' divides by the length.*use_cache=False"):
            model(ids[:, :1], past_key_values=prefill.past_key_values)
    assert distance(prefill.logits, logits(model, ids, use_cache=False)) < EXACT
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD}
    with pytest.raises(UnsupportedError, match="use_cache=False"):
        model.generate(ids, **options)
    assert model.generate(ids, use_cache=False, **options).shape == (1, 17)


@pytest.mark.filterwarnings("ignore:.*is for teaching and diagnosis")
@pytest.mark.parametrize("name", ["integer", "normalized", "random"])
@pytest.mark.parametrize("host", ["llama", "bert"])
def test_baselines_start_at_the_size_of_the_embeddings(host: str, name: str) -> None:
    model = patch_model(HOSTS[host].fresh(), name, scale=0.5)
    rms = model.get_input_embeddings().weight.square().mean().sqrt().item()
    (gate,) = [p for n, p in model.named_parameters() if n.endswith(f"position_encoding.{name}.gate")]
    assert gate.item() == pytest.approx(0.5 * rms, rel=1e-5)


def test_recurrence_starts_the_same_every_time_and_disturbs_no_random_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = patch_model(HOSTS["llama"].fresh(), "recurrent").state_dict()
    torch.manual_seed(1)
    second = patch_model(HOSTS["llama"].fresh(), "recurrent")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in second.state_dict().items():
        assert torch.equal(value, first[name]), name
    parts = dict(second.base_model.position_encoding.recurrent.named_parameters())
    assert all(p.any() for n, p in parts.items() if n != "gate")
    assert not parts["gate"].any()
