"""The table of capabilities is true: every cell against a small model that is patched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from matrix import ENCODINGS, HOSTS, cached_logits, distance, learned_parameters, logits, tokens
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore

from pe_retrofit import ConfigError, UnsupportedError, get_encoding, list_encodings, patch_model, status
from pe_retrofit.attention import select
from pe_retrofit.capabilities import BEGIN, OWN, Capability, capabilities, capability, markdown
from pe_retrofit.installing.strength import set_strength
from pe_retrofit.sites import HybridEncoding

ROWS = {row.name: row for row in capabilities()}
FAMILIES = {"llama": "llama", "gpt_neox": "gpt_neox_serial", "bert": "bert"}
"""Family -> host whose whole heads rotate."""

every = pytest.mark.parametrize("name", list_encodings())


def patched(name: str, host: str, model: Any = None) -> Any:
    """A model with an encoding in all layers, with options small enough to act; learned tables hold random values."""
    model = HOSTS[host].fresh() if model is None else model
    if name == "rope" and HOSTS[host].rotates:  # which it has; another base is a change
        return patch_model(model, name, theta=500.0)
    case = next(case for case in ENCODINGS.values() if case.name == name)
    assert case.layers is None
    return case.patch(model)


def carrying(want: Any = lambda row: True, families: tuple[str, ...] = tuple(FAMILIES)) -> Any:
    """Parameters: encodings and families that carry them."""
    pairs = [(n, f) for n, row in ROWS.items() for f in families if row.families[f] and want(row)]
    return pytest.mark.parametrize(("name", "family"), pairs)


def test_a_row_for_every_encoding() -> None:
    assert list(ROWS) == list_encodings()
    assert json.loads(json.dumps([row.to_dict() for row in ROWS.values()]))[0]["name"] == "alibi"
    assert markdown().count("\n") == len(ROWS) + 1
    assert BEGIN not in markdown()
    known = {*select.KERNELS, "fused", OWN}
    assert all(set(kernels) <= known for row in ROWS.values() for kernels in row.kernels.values())


@every
@pytest.mark.parametrize("family", FAMILIES)
def test_families(name: str, family: str) -> None:
    """A yes is patched, a no is refused with a sentence."""
    if ROWS[name].families[family]:
        model = patched(name, FAMILIES[family])
        assert status(model).patched
        assert torch.isfinite(logits(model, tokens(1, 20))).all()
        return
    with pytest.raises(UnsupportedError, match=r"causal attention only|has none") as refused:
        patched(name, FAMILIES[family])
    assert str(refused.value).endswith(".")


@every
def test_causal_and_bidirectional_attention(name: str) -> None:
    """On an encoder, and on a decoder of the same kind, which may lack a rotation but never the direction."""
    row = ROWS[name]
    assert row.causal
    if not row.bidirectional:
        with pytest.raises(UnsupportedError, match="causal attention only"):
            patched(name, "bert")
    try:
        patched(name, "bert_decoder")
    except (UnsupportedError, ConfigError) as error:
        words = str(error)
    else:
        words = ""
    assert "causal attention only" not in words
    if words:
        assert "has none" in words or is_hybrid(name), words


def is_hybrid(name: str) -> bool:
    """Whether an encoding differs from layer to layer, which a position table for all of them cannot carry."""
    return issubclass(get_encoding(name), HybridEncoding)


@carrying(families=("llama", "gpt_neox"))
def test_cache(name: str, family: str) -> None:
    """Yes: chunks and single tokens through a cache are one pass; one pass: the second call is refused."""
    model = patched(name, FAMILIES[family])
    ids = tokens(1, 40)
    cache = hf.DynamicCache(config=model.config)
    if ROWS[name].cache == "one pass":
        with pytest.raises(UnsupportedError, match="in one pass, with use_cache=False"):
            cached_logits(model, ids, (30, 1, 9), cache)
        return
    assert ROWS[name].cache == "yes"
    assert distance(cached_logits(model, ids, (30, 1, 1, 7, 1), cache), logits(model, ids, use_cache=False)) < 1e-4


@carrying()
def test_kernels(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill runs on the first kernel of the row, and status says the same order."""
    kernels = ROWS[name].kernels["cpu"]
    if family == "bert":  # the row is of decoders, which rotate themselves, and attend causally
        kernels = ["fused"] if name == "rope" else [kernel for kernel in kernels if kernel != "separable"]
    model, seen = patched(name, FAMILIES[family]), set()

    def noting(kernel: str, function: Any) -> Any:
        return lambda call: (seen.add(kernel), function(call))[1]

    for kernel, function in select.KERNELS.items():
        monkeypatch.setitem(select.KERNELS, kernel, noting(kernel, function))
    monkeypatch.setattr(select, "fused_attention", noting("fused", select.fused_attention))
    logits(model, tokens(1, 30), **({} if family == "bert" else {"use_cache": False}))
    if is_hybrid(name):
        own = {"fused", "toeplitz"} & set(kernels)
        assert seen <= {*kernels, "fused"}
        assert own & seen
        return
    assert seen == (set() if kernels == [OWN] else {kernels[0]})
    said = status(model).patches[0].kernel
    wanted = {OWN: "the model's own", "fused": "fused"}.get(kernels[0], f"auto on cpu: {', else '.join(kernels)}")
    assert said == wanted


