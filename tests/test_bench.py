"""The bench measures what it says: the peers compute the same attention, and every row has its ratio."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from pe_retrofit import status
from pe_retrofit.bench import BenchOptions, run_bench
from pe_retrofit.bench.measure import measure
from pe_retrofit.bench.report import save
from pe_retrofit.bench.tasks import attention_calls, tokens, training_step
from pe_retrofit.bench.variants import DENSE, EAGER, STOCK, variant
from pe_retrofit.cli.app import build

LENGTH = 48


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def outputs(model: LlamaForCausalLM, name: str) -> torch.Tensor:
    ids = tokens(model, LENGTH)
    with torch.no_grad(), variant(model, name, LENGTH) as kwargs:
        return model.model(ids, use_cache=False, **kwargs).last_hidden_state


@pytest.mark.parametrize("peer", [DENSE, EAGER])
def test_peers_compute_the_same_as_alibi_on_top_of_the_rotation(model: LlamaForCausalLM, peer: str) -> None:
    ours, theirs, stock = outputs(model, "native+alibi"), outputs(model, peer), outputs(model, STOCK)
    assert (ours - theirs).abs().max() < 1e-4
    assert (stock - theirs).abs().max() > 1e-2


def test_variants_leave_the_model_as_it_was(model: LlamaForCausalLM) -> None:
    before = outputs(model, STOCK)
    for name in ("alibi", "t5", DENSE, EAGER):
        outputs(model, name)
    assert torch.equal(outputs(model, STOCK), before)
    assert not status(model).patched


def test_learned_tables_are_not_measured_at_zero(model: LlamaForCausalLM) -> None:
    assert (outputs(model, "native+t5") - outputs(model, STOCK)).abs().max() > 1e-3


def test_training_step_leaves_no_adapter_and_no_gradient(model: LlamaForCausalLM) -> None:
    pytest.importorskip("peft")
    flags = [p.requires_grad for p in model.parameters()]
    training_step(model, "t5", LENGTH)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_attention_alone_agrees_between_alibi_and_the_dense_ways(model: LlamaForCausalLM) -> None:
    calls = attention_calls(model, LENGTH, torch.float32)
    results = {name: call.run(call.prepare()) for name, call in calls.items()}
    ours = results["alibi"][0].transpose(1, 2)
    assert (ours - results[DENSE].transpose(1, 2)).abs().max() < 1e-4
    assert (ours - results[EAGER]).abs().max() < 1e-4
    assert (ours - results["causal sdpa"]).abs().max() > 1e-2


def test_memory_of_a_call_is_seen(model: LlamaForCausalLM) -> None:
    measured = measure(lambda: torch.ones(64 * 2**20, dtype=torch.uint8).numel(), torch.device("cpu"))
    if measured.extra_bytes is None:
        pytest.skip("no /proc/self/clear_refs on this platform")
    assert 60 * 2**20 < measured.extra_bytes < 200 * 2**20


def test_results_have_a_ratio_for_every_row_and_are_saved(model: LlamaForCausalLM, tmp_path) -> None:
    options = BenchOptions(
        encodings=["alibi", "native+t5"],
        lengths=[32],
        train_lengths=[32],
        peer_length=32,
        attention_length=32,
        rounds=1,
        steps=2,
    )
    results = run_bench(model, options, model_name="tiny")
    seen = {(row["task"], row["variant"]) for row in results["rows"]}
    assert {("prefill", DENSE), ("prefill", EAGER), ("decode", "alibi"), ("train", "native+t5")} <= seen
    for row in results["rows"]:
        assert row["status"] == "ok", row
        assert row["time_ratio"] > 0
    paths = save(results, tmp_path)
    assert json.loads(paths[0].read_text())["rows"] == json.loads(json.dumps(results["rows"]))
    assert all(path.stat().st_size > 0 for path in paths)
    assert len(paths) == 5


def test_a_variant_that_cannot_run_is_reported_and_the_others_go_on(model: LlamaForCausalLM) -> None:
    options = BenchOptions(["learned", "rope"], [32], [], 0, 0, 1, 0)
    rows = {row["variant"]: row for row in run_bench(model, options, model_name="tiny")["rows"]}
    assert rows["learned"]["status"] == "ok"
    assert rows["rope"]["status"].startswith("error: UnsupportedError")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--encodings", "alibbi"], "alibi"),
        (["--lengths", "huge"], "--lengths"),
        (["--lengths", "0"], "--lengths"),
        (["--dtype", "int8"], "bfloat16"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(arguments: list[str], word: str) -> None:
    result = CliRunner().invoke(build(), ["bench", *arguments])
    assert result.exit_code == 2
    assert word in result.output
