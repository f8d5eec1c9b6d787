"""The evaluation's figures against direct computations, on tiny models; and what its runner promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from bytetokens import ByteTokenizer
from tiny import bert

from pe_retrofit import ConfigError, UnsupportedError, patch_model, status, texts, unpatch_model
from pe_retrofit.evaluation import Interrupted, Setting, evaluate_model, read
from pe_retrofit.evaluation.runner import _batches
from pe_retrofit.evaluation.subject import Subject
from pe_retrofit.evaluation.task import can_do, choose_tasks
from pe_retrofit.evaluation.tasks.passkey import Passkey
from pe_retrofit.likelihood import hidden_states, logits_of

TRAINED = 256
LENGTHS = (384, 416)
SMALL: dict[str, Any] = {
    "lengths": LENGTHS,
    "samples": 2,
    "depths": (0.0, 1.0),
    "options": {"perplexity": {"tail": 96, "window": 64, "stride": 24, "windows": 4, "skip": 5, "documents": 2}},
}
VOLATILE = ("date", "seconds", "tokens_read", "tokens_per_second", "peak_memory_bytes", "processes", "threads")


@pytest.fixture
def model() -> Any:
    return tiny()


def tiny(**more: Any) -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=259,
        **more,
    )
    return hf.LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def text() -> texts.Text:
    return texts.python_topics()


def small(model: Any, text: texts.Text, **more: Any) -> dict[str, Any]:
    wanted = {"tasks": ("perplexity", "passkey"), **SMALL, **more}
    if "options" not in more:
        wanted["options"] = {task: o for task, o in SMALL["options"].items() if task in wanted["tasks"]}
    return evaluate_model(model, ByteTokenizer(), text=text, **wanted)


def lasting(value: Any) -> Any:
    """Results without what differs from run to run."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in VOLATILE}
    return [lasting(v) for v in value] if isinstance(value, list) else value


def direct(model: Any, ids: list[int]) -> torch.Tensor:
    """nll of token i + 1 given those before, at i."""
    row = torch.tensor(ids)
    with torch.no_grad():
        logits = model(row[None]).logits[0, :-1].float()
    return -logits.log_softmax(-1).gather(1, row[1:, None])[:, 0].double()


