"""What a row holds beside its tokens: positions, masks, labels; and that models understand it as it is meant."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosts import HOSTS
from hypothesis import given
from hypothesis import strategies as some
from tiny import bert, llama, neox, patched
from tokenizers_made import CHAT, decoder_tokenizer, encoder_tokenizer

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.training.data import DataOptions, prepare
from pe_retrofit.training.data.draws import pose, randomized
from pe_retrofit.training.data.packing import Piece, best_fit, cut
from pe_retrofit.training.data.streamed import shuffled

pytest.importorskip("datasets", reason="the extra 'train' is not installed")

BOS, EOS = 256, 257
TOKENIZER = decoder_tokenizer(chat=CHAT)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def wide(model: Any) -> Any:
    """With tokens for bytes, all of them different."""
    model.resize_token_embeddings(300)
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(7))
    return model


def made(text: Path, model: Any = None, tokenizer: Any = TOKENIZER, **options: Any) -> Any:
    options = {"held_out": 0, "shuffle": False, **options}
    return prepare(DataOptions(text=str(text), **options), tokenizer, model or wide(llama()))


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return lines(tmp_path / "rows.jsonl", [{"text": "abcdefghij"[: 2 + i % 8] * (1 + i % 3)} for i in range(40)])


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(chr(97 + i * i % 26) for i in range(2000)))
    return path


shapes = some.tuples(some.integers(2, 40), some.integers(0, 500), some.integers(2, 6), some.integers(0, 2**32))


@given(shapes)
def test_pose_skips_between_chunks(shape: tuple[int, int, int, int]) -> None:
    length, more, chunks, seed = shape
    chunks = min(chunks, length)
    positions = pose(np.random.default_rng(seed), length, length + more, chunks)
    assert positions.shape == (length,)
    assert positions[0] == 0
    assert positions[-1] < length + more
    steps = positions.diff()
    assert (steps >= 1).all()
    assert int((steps > 1).sum()) <= chunks - 1
    if more == 0:
        assert torch.equal(positions, torch.arange(length))


def test_pose_covers_the_target() -> None:
    """Every distance up to the target is met, and each of the draws of the paper is uniform."""
    random = np.random.default_rng(0)
    drawn = torch.stack([pose(random, 16, 64, 2) for _ in range(4000)])
    skips = drawn[:, -1] - 15
    assert set(skips.tolist()) == set(range(49))
    assert abs(float(skips.float().mean()) - 24) < 1
    cuts = (drawn.diff(dim=1) > 1).float()[skips > 0].argmax(1) + 1
    assert set(cuts.tolist()) == set(range(1, 16))
    distances = (drawn[:, :, None] - drawn[:, None, :]).unique()
    assert int(distances.max()) == 63
    assert len(distances) == 127


@given(shapes)
def test_randomized_positions_ascend(shape: tuple[int, int, int, int]) -> None:
    length, more, _, seed = shape
    positions = randomized(np.random.default_rng(seed), length, length + more)
    assert positions.shape == (length,)
    assert int(positions[0]) >= 0
    assert int(positions[-1]) < length + more
    assert (positions.diff() >= 1).all()


def test_randomized_positions_are_uniform() -> None:
    random = np.random.default_rng(0)
    counts = torch.zeros(20)
    for _ in range(3000):
        counts[randomized(random, 5, 20)] += 1
    assert (counts / 3000 - 0.25).abs().max() < 0.05


@given(some.lists(some.integers(1, 12), max_size=60))
def test_best_fit_holds_everything_once(sizes: list[int]) -> None:
    rows = best_fit(sizes, 12)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    filled = [sum(sizes[index] for index in row) for row in rows]
    assert all(size <= 12 for size in filled)
    assert sum(size <= 6 for size in filled) <= 1  # two half-empty rows would have been one


@given(some.lists(some.integers(0, 9), min_size=1, max_size=30), some.integers(1, 10))
def test_cut_pieces_are_the_whole(ids: list[int], length: int) -> None:
    parts = list(cut(Piece(ids, ids), length))
    assert [i for part in parts for i in part.ids] == ids
    assert all(len(part) == length for part in parts[:-1])


@given(some.integers(0, 50), some.integers(2, 20), some.integers(0, 9))
def test_the_buffer_gives_everything_once(count: int, size: int, seed: int) -> None:
    assert sorted(shuffled(range(count), size, seed, 1)) == list(range(count))


PACKS: dict[str, Any] = {
    "stock": None,
    "alibi": "alibi",
    "t5": "t5",
    "native+t5": ["native", "t5"],
    "yarn": "yarn",
    "nope": "nope",
    "fire": "fire",
    "fox": "fox",
}


def encoded(spec: Any, build: Any = llama) -> Any:
    if spec is None:
        return build()
    return patched(spec, build, **({"factor": 4.0} if spec == "yarn" else {}))


@pytest.mark.parametrize("build", [llama, neox])
@pytest.mark.parametrize("name", PACKS)
def test_packed_documents_are_as_if_alone(documents: Path, name: str, build: Any) -> None:
    model = wide(encoded(PACKS[name], build)).eval()
    data = made(documents, model, length=40, packing="packed")
    batch = data.collator([data.train[i] for i in (-4, -3, -2)])  # many short documents
    assert batch.keys() == {"input_ids", "labels", "position_ids", "use_cache"}
    with torch.no_grad():
        logits = model(**batch).logits
        compared = 0
        for row in range(3):
            starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 40]
            assert len(starts) > 2
            for start, stop in pairwise(starts):
                alone = model(batch["input_ids"][row : row + 1, start:stop], use_cache=False).logits[0]
                assert torch.allclose(logits[row, start:stop], alone, atol=2e-4)
                compared += 1
        assert compared >= 9
        leaking = model(**{**batch, "position_ids": torch.arange(40)[None].expand(3, -1)}).logits
    assert not torch.allclose(leaking, logits, atol=1e-2)


def test_the_loss_of_packed_rows_is_that_of_the_documents(documents: Path) -> None:
    model = wide(llama())
    packed, padded = (made(documents, model, length=40, packing=kind) for kind in ("packed", "padded"))
    found = []
    for data in (packed, padded):
        total = count = 0.0
        for i in range(len(data.train)):
            batch = data.collator([data.train[i]])
            predicted = int((batch["labels"][:, 1:] != -100).sum())
            with torch.no_grad():
                total += float(model(**batch).loss) * predicted
            count += predicted
        found.append((total / count, count))
    assert found[0][1] == found[1][1]
    assert abs(found[0][0] - found[1][0]) < 1e-4


def test_models_that_do_not_mask_are_refused(documents: Path) -> None:
    tokenizer = decoder_tokenizer()
    with pytest.raises(UnsupportedError, match=r"depends on the one packed before it.*'padded'"):
        made(documents, wide(HOSTS["gpt_oss"].fresh()), tokenizer, length=40, packing="packed")
    with pytest.raises(UnsupportedError, match=r"'packed' does not fit Bert"):
        made(documents, wide(HOSTS["bert_decoder"].fresh()), tokenizer, length=30, packing="packed")
    model = wide(llama())
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match=r"flash_attention_2.*batches of one row.*'sdpa'"):
        made(documents, model, length=40, packing="packed")


def test_a_probe_leaves_the_model_as_it_was(documents: Path) -> None:
    model = wide(llama()).train()
    model.model.layers[1].eval()
    state = torch.get_rng_state()
    made(documents, model, length=40, packing="packed")
    assert model.training
    assert not model.model.layers[1].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("positions", ["pose", "randomized"])
@pytest.mark.parametrize("name", ["stock", "alibi", "yarn"])
@pytest.mark.parametrize("build", [llama, neox])
def test_far_positions_are_one_text_with_long_distances(book: Path, positions: str, name: str, build: Any) -> None:
    model = wide(encoded(PACKS[name], build)).eval()
    data = made(book, model, length=24, positions=positions, target_length=120)
    batch = data.collator([data.train[i] for i in range(8)])
    assert (batch["attention_mask"] == 1).all()
    assert (batch["position_ids"].diff(dim=1) >= 1).all()
    assert batch["position_ids"].max() > 80
    with torch.no_grad():
        logits = model(**batch).logits
        changed = batch["input_ids"].clone()
        changed[:, :4] = BOS
        other = model(**{**batch, "input_ids": changed}).logits
        normal = model(batch["input_ids"]).logits
    assert ((logits - other)[:, -1].abs().amax(-1) > 1e-5).all()  # the end sees the beginning
    assert not torch.allclose(logits, normal, atol=1e-2)
    cut_off = {key: value for key, value in batch.items() if key not in ("attention_mask", "labels")}
    with torch.no_grad():  # what happens without the mask
        split = model(**cut_off, use_cache=False).logits
    assert not torch.allclose(split, logits, atol=1e-2)
    evaluated = made(book, model, length=24, positions=positions, target_length=120, held_out=0.1).evaluation[0]
    assert evaluated.keys() == {"input_ids", "labels"}


def test_far_positions_without_effect_are_refused(book: Path) -> None:
    model = wide(patched("nope"))
    with pytest.raises(UnsupportedError, match="does not look at position ids"):
        made(book, model, length=24, positions="pose", target_length=120)


def test_far_positions_start_after_the_reserved_rows_of_a_table(book: Path) -> None:
    model = wide(HOSTS["roberta"].fresh())
    data = made(book, model, encoder_tokenizer(), length=16, positions="randomized", target_length=32)
    positions = torch.stack([row["position_ids"] for row in data.train])
    assert int(positions.min()) == 2
    assert int(positions.max()) == 33
    model(**data.collator([data.train[0]]))
    plain = made(book, wide(bert()), encoder_tokenizer(), length=16, positions="pose", target_length=32)
    assert int(plain.train[0]["position_ids"][0]) == 0


def test_masked_language_modelling(book: Path) -> None:
    """15 % of the tokens, of them 80 % masked, 10 % replaced, 10 % kept; never special ones."""
    tokenizer, model = encoder_tokenizer(), wide(bert())
    data = made(book, model, tokenizer, length=32, tokens=32 * 600)
    plain = {index: data.train.rows(index)[0].ids for index in range(len(data.train.rows))}
    chosen = hidden = kept = whole = 0
    for index in range(600):
        row = data.train[index]
        ids, labels = row["input_ids"], row["labels"]
        picked = labels != -100
        original = torch.tensor(plain[index % len(plain)])
        assert picked.any()
        assert not picked[0]
        assert not picked[-1]
        assert (original[0], original[-1]) == (256, 257)
        assert torch.equal(labels[picked], original[picked])
        assert torch.equal(ids[~picked], original[~picked])
        chosen += int(picked.sum())
        whole += 30
        hidden += int((ids[picked] == 258).sum())
        kept += int((ids[picked] == original[picked]).sum())
    assert abs(chosen / whole - 0.15) < 0.01
    assert abs(hidden / chosen - 0.8) < 0.03
    assert abs(kept / chosen - 0.1) < 0.03
    first, again = data.train[3], data.train[3]
    assert torch.equal(first["input_ids"], again["input_ids"])
    data.train.set_epoch(1)
    assert not torch.equal(data.train[3]["labels"], first["labels"])
    assert model(**data.collator([first, data.train[4]])).loss.isfinite()
    with pytest.raises(ConfigError, match="mask token, and the tokenizer has none"):
        made(book, model, TOKENIZER, length=32)


def test_padded_rows_of_an_encoder_are_as_if_alone(documents: Path) -> None:
    model = wide(patched("alibi", bert)).eval()
    data = made(documents, model, encoder_tokenizer(), length=32, packing="padded")
    items = [data.train[i] for i in range(4)]
    batch = data.collator(items)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 259).all()
    with torch.no_grad():
        logits = model(**batch).logits
        for i, item in enumerate(items):
            alone = model(item["input_ids"][None]).logits[0]
            assert torch.allclose(logits[i, : len(alone)], alone, atol=1e-4)


def split(row: dict[str, torch.Tensor]) -> tuple[str, str]:
    """What is given and what is predicted."""
    predicted = row["labels"] != -100
    assert torch.equal(row["labels"][predicted], row["input_ids"][predicted])
    parts = (row["input_ids"][~predicted].tolist(), row["input_ids"][predicted].tolist())
    one, other = ("".join(f"<{i}>" if i >= 256 else TOKENIZER.decode([i]) for i in part) for part in parts)
    return one, other


def test_completions(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"prompt": "2+2=", "completion": "4"}, {"prompt": "ab", "completion": "cde"}])
    data = made(path, objective="completion", packing="padded", length=16)
    assert [split(row) for row in data.train] == [("<256>2+2=", "4<257>"), ("<256>ab", "cde<257>")]
    batch = data.collator(list(data.train))
    assert batch["labels"].tolist()[1] == [-100] * 3 + [*TOKENIZER.encode("cde", add_special_tokens=False), EOS]
    packed = made(path, objective="completion", packing="packed", length=16)
    row = packed.train[0]
    assert len(packed.train) == 1
    assert row["position_ids"].tolist() == [*range(7), *range(7), 0, 1]
    assert int((row["labels"] != -100).sum()) == 6


def test_chats(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "so long"},
    ]
    path = lines(tmp_path / "chat.jsonl", [{"messages": chat}])
    data = made(path, objective="completion", packing="padded", length=200)
    given_, predicted = split(data.train[0])
    assert given_ == "<|user|>hi<|end|><|assistant|>hello<|end|><|user|>bye<|end|><|assistant|>"
    assert predicted == "so long<|end|>"
    with pytest.raises(ConfigError, match="no chat template"):
        made(path, None, decoder_tokenizer(), objective="completion", packing="padded")
    asked = lines(tmp_path / "asked.jsonl", [{"messages": chat[:3]}])
    with pytest.raises(ConfigError, match="does not end with a message of the role assistant"):
        made(asked, objective="completion", packing="padded")
    odd = decoder_tokenizer(chat="{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ConfigError, match="differently with the last answer"):
        made(path, None, odd, objective="completion", packing="padded")


def test_what_is_wrong_with_examples(tmp_path: Path, documents: Path, book: Path) -> None:
    with pytest.raises(ConfigError, match=r"no prompt and completion.*fields: text"):
        made(documents, objective="completion", packing="padded")
    with pytest.raises(ConfigError, match="plain text"):
        made(book, objective="completion", packing="padded")
    rows = [
        {"prompt": "long " * 10, "completion": "x"},
        {"prompt": "ab", "completion": "c" * 40},
        {"prompt": "a", "completion": "b"},
    ]
    data = made(lines(tmp_path / "long.jsonl", rows), objective="completion", packing="padded", length=20)
    assert len(data.train) == 2
    assert [len(row["input_ids"]) for row in data.train] == [20, 4]
    assert data.notes == (
        "1 documents or examples without a token to predict were left out",
        "2 examples were cut after 20 tokens",
    )


def test_peft_and_patched_models_are_looked_through(documents: Path) -> None:
    peft = pytest.importorskip("peft")
    model = wide(llama())
    patch_model(model, "alibi")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    data = made(documents, wrapped, length=40, packing="packed")
    assert wrapped(**data.collator([data.train[0]])).loss.isfinite()