@carrying()
def test_saved(name: str, family: str, tmp_path: Path) -> None:
    model = patched(name, FAMILIES[family])
    model.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())["model_type"] != "pe_retrofit"
    wanted = {"plain": True, "pe_retrofit": False, "plain (encoders)": family == "bert"}
    wanted["plain (decoders)"] = family != "bert"
    assert plain is wanted[ROWS[name].saved]


@carrying(families=("llama",))
def test_learned(name: str, family: str) -> None:
    """Parameters of its own are there or not, and a gradient reaches each of them."""
    model = patched(name, FAMILIES[family])
    own = learned_parameters(model)
    assert bool(own) is ROWS[name].learned
    ids = tokens(2, 40)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for _, p in own if p.numel())


@contextmanager
def process(rank: int) -> Iterator[Any]:
    """The mesh of two processes as one of them sees it; what it hears from the other is what it said itself."""
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        distributed.destroy_process_group()


def half(model: Any, mesh: Any) -> Any:
    """What tensor parallelism gives a process: half of the heads of every layer."""
    plan = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), ColwiseParallel()), "o_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.self_attn, mesh, plan, src_data_rank=None)
        assert layer.self_attn.q_proj.weight.to_local().shape[0] * 2 == layer.self_attn.q_proj.weight.shape[0]
    return model


def first_attention(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Output of the first layer's attention."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    logits(model, ids, use_cache=False)
    handle.remove()
    return seen[0]


@carrying(families=("llama",))
def test_tensor_parallelism(name: str, family: str) -> None:
    """Yes: two halves of the heads, run apart, add up to the whole. No: each of them is refused."""

    def fresh() -> Any:
        return patched(name, "llama", HOSTS["llama"].fresh(num_key_value_heads=4))

    ids = tokens(1, 40)
    said = status(fresh()).supports["tensor parallelism"]
    assert said == ("as the model does" if ROWS[name].tp else "refused")
    assert ROWS[name].tp
    parts = []
    for rank in (0, 1):
        with process(rank) as mesh:
            parts.append(first_attention(half(fresh(), mesh), ids))
    whole = first_attention(fresh(), ids)
    assert distance(sum(parts), whole) < 1e-5  # type: ignore[arg-type]
    assert min(distance(2 * part, whole) for part in parts) > 1e-3, "the halves differ"


@pytest.mark.parametrize("strength", [0.0, 0.4])
@pytest.mark.parametrize("name", ["alibi", "t5", "shaw", "fox", "fope", "deberta", "cope", "nope", "xpos"])
def test_tensor_parallelism_while_fading(name: str, strength: float) -> None:
    """A patch that is partly in force, or not at all, is split the same."""

    def fresh() -> Any:
        model = patched(name, "llama", HOSTS["llama"].fresh(num_key_value_heads=4))
        set_strength(model, strength)
        return model

    ids, parts = tokens(1, 40), []
    for rank in (0, 1):
        with process(rank) as mesh:
            parts.append(first_attention(half(fresh(), mesh), ids))
    assert distance(sum(parts), first_attention(fresh(), ids)) < 1e-5  # type: ignore[arg-type]


def test_gains_of_queries_are_split() -> None:
    def fresh() -> Any:
        model = patch_model(HOSTS["llama"].fresh(num_key_value_heads=4), "nope", gains=True)
        with torch.no_grad():
            for _, parameter in learned_parameters(model):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return model

    ids, parts = tokens(1, 40), []
    for rank in (0, 1):
        with process(rank) as mesh:
            parts.append(first_attention(half(fresh(), mesh), ids))
    assert distance(sum(parts), first_attention(fresh(), ids)) < 1e-5  # type: ignore[arg-type]


def test_scores_that_do_not_say_what_is_per_head_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_encoding("fox"), "per_head", None)
    model = patched("fox", "llama", HOSTS["llama"].fresh(num_key_value_heads=4))
    assert not capability("fox").tp
    assert status(model).supports["tensor parallelism"] == "refused"
    with process(0) as mesh, pytest.raises(UnsupportedError, match="does not say which of its parameters"):
        logits(half(model, mesh), tokens(1, 8), use_cache=False)


@carrying(families=("llama",))
def test_context_parallelism(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It puts another function in the place of PyTorch's attention: refused, or the one that runs."""
    model, ids, calls = patched(name, "llama"), tokens(1, 40), []
    expected, original = logits(model, ids, use_cache=False), functional.scaled_dot_product_attention

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", other)
    said = status(model).supports["context parallelism"]
    assert said == ("as the model does" if ROWS[name].cp else "refused")
    if not ROWS[name].cp:
        with pytest.raises(UnsupportedError, match="as context parallelism does"):
            logits(model, ids, use_cache=False)
        assert not calls
        return
    assert torch.equal(logits(model, ids, use_cache=False), expected)
    assert len(calls) == len(model.model.layers)


@every
def test_identity_is_what_the_row_says(name: str) -> None:
    """Encodings that promise an identity on top of the native encoding give one; an empty promise is none."""
    row: Capability = ROWS[name]
    model = HOSTS["llama"].fresh()
    ids = tokens(1, 32)
    before = logits(model, ids)
    if "on top of the native encoding, at the start" in row.identity:
        patch_model(model, ["native", name])
        assert torch.equal(logits(model, ids), before)
    elif not row.identity:
        assert not torch.equal(logits(patched(name, "llama"), ids), before)
