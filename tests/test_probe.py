"""The probe: its layout and its scores, by brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bytetokens import ByteTokenizer
from tiny import llama

from pe_retrofit import ConfigError, UnsupportedError
from pe_retrofit.evaluation import Setting, evaluate_model
from pe_retrofit.evaluation.opening import open_model
from pe_retrofit.evaluation.subject import Subject
from pe_retrofit.evaluation.task import choose_tasks
from pe_retrofit.evaluation.tasks import probe as module
from pe_retrofit.evaluation.tasks.probe import ordinary_tokens

BYTES: dict[str, Any] = {"vocab_size": 260, "pad_token_id": 259, "bos_token_id": 256, "eos_token_id": 257}


@pytest.fixture
def subject() -> Subject:
    return Subject(llama(**BYTES), ByteTokenizer(), "tiny")


def probe(**options: Any) -> Any:
    return choose_tasks(["probe"], "causal", {"probe": options})[0]


def test_layout(subject: Subject) -> None:
    task, setting = probe(repeated=12), Setting(lengths=(25, 40, 97), samples=3)
    items = list(task.items(subject, setting))
    assert [(item.length, item.index) for item in items] == [(n, i) for n in (25, 40, 97) for i in range(3)]
    for item in items:
        ids, first = item.content
        assert len(ids) == item.length == item.tokens
        assert first == 1
        assert ids[0] == 256
        repeated = ids[1:13]
        assert repeated == ids[-12:]
        assert len(set(repeated)) == 12
        assert not set(repeated) & set(ids[13:-12])
        assert max(ids[1:]) < 256
    assert len({tuple(item.content[0][1:13]) for item in items}) == len(items)
    again = list(task.items(subject, setting))
    assert [item.sha for item in again] == [item.sha for item in items]
    other = list(task.items(subject, Setting(lengths=(25, 40, 97), samples=3, seed=1)))
    assert not {item.sha for item in other} & {item.sha for item in items}


def test_a_gap_of_noise(subject: Subject) -> None:
    items = list(probe(repeated=8, gap="noise").items(subject, Setting(lengths=(150,), samples=1)))
    ids = items[0].content[0]
    assert len(ids) == 150
    assert bytes(ids[9:-8]).startswith(b"The grass is green. The sky is blue.")


def test_scores_by_brute_force(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    task, setting = probe(repeated=14), Setting(lengths=(48,), samples=2)
    items = list(task.items(subject, setting))
    for item, records in zip(items, task.run(subject, items, setting), strict=True):
        ids = item.content[0]
        with torch.no_grad():
            logp = subject.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for record, places in zip(records, (range(48 - 13, 48), range(2, 15)), strict=True):
            nll = -sum(logp[i - 1, ids[i]].item() for i in places) / 13
            right = sum(int(logp[i - 1].argmax()) == ids[i] for i in places) / 13
            assert record["nll"] == pytest.approx(nll, rel=1e-4)
            assert record["score"] == pytest.approx(right)
            assert record["tokens"] == 13
            assert record["distance"] == 48 - 1 - 14
        assert [record["variant"] for record in records] == ["", "first copy"]


def test_in_an_evaluation() -> None:
    results = evaluate_model(
        llama(**BYTES),
        ByteTokenizer(),
        tasks=["probe"],
        lengths=[32, 64],
        samples=2,
        options={"probe": {"repeated": 8}},
    )
    rows = results["tasks"]["probe"]["by_length"]
    assert [(row["variant"], row["length"]) for row in rows] == [
        (variant, n) for n in (32, 64) for variant in ("", "first copy")
    ]
    assert all(row["n"] == 2 and 0 <= row["mean"] <= 1 for row in rows)


def test_what_does_not_fit_is_refused(subject: Subject) -> None:
    with pytest.raises(UnsupportedError, match=r"needs at least 129, and the length is 64. Set probe.repeated=31"):
        list(probe().items(subject, Setting(lengths=(64, 256))))
    with pytest.raises(UnsupportedError, match=r"256 tokens that are not special, and probe.repeated=200 needs 400"):
        list(probe(repeated=200).items(subject, Setting(lengths=(512,))))
    with pytest.raises(ConfigError, match="repeated=1 must be between 2 and 1024"):
        probe(repeated=1)
    with pytest.raises(ConfigError, match="gap='silence' must be one of"):
        probe(gap="silence")


@pytest.mark.real
def test_the_real_decoder_copies_and_draws_no_special_token() -> None:
    opened = open_model("smollm2", dtype="float32")
    subject = Subject(opened.model, opened.tokenizer, "smollm2")
    ordinary = set(ordinary_tokens(subject))
    assert not ordinary & set(opened.tokenizer.all_special_ids)
    assert len(ordinary) > 49_000
    task, setting = probe(repeated=32), Setting(lengths=(128,), samples=2)
    items = list(task.items(subject, setting))
    for second, first in task.run(subject, items, setting):
        assert first["score"] == 0, "nobody can guess random tokens"
        assert second["score"] > 0.25
        assert second["nll"] < first["nll"] - 5
