"""Tasks for encoders, and short windows: against computations by hand, and with faults that they must catch."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pe_retrofit import ConfigError, UnsupportedError, models, patch_model, texts
from pe_retrofit.evaluation import Interrupted, Setting, evaluate_model
from pe_retrofit.evaluation import tasks as _tasks  # noqa: F401  (registers them)
from pe_retrofit.evaluation.embedding import embed, find_pooling, rank
from pe_retrofit.evaluation.subject import Subject
from pe_retrofit.evaluation.tables import tables
from pe_retrofit.evaluation.task import choose_tasks

WORDS = 5000
TRAINED = 96
SMALL: dict[str, Any] = {"lengths": (72, 192), "samples": 3, "depths": (0.0, 1.0)}


class WordTokenizer:
    """Words and signs as tokens, numbered by a checksum."""

    cls_token_id, sep_token_id, mask_token_id, pad_token_id, bos_token_id = 0, 1, 2, 3, 4

    def __len__(self) -> int:
        return WORDS

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        for sign in ".?,'":
            text = text.replace(sign, f" {sign} ")
        return [10 + zlib.crc32(word.encode()) % (WORDS - 10) for word in text.split()]


def encoder(head: str = "BertModel", **more: Any) -> Any:
    """An encoder whose layers add nothing, so that a text is the mean of its words."""
    model = tiny.bert(
        head, vocab_size=WORDS, hidden_size=256, max_position_embeddings=TRAINED, num_hidden_layers=1, **more
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "output.dense" in name or "token_type" in name:
                parameter.zero_()
            if "position_embeddings" in name:
                parameter.mul_(0.3)
    return model


def extended(positions: int = 192, init: str = "tile", head: str = "BertModel") -> Any:
    model = encoder(head)
    patch_model(model, "learned", max_positions=positions, init=init)
    return model


@pytest.fixture(scope="module")
def text() -> texts.Text:
    return texts.python_topics()


def run(model: Any, text: texts.Text, tasks: tuple[str, ...] = ("encoder",), **more: Any) -> dict[str, Any]:
    return evaluate_model(model, WordTokenizer(), tasks=tasks, text=text, **{"against": None, **SMALL, **more})


def laid_out(name: str, model: Any, text: texts.Text, options: dict[str, Any] | None = None, **more: Any) -> Any:
    subject = Subject(model, WordTokenizer(), "tiny")
    setting = Setting(text=text, **{**SMALL, **more})
    task = choose_tasks([name], subject.kind, {name: options or {}})[0]
    return subject, setting, task, list(task.items(subject, setting))


def by_hand(model: Any, ids: list[int], pooling: str) -> torch.Tensor:
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    return {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values}[pooling]


# --- retrieval


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("name", ["encoder_passkey", "encoder_needle"])
def test_scores_and_margins_are_those_of_a_ranking_by_hand(name: str, pooling: str, text: texts.Text) -> None:
    # real layers, or the first token would be the same whatever the text
    model = tiny.bert("BertModel", vocab_size=WORDS, max_position_embeddings=192)
    subject, setting, task, items = laid_out(name, model, text, {"pooling": pooling, "candidates": 8})
    for item in items:
        documents, queries, depths, _ = item.content
        assert len(documents) == 8
        assert len(queries) == 6
        vectors = [by_hand(model, ids, pooling) for ids in documents]
        for i, record in enumerate(task.run(subject, [item], setting)[0]):
            query = by_hand(model, queries[i], pooling)
            cosines = [float(query @ v / (query.norm() * v.norm())) for v in vectors]
            others = [c for j, c in enumerate(cosines) if j != i]
            assert record["similarity"] == pytest.approx(cosines[i], abs=1e-5)
            assert record["margin"] == pytest.approx(cosines[i] - max(others), abs=1e-5)
            assert record["rank"] == 1 + sum(c > cosines[i] for c in others)
            assert record["score"] == float(record["rank"] == 1)
            assert (record["depth"], record["length"]) == (depths[i], item.length)


def test_documents_have_the_length_and_hold_their_fact_where_the_depth_says(text: texts.Text) -> None:
    tokens = WordTokenizer()
    for name, word in (("encoder_passkey", "pass"), ("encoder_needle", "founded")):
        subject, _, _, items = laid_out(name, extended(), text, depths=(0.0, 0.5, 1.0))
        again = laid_out(name, extended(), text, depths=(0.0, 0.5, 1.0))[3]
        other = laid_out(name, extended(), text, depths=(0.0, 0.5, 1.0), seed=1)[3]
        assert [i.sha for i in items] == [i.sha for i in again]
        assert not {i.sha for i in items} & {i.sha for i in other}
        for item in items:
            documents, queries, depths, places = item.content
            assert {len(d) for d in documents} == {item.length}
            assert len(set(map(tuple, queries))) == len(queries) == 9
            shared = set(queries[0]).intersection(*queries)
            for document, query, depth, place in zip(documents, queries, depths, places, strict=True):
                asked = [t for t in query if t not in shared]
                assert asked, "each query asks for something of its own"
                assert set(asked) <= set(document[place : place + 24])
                assert tokens.encode(word, add_special_tokens=False)[0] in document[place : place + 24]
                assert abs((place - 1) - depth * (item.length - 24)) <= 24
                assert document[:1] + document[-1:] == [*subject.start, *subject.end]


def test_a_sound_model_finds_and_scrambled_positions_are_caught() -> None:
    words = " ".join(f"w{i % 8}" for i in range(4000))  # a haystack without words of the queries
    text = texts.Text("words", words, "0")
    sound = run(extended(), text, samples=6)
    broken_model = extended()
    with torch.no_grad():  # the later half of the table drowns the words that stand there
        rows = broken_model.embeddings.position_embeddings.weight[96:]
        rows.add_(6 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    broken = run(broken_model, text, samples=6)
    for name in ("encoder_passkey", "encoder_needle"):
        good, bad = ({(c["length"], c["depth"]): c["mean"] for c in r["tasks"][name]["cells"]} for r in (sound, broken))
        assert min(good.values()) >= 0.8, (name, good)
        assert bad[72, 0.0] == good[72, 0.0]  # untouched there
        assert bad[72, 1.0] == good[72, 1.0]
        assert bad[192, 1.0] <= 0.4, "the facts at the end are drowned"


def test_a_mean_that_is_no_number_scores_nothing(text: texts.Text) -> None:
    model = extended()
    with torch.no_grad():
        model.embeddings.position_embeddings.weight[150:] = float("nan")
    results = run(model, text, ("encoder_passkey",))
    row = results["tasks"]["encoder_passkey"]["by_length"][1]
    assert (row["mean"], row["not_finite"]) == (0.0, 6)


def test_equal_documents_are_no_success() -> None:
    same = torch.nn.functional.normalize(torch.ones(2, 4), dim=-1)
    assert [r.rank for r in rank(same[:1], same, [0])] == [2]


def test_stock_is_skipped_where_its_table_ends_and_says_why(text: texts.Text, tmp_path: Path) -> None:
    results = run(extended(), text, against=encoder(), out=tmp_path / "one")
    for name in ("encoder_passkey", "encoder_needle"):
        task = results["tasks"][name]
        assert task["status"] == task["stock_run"]["status"] == "ok"
        assert list(task["stock_run"]["problems"]) == ["192"]
        assert "at most 96 tokens" in task["stock_run"]["problems"]["192"]
        short, long = task["by_length"]
        assert short["difference"] == 0.0  # tile leaves the old length as it was
        assert (long["length"], long["stock"]) == (192, None)
        assert long["mean"] is not None
    table = next(iter(tables(results)))
    assert table.rows[0][-1] == "-"
    assert "No stock at 192: " in table.caption
    assert "at most 96 tokens" in table.caption
    # another retrofit takes stock's answers, and what it was skipped at, from that run
    second = run(extended(init="interpolate"), text, against=tmp_path / "one", out=tmp_path / "two")
    task = second["tasks"]["encoder_needle"]
    assert task["by_length"][0]["stock"] == results["tasks"]["encoder_needle"]["by_length"][0]["stock"]
    assert "at most 96 tokens" in task["stock_run"]["problems"]["192"]
    # a length that was never asked there is no length to skip
    with pytest.raises(ConfigError, match="lacks 2 of the samples"):
        run(extended(), text, against=tmp_path / "one", out=tmp_path / "three", lengths=(72, 100, 192))


def test_a_run_that_was_stopped_goes_on(text: texts.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(extended(), text, out=tmp_path / "whole")
    asked = []
    before = Subject.embeddings

    def stop(self: Subject, rows: Any, pooling: str) -> Any:
        asked.append(len(rows[0]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return before(self, rows, pooling)

    monkeypatch.setattr(Subject, "embeddings", stop)
    with pytest.raises(Interrupted):
        run(extended(), text, out=tmp_path / "parts")
    run(extended(), text, out=tmp_path / "parts")
    assert asked.count(72) == 2, "the first set of each task was read once"
    one, two = ((tmp_path / kind / "samples" / "model.jsonl").read_bytes() for kind in ("whole", "parts"))
    assert one == two
    assert whole["tasks"]["encoder_needle"]["by_length"][0]["n"] == 6


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"candidates": 5}, {}, "a document for each query"),
        ({"candidates": 1}, {}, "between 2 and 1600"),
        ({"pooling": "median"}, {}, "must be one of 'auto', 'mean', 'cls', 'max'"),
        ({"queries": 5}, {}, "'queries' is not an option"),
        ({}, {"samples": 801}, "at most 1600"),
        ({}, {"lengths": (16,)}, "Give longer lengths"),
        ({}, {"text": texts.Text("tiny", "few words", "0")}, "has 2 tokens, and a haystack needs"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], more: dict[str, Any], message: str, text: texts.Text
) -> None:
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        run(extended(), **{"text": text, **more}, tasks=("encoder_needle",), options={"encoder_needle": options})


def test_a_decoder_is_refused(text: texts.Text) -> None:
    with pytest.raises(ConfigError, match="needs an encoder of the BERT family"):
        evaluate_model(tiny.llama(vocab_size=WORDS), WordTokenizer(), tasks=["encoder_needle"], text=text)


# --- pooling


def beside(folder: Path, pooling: Any, kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")) -> Any:
    modules = [{"idx": i, "path": kind, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    if pooling is not None:
        (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    model = encoder()
    model.config._name_or_path = str(folder)
    return model


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode": "cls", "word_embedding_dimension": 256}, "cls"),
    ],
)
def test_pooling_is_read_from_the_files_beside_the_model(config: Any, mode: str, tmp_path: Path) -> None:
    model = beside(tmp_path, config)
    assert find_pooling(model).mode == mode
    assert find_pooling(model, "max").mode == "max"


@pytest.mark.parametrize(
    ("config", "kinds", "error", "message"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, ("Transformer", "Pooling"), UnsupportedError, "weightedmean"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            ("Transformer", "Pooling"),
            UnsupportedError,
            "cls_token, pooling_mode_mean_tokens",
        ),
        ({"pooling_mode_cls_token": True}, ("Transformer", "Pooling", "Dense"), UnsupportedError, "puts Dense after"),
        (None, ("Transformer", "Pooling"), ConfigError, "missing"),
        ({}, ("Transformer", "Pooling"), UnsupportedError, "no pooling"),
    ],
)
def test_pooling_that_is_not_done_here_is_refused(
    config: Any, kinds: tuple[str, ...], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        find_pooling(beside(tmp_path, config, kinds))


def test_without_files_it_is_the_mean() -> None:
    assert find_pooling(encoder()).mode == "mean"


def test_batches_change_nothing() -> None:
    subject = Subject(encoder(), WordTokenizer(), "tiny")
    rows = [[0, *range(20, 20 + n), 1] for n in (5, 9, 5, 3, 9, 5)]
    together = embed(subject, rows, "mean", 8)
    for row, vector in zip(rows, together, strict=True):
        alone = by_hand(subject.model, row, "mean")
        assert torch.allclose(vector.double(), alone / alone.norm(), atol=1e-5)
    assert torch.allclose(together, embed(subject, rows, "mean", 1), atol=1e-6)


# --- hidden tokens, short windows


def hidden_nll(model: Any, ids: list[int], places: list[int]) -> float:
    masked = [2 if i in places else token for i, token in enumerate(ids)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([masked])).logits[0].double()
    return -sum(logits[i].log_softmax(-1)[ids[i]] for i in places).item() / len(places)


def test_masked_hides_the_same_tokens_at_every_length(text: texts.Text) -> None:
    model = tiny.bert(vocab_size=WORDS, max_position_embeddings=192)
    subject, setting, task, items = laid_out("masked", model, text, {"tail": 40, "documents": 3})
    assert [(i.length, i.index) for i in items] == [(n, d) for n in (72, 192) for d in range(3)]
    for short, long in zip(items[:3], items[3:], strict=True):
        (ids, places), (more, further) = short.content, long.content
        assert len(ids) == 72
        assert len(more) == 192
        assert ids[-41:] == more[-41:]
        assert [i + 120 for i in places] == further
        assert len(places) == 6  # 15 % of 40
        assert len(set(places)) == 6
        assert min(places) >= 31
        assert max(places) < 71
    for item in items:
        record = task.run(subject, [item], setting)[0][0]
        ids, places = item.content
        assert record["nll"] == pytest.approx(hidden_nll(model, ids, places), rel=1e-5)
        assert (record["tokens"], record["part_tokens"], record["parts"]) == (6, [6], [record["nll"]])


def test_masked_catches_scrambled_positions(text: texts.Text) -> None:
    def trained(scrambled: bool) -> Any:
        """A head that answers with the word at the same place: hidden words are never known, positions decide."""
        model = extended(head="BertForMaskedLM")
        if scrambled:
            with torch.no_grad():
                rows = model.bert.embeddings.position_embeddings.weight
                rows[96:] = rows[96:] * 30
        return model

    task = {"tasks": ("masked",), "options": {"masked": {"tail": 40, "documents": 4}}}
    results = run(trained(True), text, against=trained(False), **task)
    short, long = results["tasks"]["masked"]["cells"]
    assert short["ratio"] == pytest.approx(1.0)
    assert abs(long["ratio"] - 1) > 0.1
    assert long["ratio_ci95"][0] <= long["ratio"] <= long["ratio_ci95"][1]


@pytest.mark.parametrize("share", [0.15, 1.0])
def test_short_windows_of_an_encoder(share: float, text: texts.Text) -> None:
    model = tiny.bert(vocab_size=WORDS, max_position_embeddings=64)
    subject, setting, task, items = laid_out("short", model, text, {"windows": 3, "share": share})
    assert [item.tokens for item in items] == [64] * 3  # not 512: the model was made for 64
    records = [found[0] for found in task.run(subject, items, setting)]
    assert [r["tokens"] for r in records] == [round(share * 62)] * 3
    if share == 1.0:
        for item, record in zip(items, records, strict=True):
            assert record["nll"] == pytest.approx(hidden_nll(model, item.content, list(range(1, 63))), rel=1e-5)


def test_short_windows_of_a_decoder(text: texts.Text) -> None:
    model = tiny.llama(vocab_size=WORDS, max_position_embeddings=64, bos_token_id=4)
    subject, setting, task, items = laid_out("short", model, text, {"window": 40, "windows": 3})
    tokens = WordTokenizer().encode(text.content, add_special_tokens=False)
    assert [i.content[1:] for i in items] == [
        tokens[at : at + 39] for at in (0, (len(tokens) - 39) // 2, len(tokens) - 39)
    ]
    for item, found in zip(items, task.run(subject, items, setting), strict=True):
        ids = torch.tensor(item.content)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
        assert ids[0] == 4
        assert found[0]["nll"] == pytest.approx(-logits.gather(1, ids[1:, None]).mean().item(), rel=1e-5)


def test_short_is_what_a_retrofit_lost(text: texts.Text) -> None:
    stock = tiny.llama(vocab_size=WORDS, max_position_embeddings=64)
    model = tiny.patched("nope", lambda: tiny.llama(vocab_size=WORDS, max_position_embeddings=64))
    more = {"tasks": ("short",), "options": {"short": {"window": 40, "windows": 6}}}
    same = run(stock, text, against=stock, **more)["tasks"]["short"]["cells"][0]
    lost = run(model, text, against=stock, **more)["tasks"]["short"]["cells"][0]
    assert same["ratio"] == 1.0
    assert lost["ratio"] == pytest.approx(lost["mean"] / lost["stock"]["mean"])
    assert lost["ratio"] != 1.0


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("masked", {"tail": 71}, "Set masked.tail=36"),
        ("masked", {"share": 0}, "share=0 must be between"),
        ("short", {"window": 8}, "window=8 must be between"),
    ],
)
def test_wrong_options_of_masked_and_short(task: str, options: Any, message: str, text: texts.Text) -> None:
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        run(extended(head="BertForMaskedLM"), text, (task,), options={task: options})


def test_an_encoder_without_a_head_is_told_so(text: texts.Text) -> None:
    for task in ("masked", "short"):
        with pytest.raises(ConfigError, match="language-modelling head"):
            run(extended(), text, (task,))


def test_no_mask_token(text: texts.Text) -> None:
    class Without(WordTokenizer):
        mask_token_id: Any = None

    results = evaluate_model(
        extended(head="BertForMaskedLM"), Without(), tasks=["short"], text=text, against=None, **SMALL
    )
    assert results["tasks"]["short"]["status"] == "skipped"
    assert "no mask token" in results["tasks"]["short"]["reason"]


@pytest.mark.real
@pytest.mark.skipif(not models.minilm_available(), reason="the package with MiniLM is not installed")
def test_minilm_finds_and_tile_leaves_the_old_length_alone(text: texts.Text) -> None:
    stock, tokenizer = models.minilm()
    assert (find_pooling(stock).mode, find_pooling(stock).source) == ("mean", "1_Pooling/config.json")
    model, _ = models.minilm()
    patch_model(model, "learned", max_positions=1024, init="tile")
    results = evaluate_model(
        model, tokenizer, tasks=["encoder"], text=text, against=stock, lengths=(96,), samples=2, depths=(0, 1)
    )
    for task in results["tasks"].values():
        row = task["by_length"][0]
        assert row["mean"] >= 0.75
        assert row["difference"] == 0.0
