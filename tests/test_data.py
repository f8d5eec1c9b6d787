"""Training rows: which text they hold, in which order, and that a resumed run meets the same ones."""

from __future__ import annotations

import json
import pickle
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert, llama, neox
from tokenizers_made import decoder_tokenizer, encoder_tokenizer
from torch.utils.data import DataLoader

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.training.data import DataOptions, prepare

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

BOS, EOS = 256, 257
TOKENIZER = decoder_tokenizer()


def content(characters: int, seed: int = 0) -> str:
    letters = random.Random(seed)
    return "".join(letters.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(characters))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(content(1000))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": content(5 + 7 * i % 40, i), "id": i} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(text: Any, model: Any = None, tokenizer: Any = TOKENIZER, **options: Any) -> Any:
    return prepare(
        DataOptions(text=text if isinstance(text, list) else str(text), **options), tokenizer, model or host()
    )


def host(**more: Any) -> Any:
    return llama(vocab_size=300, **more)


def neox_host() -> Any:
    model = neox()
    model.resize_token_embeddings(300)
    return model


def text_of(item: dict[str, Any]) -> str:
    return TOKENIZER.decode([i for i in item["input_ids"].flatten().tolist() if i < 256])


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_windows_are_the_text_cut_up(book: Path) -> None:
    data = made(book, length=21, held_out=0.2, shuffle=False)
    text = book.read_text()
    assert data.tokens == 800
    assert data.held_out == 200
    assert [text_of(item) for item in data.train] == [text[i : i + 20] for i in range(0, 800, 20)]
    assert [text_of(item) for item in data.evaluation] == [text[i : i + 20] for i in range(800, 1000, 20)]
    assert all(item["input_ids"][0] == BOS and len(item["input_ids"]) == 21 for item in data.train)
    assert all(torch.equal(item["input_ids"], item["labels"]) for item in data.train)
    assert data.collator([data.train[0]]).keys() == {"input_ids", "labels"}


def test_shuffled_rows_are_each_there_once_and_in_another_order_every_time_round(book: Path) -> None:
    plain = [text_of(item) for item in made(book, length=21, shuffle=False).train]
    data = made(book, length=21)
    first = [text_of(item) for item in data.train]
    assert first != plain
    assert sorted(first) == sorted(plain)
    data.train.set_epoch(1)
    second = [text_of(item) for item in data.train]
    assert sorted(second) == sorted(plain)
    assert second not in (first, plain)
    assert [text_of(item) for item in made(book, length=21, seed=1).train] not in (first, plain)


def test_more_tokens_than_the_text_go_round_it_again(book: Path) -> None:
    once = made(book, length=21, held_out=0)
    data = made(book, length=21, held_out=0, tokens=21 * 120)
    assert len(once.train) == 50
    assert len(data.train) == 120
    for turn in range(3):
        once.train.set_epoch(turn)
        part = [data.train[i] for i in range(50 * turn, min(120, 50 * turn + 50))]
        assert all(same(a, b) for a, b in zip(part, once.train, strict=False))
    data.train.set_epoch(1)  # goes on at row 120, in the middle of the third time round
    assert same(data.train[0], once.train[20])
    assert len(made(book, length=21, tokens=100).train) == 4


def test_nothing_held_out_is_trained_on(rows: Path, book: Path) -> None:
    for packing in ("windows", "packed", "padded"):
        for streaming in (False, True):
            held_out = 200 if streaming else 0.3
            more = {"tokens": 20_000} if streaming else {}
            data = made(rows, length=32, packing=packing, held_out=held_out, streaming=streaming, **more)
            documents = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
            held = "".join(text_of(item) for item in data.evaluation)
            trained = " ".join(text_of(item) for item in data.train)
            documents = [text for text in documents if len(text) >= 8]
            kept = [text for text in documents if text in held]
            assert kept
            assert not any(text[:8] in trained for text in kept), (packing, streaming)
            assert any(text[:8] in trained for text in documents)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_every_document_is_in_one_row(rows: Path, packing: str) -> None:
    data = made(rows, length=48, packing=packing, held_out=0, shuffle=False)
    documents = sorted(json.loads(line)["text"] for line in rows.read_text().splitlines())
    found = []
    for item in data.train:
        ids = item["input_ids"].tolist()
        assert len(ids) == 48 if packing == "packed" else len(ids) <= 48
        if packing == "packed":
            assert item["position_ids"][0] == 0
            for i, position in enumerate(item["position_ids"].tolist()):
                assert position in (0, int(item["position_ids"][i - 1]) + 1)
                if position == 0:
                    assert item["labels"][i] == -100
                    assert ids[i] in (BOS, EOS)  # a document, or padding with eos
        for part in ("," + ",".join(map(str, ids))).split(f",{BOS}")[1:]:
            tokens = [int(token) for token in part.split(",") if token]
            assert EOS in tokens
            found.append(TOKENIZER.decode(tokens[: tokens.index(EOS)]))
    assert sorted(found) == documents
    assert data.tokens == sum(map(len, documents)) + 2 * len(documents)


