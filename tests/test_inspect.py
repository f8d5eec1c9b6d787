"""Inspecting a model: its attention against transformers' own, statistics and drift by brute force, planted faults."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from bytetokens import ByteTokenizer
from tiny import bert, llama, neox, patched
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from pe_retrofit import ConfigError, UnsupportedError, patch_model, texts
from pe_retrofit.attention.interface import OBSERVER
from pe_retrofit.cli.app import build
from pe_retrofit.evaluation import inspect_model
from pe_retrofit.evaluation.inspecting import drift as drifting
from pe_retrofit.evaluation.inspecting import observing
from pe_retrofit.evaluation.inspecting.distances import bin_edges, by_bin, diagonal_sums
from pe_retrofit.evaluation.inspecting.flags import RULES, flags
from pe_retrofit.evaluation.inspecting.heads import LayerStatistics, gathered
from pe_retrofit.evaluation.inspecting.look import look
from pe_retrofit.evaluation.metrics import repetition
from pe_retrofit.evaluation.subject import Subject
from pe_retrofit.likelihood import hidden_states
from pe_retrofit.patchers.family import find_host
from pe_retrofit.progress import Work

SMALL = 2**9
"""Attention weights at once: few enough for several blocks of queries."""

BYTES: dict[str, Any] = {"vocab_size": 260, "pad_token_id": 259, "bos_token_id": 256, "eos_token_id": 257}


def byte_llama(**more: Any) -> Any:
    return llama(**{**BYTES, "eos_token_id": None, "max_position_embeddings": 128, **more})


def byte_bert(**more: Any) -> Any:
    return bert(**{**BYTES, **more})


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 61, (1, count), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "BUDGET", SMALL)


def watched(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    """Weights and visible pairs ``[h, L, L]`` and ``[L, L]`` of each layer, put together from the blocks."""
    host, n = find_host(model), ids.shape[1]
    found: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = [[] for _ in host.layers]

    def keep(layer: int) -> Any:
        return lambda call: found[layer].extend(observing.blocks(call))

    with observing.observed(model, [keep(i) for i in range(len(host.layers))]):
        hidden_states(model, ids)
    weights, visible = [], []
    for parts in found:
        whole = torch.full((parts[0][1].shape[0], n, n), math.nan)
        pairs = torch.zeros(n, n, dtype=torch.bool)
        for first, block, seen in parts:
            q, k = seen.shape
            assert bool(whole[:, first : first + q].isnan().all()), "a query came twice"
            whole[:, first : first + q] = 0
            whole[:, first : first + q, :k] = block
            pairs[first : first + q, :k] = seen
        assert not bool(whole.isnan().any()), "a query is missing"
        weights.append(whole)
        visible.append(pairs)
    return weights, visible, max(len(parts) for parts in found)


def expected(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Attention as transformers reports it."""
    if find_host(model).config._attn_implementation != "pe_retrofit":
        model.set_attn_implementation("eager")
    with torch.no_grad():
        return [layer[0] for layer in model(ids, output_attentions=True).attentions]


DECODERS = {"llama": llama, "neox": neox}
SPECS: dict[str, tuple[Any, dict[str, Any]]] = {
    "unpatched": (None, {}),
    "alibi": ("alibi", {}),
    "t5": ("t5", {}),
    "shaw": ("shaw", {"values": True}),
    "self_extend": ("self_extend", {"window": 12, "group": 4}),
    "yarn": ("yarn", {"factor": 2.0}),
    "nope": ("nope", {}),
    "window": (["native", "window"], {}),
}