def cell(results: dict[str, Any], task: str, **wanted: Any) -> dict[str, Any]:
    found = [c for c in results["tasks"][task]["cells"] if all(c[k] == v for k, v in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_perplexity_is_that_of_a_direct_computation_in_every_view(model: Any, text: texts.Text) -> None:
    results = small(model, text, tasks=("perplexity",))
    body = list(text.content.encode())
    stretches = [body[5 + d * 415 : 5 + (d + 1) * 415] for d in range(2)]
    for n in LENGTHS:
        parts = [direct(model, [256, *s])[n - 97 : n - 1] for s in stretches]
        expected = torch.cat(parts).mean().item()
        assert cell(results, "perplexity", variant="by_position", length=n)["nll"] == pytest.approx(expected, rel=1e-6)
        parts = [direct(model, [256, *s[416 - n :]])[-96:] for s in stretches]
        expected = torch.cat(parts).mean().item()
        found = cell(results, "perplexity", variant="fixed_tail", length=n)
        assert found["nll"] == pytest.approx(expected, rel=1e-6)
        assert found["mean"] == pytest.approx(math.exp(expected), rel=1e-6)
    scored = []
    for s in stretches:
        for k in range(4):
            nll = direct(model, [256, *s[24 * k : 24 * k + 63]])
            scored.append(nll if k == 0 else nll[-24:])
    found = cell(results, "perplexity", variant="sliding", length=64)
    assert found["nll"] == pytest.approx(torch.cat(scored).mean().item(), rel=1e-6)
    assert found["tokens"] == 2 * (63 + 3 * 24)


def test_logits_are_those_of_the_models_own_head() -> None:
    """Soft-capping and scaling happen after the head's matrix, in the model's forward."""
    config = hf.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    capped = hf.Gemma2ForCausalLM(config).eval()
    ids = torch.randint(0, 64, (1, 12))
    with torch.no_grad():
        expected = capped(ids).logits[0]
    assert expected.abs().max() > 1.5  # the cap is felt
    assert torch.allclose(logits_of(capped, hidden_states(capped, ids)[0]), expected, atol=1e-5)
    with torch.no_grad():  # and the model is itself again
        assert torch.equal(capped(ids).logits[0], expected)


@pytest.mark.parametrize("length", [340, 417, 1000])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_passkey_prompts_have_the_exact_length_and_one_needle(model: Any, length: int, depth: float) -> None:
    subject = Subject(model, ByteTokenizer(), "tiny")
    setting = Setting(lengths=(length,), samples=3, depths=(depth,))
    keys = set()
    for item in Passkey().items(subject, setting):
        made = item.content
        assert len(made.prompt) + len(made.answer) == length == item.tokens
        words = subject.decode(made.prompt)
        key = subject.decode(made.answer).strip()
        assert len(key) == 5
        assert words.count(f"The pass key is {key}. Remember it. {key} is the pass key.") == 1
        assert words.startswith("There is an important info")
        assert words.endswith("What is the pass key? The pass key is ")
        noise = words.split("information there.\n")[1].split("What is the pass key?")[0]
        before, after = noise.split(f"The pass key is {key}. Remember it. {key} is the pass key.\n")
        lines = len(before + after) // 90
        assert len(before) == len(before + after) - 90 * lines + 90 * round(depth * lines)
        keys.add(key)
    assert len(keys) == 3
    again = [item.sha for item in Passkey().items(subject, setting)]
    assert again == [item.sha for item in Passkey().items(subject, setting)]
    other = [item.sha for item in Passkey().items(subject, Setting(lengths=(length,), depths=(depth,), seed=1))]
    assert not set(again) & set(other)


def test_passkey_depth_moves_the_needle(model: Any) -> None:
    subject = Subject(model, ByteTokenizer(), "tiny")
    places = []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        (item,) = Passkey().items(subject, Setting(lengths=(2000,), samples=1, depths=(depth,)))
        places.append(dict(item.content.more)["needle_at"])
    assert places == sorted(places)
    assert places[0] < 350
    assert places[-1] > 1850


def test_passkey_score_is_the_forced_exact_match(model: Any, text: texts.Text, tmp_path: Path) -> None:
    results = small(model, text, tasks=("passkey",), generate=True, out=tmp_path)
    subject = Subject(model, ByteTokenizer(), "tiny")
    lines = [json.loads(line) for line in (tmp_path / "samples" / "model.jsonl").read_text().splitlines()]
    found = {line["key"]: line["records"][0] for line in lines}
    for item in Passkey().items(subject, Setting(lengths=LENGTHS, samples=2, depths=(0.0, 1.0))):
        prompt, answer = list(item.content.prompt), list(item.content.answer)
        nll = direct(model, prompt + answer)[-len(answer) :]
        with torch.no_grad():
            choices = model(torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1].argmax(-1).tolist()
        record = found[item.key]
        assert record["nll"] == pytest.approx(nll.mean().item(), rel=1e-6)
        assert record["score"] == float(choices == answer)
        assert record["agrees"] is True
    assert results["tasks"]["passkey"]["cells"][0]["agreement"] == 1.0


def test_one_pass_gives_what_two_give(model: Any) -> None:
    """Generation from the cache of the scored prompt equals generation from scratch."""
    prompts, answers = [list(range(3, 40)), list(range(50, 87))], [[7, 8, 9], [100, 101, 102]]
    for spec in (None, "alibi", ["native", "t5"], "self_extend", "shaw", "conv"):
        if spec is not None:
            patch_model(model, spec)
        subject = Subject(model, ByteTokenizer(), "tiny")
        forced, generated = subject.forced_and_generated(prompts, answers, 12)
        assert generated == subject.generate(prompts, 12)
        assert [f.choices for f in forced] == [f.choices for f in subject.forced(prompts, answers)]
        unpatch_model(model)


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Count the rows the model reads; Ctrl-C at a call."""
    seen: list[int] = []
    before = Subject.hidden

    def hidden(self: Subject, rows: Any) -> Any:
        if stop_at is not None and len(seen) >= stop_at:
            raise KeyboardInterrupt
        seen.append(len(rows))
        return before(self, rows)

    monkeypatch.setattr(Subject, "hidden", hidden)
    return seen


def test_a_run_stopped_by_ctrl_c_goes_on_where_it_was(
    model: Any, text: texts.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_model(model, "yarn", factor=2.0)
    whole = small(model, text, out=tmp_path / "whole", batch_size=1)
    with monkeypatch.context() as patched:
        counting(patched, stop_at=7)
        with pytest.raises(Interrupted) as stopped:
            small(model, text, out=tmp_path / "broken", batch_size=1)
    assert stopped.value.results["status"] == "interrupted"
    assert stopped.value.results["tasks"]["perplexity"]["n"] > 0  # what was done of the task it was in is there
    assert read(tmp_path / "broken")["status"] == "interrupted"
    assert status(model).patched
    with monkeypatch.context() as patched:
        seen = counting(patched)
        resumed = small(model, text, out=tmp_path / "broken", batch_size=1)
    total = len((tmp_path / "whole" / "samples" / "model.jsonl").read_text().splitlines())
    assert len(seen) == 2 * total - 7
    assert lasting(resumed) == lasting(whole)
    for name in ("model.jsonl", "stock.jsonl"):
        one, two = ((tmp_path / run / "samples" / name).read_text() for run in ("whole", "broken"))
        assert one == two


def test_a_line_cut_short_is_run_again_and_a_wrong_line_is_refused(
    model: Any, text: texts.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(model, text, tasks=("passkey",), out=tmp_path)
    path = tmp_path / "samples" / "model.jsonl"
    before = path.read_text()
    path.write_text(before[:-40])
    with monkeypatch.context() as patched:
        seen = counting(patched)
        small(model, text, tasks=("passkey",), out=tmp_path)
    assert sum(seen) == 1
    assert path.read_text() == before
    path.write_text("{}\n" + before)
    with pytest.raises(ConfigError, match="Line 1"):
        small(model, text, tasks=("passkey",), out=tmp_path)


def test_a_run_may_grow_but_not_change(
    model: Any, text: texts.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(model, text, tasks=("passkey",), out=tmp_path)
    with monkeypatch.context() as patched:
        seen = counting(patched)
        more = small(model, text, tasks=("passkey",), samples=3, lengths=(384, 416, 448), out=tmp_path)
    assert sum(seen) == 18 - 8
    assert more["tasks"]["passkey"]["n"] == 18
    with pytest.raises(ConfigError, match=r"seed.*--out"):
        small(model, text, tasks=("passkey",), seed=1, out=tmp_path)
    with pytest.raises(ConfigError, match="options or version of passkey"):
        small(model, text, tasks=("passkey",), options={"passkey": {"digits": 7}}, out=tmp_path)
    patch_model(model, "nope")
    with pytest.raises(ConfigError, match=r"model \(encoding\)"):
        small(model, text, tasks=("passkey",), out=tmp_path)


def test_a_model_that_was_trained_on_is_another_model(model: Any, text: texts.Text, tmp_path: Path) -> None:
    """The same name and folder, other weights: old answers must not be taken for its own."""
    small(model, text, tasks=("passkey",), out=tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1e-4)
    with pytest.raises(ConfigError, match=r"model \(weights\) differ"):
        small(model, text, tasks=("passkey",), out=tmp_path)


def test_batches_change_nothing_and_never_mix_shapes(model: Any, text: texts.Text) -> None:
    one = small(model, text, tasks=("passkey",), batch_size=1)
    assert lasting(one)["tasks"] == lasting(small(model, text, tasks=("passkey",), batch_size=3))["tasks"]
    items = list(Passkey().items(Subject(model, ByteTokenizer(), "t"), Setting(lengths=LENGTHS, samples=5)))
    for size in (2, 7, "auto"):
        batches = list(_batches(items, size, "cpu"))
        assert [i for b in batches for i in b] == items
        assert all(len({i.shape for i in b}) == 1 for b in batches)
        assert max(len(b) for b in batches) > 1


def test_memory_that_runs_out_halves_the_batch(model: Any, text: texts.Text, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small(model, text, tasks=("passkey",))
    before, sizes = Subject.hidden, []

    def hidden(self: Subject, rows: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return before(self, rows)

    monkeypatch.setattr(Subject, "hidden", hidden)
    assert lasting(small(model, text, tasks=("passkey",)))["tasks"] == lasting(expected)["tasks"]
    assert max(sizes) > 1


def test_a_length_that_fails_is_reported_and_the_others_stand(
    model: Any, text: texts.Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Subject.hidden

    def hidden(self: Subject, rows: Any) -> Any:
        if len(rows[0]) == 416:
            raise RuntimeError("planted")
        return before(self, rows)

    monkeypatch.setattr(Subject, "hidden", hidden)
    results = small(model, text, tasks=("passkey",))
    task = results["tasks"]["passkey"]
    assert results["status"] == task["status"] == "error"
    assert task["problems"] == {"416": "RuntimeError: planted"}
    assert {c["length"] for c in task["cells"]} == {384}
    assert -1 not in [c["mean"] for c in task["cells"]]


def test_an_output_that_is_not_finite_is_no_score(model: Any, text: texts.Text, tmp_path: Path) -> None:
    model.model.norm.weight.data.fill_(float("nan"))
    results = small(model, text, out=tmp_path)
    for task in results["tasks"].values():
        for found in task["cells"]:
            assert found["nll"] is None
            assert found["not_finite"] == found["n"]
            assert found["mean"] in (None, 0.0)
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_evaluation import small, tiny
from pe_retrofit import patch_model, texts
model = patch_model(tiny(), "yarn", factor=2.0)
results = small(model, texts.python_topics(), out={out!r}, batch_size=2)
sys.stdout.write("WORLD %d\\n" % results["device"]["processes"])
"""


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(model: Any, text: texts.Text, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("WORLD 2") == 2
    patch_model(model, "yarn", factor=2.0)
    one = small(model, text, out=tmp_path / "one", batch_size=2)
    assert lasting(read(tmp_path / "two")) == lasting(json.loads(json.dumps(one)))
    for name in ("model.jsonl", "stock.jsonl"):
        assert (tmp_path / "two" / "samples" / name).read_bytes() == (tmp_path / "one" / "samples" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "two" / "samples").iterdir()) == ["model.jsonl", "stock.jsonl"]


@pytest.mark.parametrize("spec", ["alibi", ["native", "t5"], "nope", ("yarn", {"factor": 2.0}), "shaw"])
def test_stock_is_the_unpatched_model_and_the_patch_comes_back(model: Any, text: texts.Text, spec: Any) -> None:
    stock = small(model, text)
    name, options = spec if isinstance(spec, tuple) else (spec, {})
    patch_model(model, name, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".position_encoding." in key:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    ids = torch.randint(3, 250, (1, 40))
    with torch.no_grad():
        before = model(ids).logits
    results = small(model, text)
    with torch.no_grad():
        assert torch.equal(before, model(ids).logits)
    for task in ("perplexity", "passkey"):
        for mine, theirs in zip(results["tasks"][task]["cells"], stock["tasks"][task]["cells"], strict=True):
            assert mine["stock"]["mean"] == theirs["mean"]
            if task == "perplexity":
                assert mine["ratio"] == pytest.approx(mine["mean"] / theirs["mean"], rel=1e-6)
                assert mine["ratio_ci95"][0] <= mine["ratio"] <= mine["ratio_ci95"][1]
            else:
                assert mine["difference"] == pytest.approx(mine["mean"] - theirs["mean"])


def test_stock_may_be_another_model_or_another_run(model: Any, text: texts.Text, tmp_path: Path) -> None:
    stock = tiny()
    patch_model(model, "nope")
    direct_run = small(model, text, against=stock)
    small(stock, text, out=tmp_path / "stock")
    borrowed = small(model, text, against=tmp_path / "stock", out=tmp_path / "mine")
    one, two = lasting(direct_run["tasks"]), lasting(borrowed["tasks"])
    for task in one:
        assert one[task]["cells"] == two[task]["cells"]
    with pytest.raises(ConfigError, match="lacks 4 of the samples"):
        small(model, text, against=tmp_path / "stock", lengths=(384, 416, 448), tasks=("passkey",))
    with pytest.raises(ConfigError, match="no results folder"):
        small(model, text, against=tmp_path / "nothing")


def test_a_forced_kernel_is_not_lifted(model: Any, text: texts.Text) -> None:
    patch_model(model, "alibi", kernel="blockwise")
    with pytest.raises(UnsupportedError, match=r"kernel='blockwise'.*against="):
        small(model, text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lengths": (416, 384)}, "ascending"),
        ({"lengths": (4,)}, "from 16"),
        ({"samples": 0}, "samples=0"),
        ({"depths": (1.5,)}, "from 0 to 1"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": "large"}, "'auto'"),
        ({"lenghts": (416,)}, "lenghts: unknown"),
        ({"tasks": ("pasky",)}, "did you mean 'passkey'"),
        ({"tasks": ()}, "no task is named"),
        ({"tasks": ("passkey",), "options": {"passkey": {"digit": 3}}}, "did you mean 'digits'"),
        ({"options": {"niahh": {}}}, "no task"),
        ({"tasks": ("passkey",), "options": {"perplexity": {}}}, "not among the tasks"),
    ],
)
def test_wrong_input_is_named(model: Any, text: texts.Text, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(model, text, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lengths": (64,), "tasks": ("passkey",)}, "at least"),
        ({"lengths": (96, 416), "tasks": ("perplexity",)}, r"perplexity.tail=96 must be smaller"),
        ({"text": texts.Text("short", "too short", "0")}, "Give a longer text"),
    ],
)
def test_a_setting_that_cannot_be_met_is_refused_before_anything_runs(
    model: Any, text: texts.Text, more: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counting(monkeypatch)
    with pytest.raises(UnsupportedError, match=message):
        small(model, **{"text": text, **more})
    assert not seen


def test_tasks_that_a_model_cannot_do_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'passkey' needs a decoder.*this model is an encoder"):
        choose_tasks(["passkey"], "encoder")
    assert all(can_do("causal", task.needs) for task in choose_tasks(["all"], "causal"))
    assert not can_do("causal", "encoder")


def test_dynamic_by_transformers_is_run_once_per_length(text: texts.Text) -> None:
    """Its frequencies depend on the length of the call, so one long forward would not do."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 256}
    model = tiny(rope_parameters=rope)
    results = small(
        model, text, tasks=("perplexity",), options={"perplexity": {"tail": 96, "skip": 5, "sliding": False}}
    )
    ids = [256, *list(text.content.encode())[5:420]]
    for n in LENGTHS:
        expected = direct(tiny(rope_parameters=rope), ids[:n])[-96:].mean().item()
        found = cell(results, "perplexity", variant="by_position", length=n)["nll"]
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_report_is_told_of_all_work(model: Any, text: texts.Text) -> None:
    seen: list[tuple[float, float]] = []
    small(model, text, report=lambda _, done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == pytest.approx(seen[-1][1])


@pytest.mark.parametrize(("spec", "limited"), [("alibi", False), ("sinusoidal", False), (["native", "t5"], True)])
def test_a_table_that_was_taken_away_limits_no_length(spec: Any, limited: bool) -> None:
    model = patch_model(bert(vocab_size=260), spec)
    subject = Subject(model, ByteTokenizer(), "bert")
    if limited:
        with pytest.raises(UnsupportedError, match="reads at most 32 tokens"):
            subject.hidden([[5] * 40])
    else:
        assert subject.hidden([list(range(40))]).isfinite().all()


def test_the_package_offers_it_by_name() -> None:
    import pe_retrofit

    assert pe_retrofit.evaluate_model is evaluate_model
    assert "evaluate_model" in pe_retrofit.__all__
    with pytest.raises(AttributeError, match="evaluate_modle"):
        _ = pe_retrofit.evaluate_modle


def test_the_cost_of_earlier_calls_is_kept(model: Any, text: texts.Text, tmp_path: Path) -> None:
    first = small(model, text, tasks=("passkey",), out=tmp_path)["tasks"]["passkey"]
    again = small(model, text, tasks=("passkey",), out=tmp_path)["tasks"]["passkey"]
    for key in ("seconds", "tokens_read", "tokens_per_second", "peak_memory_bytes"):
        assert again[key] == first[key]
    assert first["tokens_read"] == 4 * sum(LENGTHS)
    more = small(model, text, tasks=("passkey",), samples=3, out=tmp_path)["tasks"]["passkey"]
    assert more["tokens_read"] == 6 * sum(LENGTHS)