def test_long_documents_go_on_in_further_rows(book: Path) -> None:
    for packing in ("packed", "padded"):
        data = made(book, length=100, packing=packing, held_out=0, shuffle=False)
        ids = sorted((item["input_ids"].tolist() for item in data.train), key=lambda row: -len(row))
        assert len(ids) == 11
        joined = "".join(TOKENIZER.decode([i for i in row if i < 256]) for row in ids)
        assert sorted(joined) == sorted(book.read_text())


def test_a_curriculum_keeps_the_tokens_and_changes_the_rows(book: Path) -> None:
    stages = [[16, 0.5], [32, 0.25], [64, 0.25]]
    data = made(book, length=64, held_out=0, tokens=64 * 40, curriculum=stages)
    shapes = [tuple(data.collator([data.train[i], data.train[i + 1]])["input_ids"].shape) for i in range(0, 40, 2)]
    assert shapes == [(8, 16)] * 10 + [(4, 32)] * 5 + [(2, 64)] * 5
    assert all((item["input_ids"].view(-1, item["input_ids"].shape[-1])[:, 0] == BOS).all() for item in data.train)
    batch = data.collator([data.train[19], data.train[20]])  # a border: padded, masked and not predicted
    assert batch["input_ids"].shape == (6, 32)
    assert batch["attention_mask"].sum() == 128
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    text = book.read_text()
    assert all(text_of({"input_ids": row}) in text for item in data.train for row in item["input_ids"].view(-1, 16))


def test_rows_do_not_depend_on_workers_or_pickling(book: Path) -> None:
    data = made(book, length=32, positions="pose", target_length=500)
    plain = [data.train[i] for i in range(len(data.train))]
    loaded = list(DataLoader(data.train, batch_size=1, num_workers=2, collate_fn=lambda items: items[0]))
    again = pickle.loads(pickle.dumps(data.train))
    assert all(same(a, b) for a, b in zip(plain, loaded, strict=True))
    assert all(same(a, again[i]) for i, a in enumerate(plain))
    alive = DataLoader(
        data.train, batch_size=1, num_workers=1, persistent_workers=True, collate_fn=lambda items: items[0]
    )
    first = list(alive)
    data.train.set_epoch(1)
    assert not same(first[0], next(iter(alive)))
    assert same(data.train[0], next(iter(alive)))


def test_streams_repeat_themselves_and_go_round(rows: Path) -> None:
    data = made(rows, length=24, streaming=True, tokens=24 * 200, held_out=0, buffer_size=10)
    one, again = list(data.train), list(data.train)
    assert len(one) == len(data.train) == 200
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    plain = made(rows, length=24, streaming=True, tokens=24 * 200, held_out=0, shuffle=False)
    in_order = [text_of(item) for item in plain.train]
    documents = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    assert "".join(in_order).startswith("\n\n".join(documents[:20]))
    assert [text_of(item) for item in one] != in_order
    other = list(made(rows, length=24, streaming=True, tokens=24 * 200, held_out=0, seed=3).train)
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))
    endless = made(rows, length=24, streaming=True, held_out=0, buffer_size=10).train
    with pytest.raises(TypeError, match="max_steps"):
        len(endless)
    assert all(same(a, b) for a, b in zip(one, endless, strict=False))


def test_streams_refuse_several_workers(rows: Path) -> None:
    train = made(rows, length=24, streaming=True, held_out=0).train
    loader = DataLoader(train, batch_size=None, num_workers=2)
    with pytest.raises(UnsupportedError, match="dataloader_num_workers=2"):
        next(iter(loader))
    assert same(next(iter(DataLoader(train, batch_size=None, num_workers=1))), next(iter(train)))