def made(build: Any, spec: Any, options: dict[str, Any]) -> Any:
    if spec is None:
        return build()
    return (
        patched(["native", {"name": "window", "size": 7}], build)
        if isinstance(spec, list)
        else patched(spec, build, **options)
    )


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("host", [*DECODERS, "bert"])
@pytest.mark.parametrize("name", SPECS)
def test_the_weights_are_those_of_output_attentions(host: str, name: str) -> None:
    if host == "bert" and name in ("self_extend", "yarn"):
        pytest.skip("for rotations")
    spec, options = SPECS[name]
    options = {"allow_bag_of_words": True} if (host, name) == ("bert", "nope") else options
    length = 32 if host == "bert" else 48
    model, ids = made({**DECODERS, "bert": bert}[host], spec, options), tokens(length)
    weights, visible, count = watched(model, ids)
    assert count > 1
    for mine, pairs, theirs in zip(weights, visible, expected(model, ids), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4)
        assert not bool(theirs[:, ~pairs].any()), "attention on a pair said to be unseen"
    if name == "window":
        i, j = torch.arange(length)[:, None], torch.arange(length)
        near = (i - j).abs() < 7 if host == "bert" else ((i - j) >= 0) & ((i - j) < 7)
        assert all(torch.equal(pairs, near) for pairs in visible)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    "spec",
    [
        "alibi",
        "nope",
        "cope",
        "fox",
        "shaw",
        "xpos",
        {"name": "dynamic", "factor": 2.0},
        {"name": "self_extend", "window": 12, "group": 4},
        {"name": "lm_infinite", "window": 12, "sinks": 2},
    ],
    ids=lambda spec: spec if isinstance(spec, str) else spec["name"],
)
def test_the_weights_times_the_values_are_what_the_layers_put_out(spec: Any) -> None:
    options = {k: v for k, v in spec.items() if k != "name"} if isinstance(spec, dict) else {}
    model = patched(spec["name"] if options else spec, llama, **options)
    ids, held = tokens(56), {}
    for i, attention in enumerate(find_host(model).attentions):
        attention.v_proj.register_forward_hook(lambda m, a, out, i=i: held.__setitem__(("v", i), out))
        attention.o_proj.register_forward_pre_hook(lambda m, a, i=i: held.__setitem__(("o", i), a[0]))
    weights, _, count = watched(model, ids)
    assert count > 1
    for i, mine in enumerate(weights):
        value = held["v", i].view(56, 2, 8).transpose(0, 1).repeat_interleave(2, 0)
        torch.testing.assert_close(
            (mine @ value).transpose(0, 1).reshape(1, 56, 32), held["o", i], atol=1e-4, rtol=1e-3
        )


def test_half_precision_is_added_up_in_float32() -> None:
    model = patched("alibi", llama).to(torch.bfloat16)
    weights, _, _ = watched(model, tokens(40))
    assert all(w.sum(-1).sub(1).abs().max() < 1e-5 for w in weights)


def test_diagonal_sums_by_brute_force() -> None:
    for first, q, k, length in ((0, 5, 5, 5), (3, 4, 7, 9), (2, 3, 9, 9), (0, 2, 9, 9), (6, 1, 7, 7)):
        block = torch.rand(2, q, k)
        found = torch.zeros(2, length)
        for i in range(q):
            for j in range(k):
                found[:, abs(first + i - j)] += block[:, i, j]
        torch.testing.assert_close(diagonal_sums(block, first, length), found)


def test_bins_cover_every_distance_once() -> None:
    for length in (1, 2, 5, 16, 17, 100, 4096):
        edges = bin_edges(length)
        assert edges[0] == 0
        assert edges[-1] == length
        assert edges == sorted(set(edges))
    assert bin_edges(20) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert by_bin(torch.arange(6.0), [0, 1, 4, 6]).tolist() == [0, 6, 9]


