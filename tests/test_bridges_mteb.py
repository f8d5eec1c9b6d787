"""MTEB on local files, against a ranking made by hand; and metrics of the evaluate library from a local script."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bytetokens import ByteTokenizer

from pe_retrofit import ConfigError, UnsupportedError
from pe_retrofit.evaluation.bridges import hf_metrics, mteb
from pe_retrofit.evaluation.subject import Subject

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="the extra mteb is not installed")
needs_evaluate = pytest.mark.skipif(importlib.util.find_spec("evaluate") is None, reason="evaluate is not installed")

DOCUMENTS = ["the cat sleeps", "rain fell all day long", "a red boat on the lake", "bread and butter", "blue"]
QUERIES = ["the cat sleep", "rain fell", "bread with butter", "a boat"]
RIGHT = [0, 1, 3, 4]  # the last is a lie


def subject() -> Subject:
    return Subject(tiny.bert("BertModel", vocab_size=260), ByteTokenizer(), "tiny")


def by_hand(texts: list[str]) -> torch.Tensor:
    """Mean of the hidden states of each text alone."""
    model = tiny.bert("BertModel", vocab_size=260)
    rows = []
    with torch.no_grad():
        for text in texts:
            states = model(input_ids=torch.tensor([[256, *text.encode(), 257]])).last_hidden_state[0]
            rows.append(states.mean(0) / states.mean(0).norm())
    return torch.stack(rows)


@needs_mteb
def test_scores_are_those_of_a_ranking_by_hand(tmp_path: Path) -> None:
    folder = mteb.write_longembed(tmp_path, {16: (DOCUMENTS, QUERIES, RIGHT), 64: (["x" * 60, "y"], ["y"], [1])})
    found = mteb.run_longembed(subject(), folder)
    order = (by_hand(QUERIES) @ by_hand(DOCUMENTS).T).argsort(-1, descending=True)
    first = [int(row[0]) == gold for row, gold in zip(order, RIGHT, strict=True)]
    assert 0 < sum(first) < len(first), "the sample must tell right from wrong"
    assert found["main_score"] == "ndcg_at_1"
    assert found["scores"]["test_16"]["ndcg_at_1"] == pytest.approx(sum(first) / len(first))
    ranks = [row.tolist().index(gold) + 1 for row, gold in zip(order, RIGHT, strict=True)]
    assert found["scores"]["test_16"]["mrr_at_5"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))
    assert "at most 32 tokens" in found["skipped"]["test_64"]  # 62 tokens, and the table has 32
    assert "test_64" not in found["scores"]


@needs_mteb
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", "not json\n", "cannot be read"),
        ("corpus.jsonl", '{"doc_id": "a"}\n', "needs the texts doc_id, text"),
        ("corpus.jsonl", "\n", "is empty"),
        ("qrels.jsonl", '{"qid": "16-q0", "doc_id": "nowhere", "context_length": 16}\n', "nowhere"),
        ("qrels.jsonl", '{"qid": "16-q0", "doc_id": "16-d0"}\n', "context_length"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = mteb.write_longembed(tmp_path, {16: (DOCUMENTS, QUERIES, RIGHT)})
    (folder / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        mteb.longembed_task(folder)


def test_local_files_survive_odd_text(tmp_path: Path) -> None:
    odd = 'line\u2028separator, "quotes", \n and \x85'
    folder = mteb.write_longembed(tmp_path, {16: ([odd, "b"], [odd], [0])})
    rows = mteb._split(folder / "corpus.jsonl", ("doc_id", "text"))
    assert rows["test_16"][0]["text"] == odd


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_the_message_says_what_to_install() -> None:
    with pytest.raises(UnsupportedError, match=r"pip install 'pe_retrofit\[mteb\]'"):
        mteb.MtebEncoder(subject())


SCRIPT = """
import datasets
import evaluate

class Starts(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="share of predictions that start with a reference", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": REFERENCES}),
        )

    def _compute(self, predictions, references, times=1):
        lists = [r if isinstance(r, list) else [r] for r in references]
        good = [any(p.startswith(r) for r in found) for p, found in zip(predictions, lists)]
        return {"starts": times * sum(good) / len(good)}
"""


def metric_folder(path: Path, name: str, references: str) -> Path:
    folder = path / name
    folder.mkdir()
    (folder / f"{name}.py").write_text(SCRIPT.replace("REFERENCES", references))
    return folder


def samples(path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for length, generated, references in [
        (16, "red boat", ["red"]),
        (16, "blue", ["red"]),
        (32, "\u2028", ["\u2028"]),
    ]:
        record = {"key": str(len(rows)), "variant": "", "length": length, "score": 0.0}
        record |= {"generated": generated, "references": references}
        rows.append({"task": "niah", "key": record["key"], "records": [record]})
    rows.append({"task": "perplexity", "key": "p", "records": [{"key": "p", "variant": "", "length": 16}]})
    file = path / "model.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@needs_evaluate
@pytest.mark.parametrize(
    "references", ['datasets.Value("string")', 'datasets.Sequence(datasets.Value("string"))'], ids=["one", "several"]
)
def test_a_local_metric_scores_the_answers_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, references: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "starts_one" if "Sequence" not in references else "starts_several"
    metric = hf_metrics.load_metric(str(metric_folder(tmp_path, name, references)))
    found = hf_metrics.score_samples(samples(tmp_path), metric)
    assert [(c["task"], c["length"], c["n"], c["result"]) for c in found["cells"]] == [
        ("niah", 16, 2, {"starts": 0.5}),
        ("niah", 32, 1, {"starts": 1.0}),
    ]
    assert hf_metrics.score_samples(samples(tmp_path), metric, times=3)["cells"][0]["result"] == {"starts": 1.5}
    with pytest.raises(ConfigError, match="no generated answers of passkey"):
        hf_metrics.score_samples(samples(tmp_path), metric, ["passkey"])


@needs_evaluate
def test_a_metric_for_one_reference_refuses_several(tmp_path: Path) -> None:
    metric = hf_metrics.load_metric(str(metric_folder(tmp_path, "starts_refuse", 'datasets.Value("string")')))
    file = samples(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace('["red"]', '["red", "blue"]', 1), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="the sample 0 has 2"):
        hf_metrics.score_samples(file, metric)


@needs_evaluate
def test_metrics_that_cannot_be_had_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    with pytest.raises(ConfigError, match="trust_remote_code=True"):
        hf_metrics.load_metric("rouge")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"holds no metric script empty\.py"):
        hf_metrics.load_metric(str(empty))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.py").write_text("this is no python")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        hf_metrics.load_metric(str(broken))

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(UnsupportedError, match=r"cannot be reached.*no network.*contained"):
        hf_metrics.load_metric("rouge", trust_remote_code=True)


def test_a_file_that_is_no_samples_file_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "x.jsonl"
    wrong.write_text("[1]\n")
    with pytest.raises(ConfigError, match="no samples file"):
        hf_metrics.score_samples(wrong, None)