def run(folder: Path, data: Any, *, steps: int, stop: int | None = None, resume: bool = False) -> tuple[Any, list[Any]]:
    """Train; ``stop``: as if killed after so many steps, right after saving."""
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == stop:
                control.should_save = control.should_training_stop = True

    seen = []

    def collate(items: Any) -> Any:
        batch = data.collator(items)
        seen.append({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
        return batch

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        seed=5,
        **data.arguments,
    )
    model = data_host(data)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data.train, data_collator=collate, callbacks=[Stop()] if stop else []
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.state_dict(), seen


def data_host(data: Any) -> Any:
    return bert(vocab_size=300) if data.objective == "mlm" else host()


CASES: dict[str, dict[str, Any]] = {
    "windows": {},
    "pose": {"positions": "pose", "target_length": 300},
    "randomized": {"positions": "randomized", "target_length": 300},
    "packed": {"packing": "packed"},
    "curriculum": {"curriculum": [[16, 0.5], [32, 0.5]], "tokens": 32 * 24},
    "two epochs": {"tokens": 32 * 12},
    "mlm": {},
    "streaming": {"streaming": True, "held_out": 0},
    "streaming, epochs": {"streaming": True, "held_out": 0, "tokens": 32 * 12, "packing": "padded"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, rows: Path, name: str) -> None:
    encoder = name == "mlm"
    data = made(
        rows,
        bert(vocab_size=300) if encoder else None,
        encoder_tokenizer() if encoder else TOKENIZER,
        **{"length": 32, **CASES[name]},
    )
    stop = 3 if "epochs" in name else 2  # within the second epoch
    whole, all_seen = run(tmp_path / "whole", data, steps=4)
    _, first = run(tmp_path / "parts", data, steps=4, stop=stop)
    weights, second = run(tmp_path / "parts", data, steps=4, resume=True)
    unique = [b for i, b in enumerate(all_seen) if i == 0 or not same(b, all_seen[i - 1])]
    assert len(unique) > 4  # the rows differ, or resuming anywhere would do
    if name == "two epochs":
        assert not any(same(one, other) for i, one in enumerate(all_seen) for other in all_seen[:i])
    assert sum(len(batch["input_ids"]) for batch in first) < sum(len(batch["input_ids"]) for batch in all_seen)
    assert any(same(second[-1], batch) for batch in all_seen)
    assert all(torch.equal(whole[key], weights[key]) for key in whole)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_share_one_order(rows: Path, streaming: bool) -> None:
    from accelerate.data_loader import prepare_data_loader

    data = made(rows, length=32, streaming=streaming, held_out=0, tokens=32 * 20)
    plain = list(islice(iter(data.train), 8)) if streaming else [data.train[i] for i in range(8)]
    dispatch = data.arguments.get("accelerator_config")
    shares = []
    for rank in range(2):
        loader = DataLoader(data.train, batch_size=2, collate_fn=lambda items: items)
        sharded = prepare_data_loader(
            loader, num_processes=2, process_index=rank, put_on_device=False, **(dispatch or {})
        )
        shares.append(list(sharded)[:2])
    met = [item for step in range(2) for rank in range(2) for item in shares[rank][step]]
    assert all(same(a, b) for a, b in zip(plain, met, strict=True))


def test_objectives_follow_the_model(book: Path) -> None:
    encoder = bert(vocab_size=300)
    assert made(book, length=32).objective == "causal"
    assert made(book, neox_host(), length=32).objective == "causal"
    assert made(book, encoder, encoder_tokenizer(), length=32).objective == "mlm"
    with pytest.raises(ConfigError, match=r"'mlm' does not fit LlamaModel.*'causal' or 'completion'"):
        made(book, objective="mlm")
    with pytest.raises(ConfigError, match=r"'causal' does not fit BertModel.*'mlm'"):
        made(book, encoder, encoder_tokenizer(), objective="causal", length=32)
    with pytest.raises(ConfigError, match="attend across documents"):
        made(book, encoder, encoder_tokenizer(), packing="packed", length=32)
    with pytest.raises(UnsupportedError, match=r"no language-modelling head.*AutoModelForMaskedLM"):
        made(book, bert("BertModel", vocab_size=300), encoder_tokenizer(), length=32)


def test_what_is_wrong_with_a_text(tmp_path: Path, book: Path, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"'missing.txt' does not exist"):
        made("missing.txt")
    with pytest.raises(ConfigError, match=r"'xxxxx.*does not exist"):
        made("x" * 900)
    with pytest.raises(ConfigError, match=r"no field 'content'.*Its fields: text, id"):
        made(rows, field="content")
    with pytest.raises(ConfigError, match=r"field='content' names a column of rows.*plain text"):
        made(book, field="content")
    with pytest.raises(ConfigError, match=r"1000 tokens.*less than one row of length=2000"):
        made(book, length=2000, held_out=0)
    with pytest.raises(ConfigError, match=r"beside the 990 that held_out=990.*10 are left"):
        made(book, length=32, held_out=990)
    with pytest.raises(ConfigError, match=r"held_out=10 keeps 10 tokens.*less than one row"):
        made(book, length=32, held_out=10)
    with pytest.raises(ConfigError, match=r"streaming reads rows.*plain text"):
        made(book, streaming=True, held_out=0)
    with pytest.raises(ConfigError, match=r"nothing is left beside what is held out"):
        made(rows, streaming=True, held_out=1e6, length=32)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n{"text": "  "}\n')
    for packing in ("packed", "padded"):
        with pytest.raises(ConfigError, match=r"no document with a token"):
            made(empty, packing=packing)
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": " "}\n{"text": "some words"}\n')
    data = made(short, packing="padded", held_out=0)
    assert len(data.train) == 1
    assert "1 documents" in data.notes[0]


def test_what_a_table_does_not_hold(book: Path) -> None:
    model, tokenizer = bert(vocab_size=300), encoder_tokenizer()  # 32 positions
    with pytest.raises(UnsupportedError, match=r"length=64 is more than the 32 positions.*'alibi'"):
        made(book, model, tokenizer, length=64)
    more = {"length": 16, "positions": "randomized", "target_length": 64}
    with pytest.raises(UnsupportedError, match=r"target_length=64 is more than the 32 positions"):
        made(book, model, tokenizer, **more)
    patch_model(model, "alibi")
    assert len(made(book, model, tokenizer, length=64).train) > 0
    assert int(max(item["position_ids"].max() for item in made(book, model, tokenizer, **more).train)) > 32


def test_pad_tokens(tmp_path: Path, rows: Path) -> None:
    from tokenizers_made import byte_tokenizer

    data = made(rows, length=48, packing="padded")
    batch = data.collator([data.train[i] for i in range(4)])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == EOS).all()
    assert (batch["labels"][padding] == -100).all()
    assert (batch["labels"][~padding] == batch["input_ids"][~padding]).all()
    with pytest.raises(ConfigError, match=r"no pad, eos or bos token.*windows"):
        made(rows, tokenizer=byte_tokenizer(), packing="padded")
    assert made(rows, tokenizer=byte_tokenizer(), length=32).train[0]["input_ids"].shape == (32,)


def test_several_texts_and_their_names(tmp_path: Path, book: Path, rows: Path) -> None:
    both = made(f"{book},{rows}", length=32)
    listed = made([str(book), str(rows)], length=32)
    assert both.text_label == listed.text_label == "book.txt + rows.jsonl, field text"
    assert both.sha256 == listed.sha256
    comma = tmp_path / "a,b.txt"
    comma.write_text(content(500, 9))
    assert made(comma, length=32).text_label == "a,b.txt"
    assert made(rows, length=32).sha256 != both.sha256


def test_progress_is_told(book: Path) -> None:
    told: list[tuple[str, float, float]] = []
    prepare(
        DataOptions(text=str(book), length=32),
        TOKENIZER,
        host(),
        lambda text, done, total: told.append((text, done, total)),
    )
    assert told[-1] == ("tokenising book.txt", 1000.0, 1000)


def test_the_page_names_every_option() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for row in DataOptions.describe():
        value = row["default"]
        shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        assert f"| `{row['option']}` | {shown} | {row['help']} |" in rows


def test_all_problems_of_the_options_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        DataOptions.from_options(
            {"lenght": 5, "packing": "tight", "held_out": -1, "curriculum": [[16, 0.5], [32, 0.2]], "seed": -1}
        )
    message = str(error.value)
    for part in ("did you mean 'length'", "packing='tight'", "held_out=-1", "add up to 1", "seed=-1", "'text' is req"):
        assert part in message
    for wrong, match in [
        ({"text": ""}, "text=''"),
        ({"text": []}, "text="),
        ({"text": "a", "curriculum": [[16]]}, r"\[tokens per row, share\]"),
        ({"text": "a", "curriculum": [[48, 0.5], [512, 0.5]]}, "every other must divide it"),
        ({"text": "a", "curriculum": [[512, 1.0]], "packing": "padded"}, "packing='windows'"),
        ({"text": "a", "positions": "pose"}, "target_length of at least"),
        ({"text": "a", "positions": "pose", "target_length": 100}, "target_length of at least"),
        ({"text": "a", "target_length": 1000}, "needs positions="),
        ({"text": "a", "objective": "completion"}, "'padded' or 'packed'"),
        ({"text": "a", "objective": "mlm", "packing": "packed"}, "'padded' or 'windows'"),
        ({"text": "a", "streaming": True}, "taken from its beginning"),
        ({"text": "a", "tokens": 10}, "less than one row"),
    ]:
        with pytest.raises(ConfigError, match=match):
            DataOptions.from_options(wrong)
    options = DataOptions.from_options({"text": ["a", "b"], "curriculum": [[256, 0.5], [512, 0.5]]})
    plain = json.loads(json.dumps(options.to_dict()))
    assert plain.pop("name") == "data"
    assert DataOptions.from_options(plain) == options
    assert hash(options)