def brute(weights: torch.Tensor, causal: bool) -> dict[str, list[float]]:
    """The statistics of one head's ``[L, L]``, pair by pair."""
    n = len(weights)
    sinks = {0} if causal else {0, n - 1}
    rows: dict[str, list[float]] = {
        "entropy": [],
        "entropy_normalised": [],
        "sink_mass": [],
        "largest": [],
        "ahead": [],
    }
    by_distance, pairs, far = [0.0] * n, [0] * n, 0.0
    for i in range(n):
        seen = [j for j in range(n) if j <= i or not causal]
        others = [j for j in seen if j not in sinks]
        for j in others:
            by_distance[abs(i - j)] += weights[i, j].item()
            pairs[abs(i - j)] += 1
            far += abs(i - j) * weights[i, j].item()
        if not others:
            continue
        entropy = -sum(w * math.log(w) for w in weights[i, seen].tolist() if w > 0)
        rows["entropy"].append(entropy)
        rows["entropy_normalised"].append(entropy / math.log(len(seen)))
        rows["sink_mass"].append(sum(weights[i, j].item() for j in seen if j in sinks))
        rows["largest"].append(max(weights[i, j].item() for j in others))
        rows["ahead"].append(sum(weights[i, j].item() for j in others if j > i))
    found: dict[str, Any] = {name: sum(values) / len(values) for name, values in rows.items()}
    found["mean_distance"] = far / sum(by_distance)
    edges = bin_edges(n)
    spans = list(itertools.pairwise(edges))
    found["mass"] = [sum(by_distance[a:b]) / len(rows["entropy"]) for a, b in spans]
    found["weight"] = [sum(by_distance[a:b]) / sum(pairs[a:b]) if sum(pairs[a:b]) else math.nan for a, b in spans]
    found["weight_at"] = [m / p if p else math.nan for m, p in zip(by_distance[:64], pairs[:64], strict=True)]
    found["beyond"] = []
    for low in edges[:-1]:
        reach = sum(
            any(abs(i - j) >= low and j not in sinks and (j <= i or not causal) for j in range(n)) for i in range(n)
        )
        found["beyond"].append(sum(by_distance[low:]) / max(1, reach))
    return found


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("host", ["llama", "bert"])
def test_statistics_by_brute_force(host: str) -> None:
    model = byte_llama() if host == "llama" else byte_bert()
    ids = [256, *tokens(30)[0].tolist(), 257]
    subject = Subject(model, ByteTokenizer(), host)
    found = look(subject, ids, Work(1.0, None), "").attention
    theirs = expected(model, torch.tensor([ids]))
    for layer, weights in enumerate(theirs):
        for head in range(4):
            for name, value in brute(weights[head], host == "llama").items():
                mine = found[name][layer][head]
                assert mine == pytest.approx(value, rel=2e-4, abs=2e-6, nan_ok=True), (name, layer, head)


def test_memory_stays_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "BUDGET", SMALL)
    model, length = byte_llama(), 256
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(largest, item.numel() if isinstance(item, torch.Tensor) else 0)
            return out

    subject = Subject(model, ByteTokenizer(), "")
    with Watch():
        look(subject, [256, *tokens(length - 1)[0].tolist()], Work(1.0, None), "")
    assert largest < 4 * length * length / 4


def test_repetition_counts_what_occurred_before() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([1] * 10) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1, 2, 3]) == 0


