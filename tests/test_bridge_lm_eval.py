"""Tasks of lm-evaluation-harness in an evaluation: each of its traps is set here, and must not close."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers as hf

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.evaluation import evaluate_model
from pe_retrofit.evaluation.bridges import harness
from pe_retrofit.evaluation.bridges import lm_eval as bridge
from pe_retrofit.evaluation.subject import Subject
from pe_retrofit.models import smollm2, smollm2_available

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
pytest.importorskip("wonderwords", reason="the extra 'eval' is not installed")
tokenizers = pytest.importorskip("tokenizers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NEW = 24

CODE = """
import random
import datasets
import transformers

LETTERS = "abcdefghijklmnopqrstuvwxyz"

def recall(max_seq_lengths=(4096,), tokenizer=None, **kwargs):
    counter = transformers.AutoTokenizer.from_pretrained(tokenizer)
    docs = []
    for length in max_seq_lengths:
        for index in range(8):
            text = "".join(random.choices(LETTERS, k=length // 2))
            assert len(counter(text).input_ids) < length
            docs.append({"index": index, "input": text, "outputs": list(LETTERS),
                         "max_length": length, "gen_prefix": "It is"})
    return {"test": datasets.Dataset.from_list(docs)}

def share(doc, results):
    found = sum(letter in results[0].lower() for letter in doc["outputs"]) / len(doc["outputs"])
    return {"4096": -1.0, str(doc["max_length"]): found}

def nothing(doc, results):
    return {"4096": -1.0, str(doc["max_length"]): -1.0}

def double(doc, results):
    return {str(doc["max_length"]): 2.0}

def mean(values):
    values = [v for v in values if v != -1]
    return sum(values) / len(values) if values else -1

def choices(**kwargs):
    rows = [{"question": "ab" * n, "choices": ["a", "b", "zz"], "answer": n % 3} for n in range(1, 7)]
    return {"test": datasets.Dataset.from_list(rows)}
"""

TASK = """
task: {name}
dataset_path: ""
dataset_name: ""
output_type: generate_until
test_split: test
custom_dataset: !function made.recall
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{outputs}}}}"
gen_prefix: "{{{{gen_prefix}}}}"
target_delimiter: " "
process_results: !function made.{scores}
metric_list:
  - metric: "4096"
    aggregation: !function made.mean
    higher_is_better: true
generation_kwargs:
  do_sample: false
  temperature: 0.0
  max_gen_toks: 24
  until: []
metadata:
  version: 1.0
"""

OTHERS = {
    "made_choice": """