def test_drift_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifting, "CHUNK", 7)
    stock, model = byte_llama(), patched("alibi", byte_llama)
    results = inspect_model(model, ByteTokenizer(), against=stock, length=64, generate=False)
    text = list(texts.python_topics().content.encode()[:63])
    ids = torch.tensor([[256, *text]])
    with torch.no_grad():
        q, p = model(ids).logits[0].log_softmax(-1), stock(ids).logits[0].log_softmax(-1)
        change = (model(ids).logits - stock(ids).logits).abs().max().item()
    drift = results["drift"]
    kl = (p.exp() * (p - q)).sum(-1)
    assert drift["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert drift["by_position"]["kl"][0] == pytest.approx(kl[:2].mean().item(), rel=1e-3)
    assert drift["agreement"] == pytest.approx((q.argmax(-1) == p.argmax(-1)).float().mean().item())
    assert drift["largest_change"] == pytest.approx(change, rel=1e-4)
    assert drift["nll"] == pytest.approx(-q[:-1].gather(1, ids[0, 1:, None]).mean().item(), rel=1e-4)
    assert drift["stock_nll"] == pytest.approx(-p[:-1].gather(1, ids[0, 1:, None]).mean().item(), rel=1e-4)


def raised(model: Any, **more: Any) -> set[str]:
    results = inspect_model(model, ByteTokenizer(), **{"length": 96, **more})
    assert all(flag["sentence"].endswith(".") for flag in results["flags"])
    return {flag["flag"] for flag in results["flags"]}


def test_a_healthy_model_raises_no_flag() -> None:
    assert raised(patch_model(byte_llama(), ["native", "t5"])) == set()
    assert raised(patch_model(byte_llama(), "yarn", factor=1.01)) == set()
    assert raised(byte_llama()) <= {"repetition"}  # on its own an untrained model may well repeat itself
    assert raised(byte_bert(), length=32) == set()


def test_drift_is_flagged() -> None:
    assert "drift" in raised(patch_model(byte_llama(), "nope"), generate=False)


def test_blindness_is_flagged() -> None:
    spec = ["native", {"name": "window", "size": 8}]
    results = inspect_model(patched(spec, byte_llama), ByteTokenizer(), length=96, generate=False)
    (flag,) = [flag for flag in results["flags"] if flag["flag"] == "blind"]
    assert flag["value"] == 8
    model = patched(spec, byte_llama)
    assert "blind" not in raised(model, against=copy.deepcopy(model), generate=False), "stock is as blind"


def scaled(factor: float) -> Any:
    model = byte_llama()
    with torch.no_grad():
        for attention in find_host(model).attentions:
            attention.q_proj.weight.mul_(factor)
    return model


def test_uniform_and_collapsed_attention_are_flagged() -> None:
    assert raised(scaled(0.0), against=byte_llama(), generate=False) >= {"entropy_uniform"}
    assert raised(scaled(300.0), against=byte_llama(), generate=False) >= {"entropy_collapsed"}
    for factor in (0.0, 300.0):
        found = raised(scaled(factor), against=scaled(factor), generate=False)
        assert found == set(), "as in stock"


def test_numbers_that_are_not_finite_are_flagged() -> None:
    model = byte_llama()
    with torch.no_grad():
        find_host(model).attentions[1].q_proj.weight[0, 0] = math.nan
    results = inspect_model(model, ByteTokenizer(), length=32, generate=False)
    assert [flag["value"] for flag in results["flags"] if flag["flag"] == "not_finite"] == [[1]]


def test_repetition_is_flagged() -> None:
    model = byte_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    made = {"attention": gathered([statistics(0.0)]), "generation": {"repetition": 0.1}}
    broken = inspect_model(model, ByteTokenizer(), length=96)
    assert broken["generation"]["model"]["repetition"] > 0.9
    assert [flag["flag"] for flag in broken["flags"]] == ["repetition"]
    assert flags({**made, "generation": broken["generation"]["model"]}, made, None)[0]["stock"] == 0.1


def statistics(bonus: float) -> LayerStatistics:
    """Of heads that attend anywhere, with so much more on the first token's logit."""
    logits = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(2))
    logits[:, :, 0] += bonus
    pairs = torch.ones(64, 64, dtype=torch.bool).tril()
    layer = LayerStatistics(64, True)
    layer.add(0, logits.masked_fill(~pairs, -math.inf).softmax(-1), pairs)
    return layer


def test_a_lost_sink_is_flagged() -> None:
    strong, weak = ({"attention": gathered([statistics(bonus)])} for bonus in (5.0, 0.0))
    assert [flag["flag"] for flag in flags(weak, strong, None)] == ["sink_lost"]
    assert flags(strong, strong, None) == flags(weak, weak, None) == flags(strong, weak, None) == []


def test_every_flag_has_a_rule() -> None:
    names = {"not_finite", "repetition", "entropy_collapsed", "entropy_uniform", "sink_lost", "blind", "drift"}
    assert set(RULES) == names


def test_the_model_is_left_as_it_was() -> None:
    model, ids = patched("t5", byte_llama), tokens(20)
    before = model(ids).logits.detach()
    implementation = model.config._attn_implementation
    inspect_model(model, ByteTokenizer(), length=40)
    torch.testing.assert_close(model(ids).logits, before, atol=0, rtol=0)
    plain = byte_llama()
    found = plain.config._attn_implementation
    inspect_model(plain, ByteTokenizer(), length=40, generate=False)
    assert plain.config._attn_implementation == found != implementation
    with pytest.raises(RuntimeError, match="planted"), observing.observed(plain, [planted] * 2):
        hidden_states(plain, ids)
    assert plain.config._attn_implementation == found
    assert not any(hasattr(a, OBSERVER) for m in (model, plain) for a in find_host(m).attentions)


def planted(call: Any) -> None:
    raise RuntimeError("planted")


def test_an_encoder_longer_than_stock_is_compared_at_its_length() -> None:
    stock = byte_bert()
    model = patch_model(byte_bert(), "learned", max_positions=64, init="tile")
    with pytest.raises(UnsupportedError, match="against"):
        inspect_model(copy.deepcopy(model), ByteTokenizer(), length=64)
    results = inspect_model(model, ByteTokenizer(), against=stock, length=64)
    assert (results["length"], results["stock_length"]) == (64, 32)
    assert results["attention"]["model_at_stock_length"]["length"] == 32
    assert results["drift"]["kl"] == pytest.approx(0, abs=1e-6), "tiles are the table itself"
    assert results["generation"] is None
    plain = bert("BertModel", **BYTES)
    other = patch_model(copy.deepcopy(plain), "learned", max_positions=64, init="interpolate")
    drift = inspect_model(other, ByteTokenizer(), against=plain, length=48)["drift"]
    assert -1 < drift["cosine"] < 0.9999
    assert "kl" not in drift


@pytest.mark.parametrize("length", [15, 2**20 + 1, True, 64.0])
def test_wrong_lengths_are_refused(length: Any) -> None:
    with pytest.raises(ConfigError, match=r"length=.* from 16 to 1048576"):
        inspect_model(byte_llama(), ByteTokenizer(), length=length)


def test_what_cannot_be_compared_is_refused() -> None:
    short = texts.Text("short", "a" * 20, "0")
    with pytest.raises(UnsupportedError, match=r"has 20 tokens, and a length of 64 needs 63"):
        inspect_model(byte_llama(), ByteTokenizer(), length=64, text=short)
    with pytest.raises(ConfigError, match="made from"):
        inspect_model(byte_llama(), ByteTokenizer(), length=32, against=byte_llama(num_hidden_layers=3), generate=False)
    with pytest.raises(ConfigError, match="not of one origin"):
        inspect_model(
            byte_llama(), ByteTokenizer(), length=32, against=byte_llama(vocab_size=200, pad_token_id=0), generate=False
        )
    with pytest.raises(ConfigError, match="'unpatched', a loaded model, or None"):
        inspect_model(byte_llama(), ByteTokenizer(), length=32, against="auto")
    with pytest.raises(UnsupportedError, match="at most 32 tokens"):
        inspect_model(byte_bert(), ByteTokenizer(), length=64)


def test_files(tmp_path: Path) -> None:
    results = inspect_model(patched("alibi", byte_llama), ByteTokenizer(), length=64, out=tmp_path, name="a model")
    found = json.loads((tmp_path / "inspect.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    pictures = ["attention_by_distance.png", "heads.png", "layers.png", "drift.png"]
    assert found["files"] == results["files"] == ["inspect.json", *pictures]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(found["files"])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    for name in ("thresholds", "rules", "definitions", "flags", "summary", "versions", "text"):
        assert found[name]
    assert found["model"]["encoding"][0]["encodings"][0]["name"] == "alibi"


def cli(*words: str) -> Any:
    return CliRunner().invoke(build(), ["inspect", *words])


def test_the_command_line_refuses_what_is_wrong(tmp_path: Path) -> None:
    for words, reason in (
        (("nowhere/at/all",), "no folder"),
        (("alibi@smollm2", "--length", "1k,2k"), "one length"),
        (("alibi@smollm2", "--length", "many"), "no length"),
    ):
        result = cli(*words, "--out", str(tmp_path / "x"))
        assert result.exit_code == 2
        assert reason in result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.real
def test_the_command_line_on_the_real_encoder(tmp_path: Path) -> None:
    out = tmp_path / "tile"
    result = cli("learned:max_positions=640,init=tile@minilm", "--length", "640", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["stock_length"] == 512
    assert found["drift"]["cosine"] > 0.999
    assert (out / "heads.png").exists()
    assert found["flags"] == []
    assert "No flags." in cli("minilm", "--length", "32", "--out", str(tmp_path / "plain")).stdout


@pytest.mark.real
def test_the_real_decoder_before_and_after_alibi(tmp_path: Path) -> None:
    result = cli("alibi@smollm2", "--length", "64", "--out", str(tmp_path), "--no-generate", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {row["measure"]: row for row in found["summary"]}
    assert rows["mean_distance"]["difference"] < 0
    assert rows["sink_mass"]["difference"] < 0
    assert "drift" in {flag["flag"] for flag in found["flags"]}
    assert hf.__version__ == found["versions"]["transformers"]