task: made_choice
dataset_path: ""
output_type: multiple_choice
test_split: test
custom_dataset: !function made.choices
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "made_rolling": """
task: made_rolling
dataset_path: ""
output_type: loglikelihood_rolling
test_split: test
custom_dataset: !function made.choices
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
""",
    "made_far": """
task: made_far
dataset_path: nobody/nothing
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of one's own, which need no network and no 500 samples."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "made.py").write_text(CODE)
    for name, scores in (("made_recall", "share"), ("made_minus", "nothing"), ("made_double", "double")):
        (path / f"{name}.yaml").write_text(TASK.format(name=name, scores=scores))
    for name, text in OTHERS.items():
        (path / f"{name}.yaml").write_text(text)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes as tokens."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model() -> Any:
    return tiny.llama(vocab_size=259, eos_token_id=None, pad_token_id=0)


def run(model: Any, tokenizer: Any, folder: Path, name: str, **more: Any) -> dict[str, Any]:
    options = {f"lm_eval/{name}": {"include": str(folder), **more.pop("options", {})}}
    given = {"lengths": [64, 128], "samples": 3, **more}
    return evaluate_model(model, tokenizer, tasks=[f"lm_eval/{name}"], options=options, **given)


def records(out: Path, role: str = "model") -> list[dict[str, Any]]:
    lines = (out / "samples" / f"{role}.jsonl").read_text().splitlines()
    return [record for line in lines for record in json.loads(line)["records"]]


def brute_force(model: Any, tokenizer: Any, seed: int, length: int, samples: int) -> list[tuple[str, float]]:
    """The samples drawn, generated and scored again, without lm-eval and without our code."""
    draws, found = random.Random(seed), []
    for _ in range(samples):
        prompt = "".join(draws.choices(LETTERS, k=length // 2)) + " It is"
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            for _ in range(NEW):
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        answer = ids[0, -NEW:].tolist()
        answer = answer[: answer.index(2)] if 2 in answer else answer  # lm-eval stops at the tokenizer's </s>
        text = tokenizer.decode(answer)
        found.append((text, sum(letter in text.lower() for letter in LETTERS) / len(LETTERS)))
    return found


def test_every_length_is_evaluated_and_every_score_is_right(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    results = run(model, tokenizer, folder, "made_recall", out=tmp_path)
    task = results["tasks"]["lm_eval/made_recall"]
    assert task["status"] == "ok"
    assert task["truncated"] == 0
    assert [(cell["length"], cell["n"]) for cell in task["cells"]] == [(64, 3), (128, 3)]
    found = records(tmp_path)
    for length in (64, 128):
        expected = brute_force(model, tokenizer, 0, length, 3)
        mine = [r for r in found if r["length"] == length]
        assert [(r["generated"], r["score"]) for r in mine] == expected
        mean = sum(score for _, score in expected) / 3
        assert next(c["mean"] for c in task["cells"] if c["length"] == length) == pytest.approx(mean)
        assert {r["actual_length"] for r in mine} == {length // 2 + len(" It is") + NEW}
    assert any(0 < r["score"] < 1 for r in found)
    assert all(len(r["doc_hash"]) == 64 and r["references"] == list(LETTERS) for r in found)


def test_stock_and_retrofit_answer_the_same_samples(model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    stock = brute_force(model, tokenizer, 0, 128, 4)
    patch_model(model, "linear", factor=4.0)
    retrofit = brute_force(model, tokenizer, 0, 128, 4)
    assert stock != retrofit
    results = run(model, tokenizer, folder, "made_recall", out=tmp_path, lengths=[128], samples=4)
    assert [(r["generated"], r["score"]) for r in records(tmp_path)] == retrofit
    assert [(r["generated"], r["score"]) for r in records(tmp_path, "stock")] == stock
    assert [r["sha"] for r in records(tmp_path)] == [r["sha"] for r in records(tmp_path, "stock")]
    cell = results["tasks"]["lm_eval/made_recall"]["cells"][0]
    assert cell["difference"] == pytest.approx(sum(a[1] - b[1] for a, b in zip(retrofit, stock, strict=True)) / 4)
    assert cell["difference_ci95"] is not None
    again = run(model, tokenizer, folder, "made_recall", out=tmp_path, lengths=[64, 128], samples=4)
    assert [c["n"] for c in again["tasks"]["lm_eval/made_recall"]["cells"]] == [4, 4]  # a length was added


def test_our_own_generation_agrees(model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = run(model, tokenizer, folder, "made_recall", options={"replay": True})["tasks"]["lm_eval/made_recall"]
    assert [cell["agreement"] for cell in task["cells"]] == [1.0, 1.0]
    generate = Subject.generate
    monkeypatch.setattr(Subject, "generate", lambda s, prompts, new: generate(s, [p[:-6] for p in prompts], new))
    task = run(model, tokenizer, folder, "made_recall", options={"replay": True})["tasks"]["lm_eval/made_recall"]
    assert min(cell["agreement"] for cell in task["cells"]) < 1.0  # other prompts are noticed


@pytest.mark.parametrize("name", ["made_recall", "made_choice"])
def test_a_cut_prompt_fails_the_run(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    original = bridge.harness_model
    monkeypatch.setattr(
        bridge, "harness_model", lambda model, tokenizer, longest: original(model, tokenizer, longest - 3)
    )
    results = run(model, tokenizer, folder, name, out=tmp_path, samples=6 if name == "made_choice" else 3)
    task = results["tasks"][f"lm_eval/{name}"]
    assert results["status"] == task["status"] == "error"
    assert "Truncated: lm-eval cut" in task["reason"]
    longest = max((r["actual_length"] for r in records(tmp_path)), default=0) if (tmp_path / "samples").exists() else 0
    assert longest < 128 // 2 + len(" It is") + NEW  # no score of a cut prompt


def test_truncation_is_counted_on_every_path(model: Any, tokenizer: Any) -> None:
    lm = harness.harness_model(model, tokenizer, 20)
    assert lm.max_length == 20
    assert (len(lm.tok_encode("a" * 10, left_truncate_len=10)), lm.truncated) == (10, 0)
    assert (len(lm.tok_encode("a" * 11, left_truncate_len=10)), lm.truncated) == (10, 1)
    ids, _ = lm.tok_batch_encode(["a" * 12, "b", "c" * 11], left_truncate_len=10)
    assert (ids.shape[1], lm.truncated) == (10, 3)
    lm._loglikelihood_tokens([(("", ""), [5] * 18, [6] * 3)], disable_tqdm=True)
    assert lm.truncated == 3
    lm._loglikelihood_tokens([(("", ""), [5] * 19, [6] * 3)], disable_tqdm=True)
    assert lm.truncated == 4


def test_minus_one_is_no_score(model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    results = run(model, tokenizer, folder, "made_minus", out=tmp_path)
    task = results["tasks"]["lm_eval/made_minus"]
    assert (results["status"], task["status"], task["n"]) == ("error", "error", 0)
    assert "-1 means no samples" in task["reason"]
    assert set(task["problems"]) == {"64", "128"}
    assert not any(cell["mean"] == -1 for cell in task["cells"])
    other = run(model, tokenizer, folder, "made_double")["tasks"]["lm_eval/made_double"]
    assert (other["status"], other["n"]) == ("skipped", 0)
    assert "outside 0 to 1" in other["reason"]


def test_choices_are_scored_by_likelihood_once(model: Any, tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    task = run(model, tokenizer, folder, "made_choice", out=tmp_path, samples=6)["tasks"]["lm_eval/made_choice"]
    assert [(cell["length"], cell["n"]) for cell in task["cells"]] == [(64, 6)]  # it has no lengths
    expected = []
    for n in range(1, 7):
        scores = []
        for choice in ("a", "b", "zz"):
            before, after = tokenizer("ab" * n).input_ids, tokenizer(" " + choice).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(before) - 1 + i, token].item() for i, token in enumerate(after)))
        expected.append(float(int(np.argmax(scores)) == n % 3))
    assert [record["score"] for record in records(tmp_path)] == expected
    with pytest.raises(ConfigError, match="include"):
        evaluate_model(model, tokenizer, tasks=["lm_eval/x"], options={"lm_eval/x": {"include": "nowhere"}})


def test_what_cannot_be_done_is_refused(model: Any, tokenizer: Any, folder: Path) -> None:
    for name, samples, words in (
        ("made_rolling", 2, "disjoint windows.*'perplexity'"),
        ("made_far", 2, "'made_far' takes its data from the network.*niah_single_1"),
        ("made_recall", 9, "has 8 samples at 64 tokens, and 9 are asked"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            run(model, tokenizer, folder, name, samples=samples)


def test_the_seed_decides_and_global_generators_stay(model: Any, tokenizer: Any, folder: Path) -> None:
    def shas(seed: int) -> list[str]:
        task = bridge.named("made_recall")(bridge.HarnessOptions(include=str(folder)))
        from pe_retrofit.evaluation import Setting

        return [i.sha for i in task.items(Subject(model, tokenizer, "m"), Setting(lengths=[64], samples=3, seed=seed))]

    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = shas(0)
    random.random()
    assert shas(0) == first
    assert not set(shas(1)) & set(first)
    random.seed(5)
    np.random.seed(5)
    shas(2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_tokenizer_that_changes_when_saved_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    class Forgetful:
        def save_pretrained(self, path: str) -> None:
            tokenizer.save_pretrained(path)

        def encode(self, text: str) -> list[int]:
            return [0, *tokenizer.encode(text)]

    with pytest.raises(UnsupportedError, match="splits text differently"):
        harness.save_tokenizer(Forgetful(), tmp_path / "a")
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        harness.save_tokenizer(object(), tmp_path / "b")
    assert harness.save_tokenizer(tokenizer, tmp_path / "c").encode("ab") == tokenizer.encode("ab")


def test_the_user_is_told_before_samples_are_made(
    model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    original = bridge.load_task

    def load(*args: Any, **more: Any) -> Any:
        told.append("load")
        return original(*args, **more)

    monkeypatch.setattr(bridge, "load_task", load)
    run(model, tokenizer, folder, "made_recall", lengths=[64], samples=1, report=lambda what, *_: told.append(what))
    assert "makes all samples" in told[0]
    assert told[1] == "load"


def test_missing_or_other_versions_say_what_to_install(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(harness.metadata, "version", lambda name: "0.3.0")
        with pytest.raises(UnsupportedError, match=r"0\.3\.0 is installed"):
            evaluate_model(model, tokenizer, tasks=["lm_eval/niah_single_1"])
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pe_retrofit\[eval\]'"):
        evaluate_model(model, tokenizer, tasks=["lm_eval/niah_single_1"])


def test_lengths_at_which_lm_eval_would_never_end_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UnsupportedError, match="'ruler_vt' for this tokenizer at any length"):
        evaluate_model(model, tokenizer, tasks=["lm_eval/ruler_vt"], lengths=[4096], samples=1)
    with pytest.raises(UnsupportedError, match=r"'ruler_cwe' with 512 tokens.* take at least about \d{4}\."):
        evaluate_model(model, tokenizer, tasks=["lm_eval/ruler_cwe"], lengths=[512], samples=1)


def test_scores_that_are_not_nvidias_say_so() -> None:
    from pe_retrofit.evaluation import Setting

    assert "NVIDIA" in bridge.named("ruler_cwe")().describe(Setting())["note"]
    assert "note" not in bridge.named("niah_single_1")().describe(Setting())


@pytest.mark.slow
def test_unknown_names_and_groups(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean lm_eval/niah_single_"):
        evaluate_model(model, tokenizer, tasks=["lm_eval/niah_singel_1"])
    with pytest.raises(ConfigError, match="is a group of lm-eval"):
        evaluate_model(model, tokenizer, tasks=["lm_eval/ruler"])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not smollm2_available(), reason="the SmolLM2 package is not installed")
def test_rulers_needle_in_a_real_model_agrees_with_our_own() -> None:
    model, tokenizer = smollm2()
    results = evaluate_model(
        model,
        tokenizer,
        tasks=["lm_eval/niah_single_1"],
        options={"lm_eval/niah_single_1": {"replay": True}},
        lengths=[256],
        samples=2,
        against=None,
    )
    cell = results["tasks"]["lm_eval/niah_single_1"]["cells"][0]
    assert (cell["n"], cell["mean"], cell["agreement"]) == (2, 1.0, 1.0)
