"""Texts a user names: every kind of file, streams of rows, and what is wrong with them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pe_retrofit import sources
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.sources import load_text
from pe_retrofit.texts import python_sources, python_topics

datasets = pytest.importorskip("datasets", reason="the extra 'eval' is not installed")

ROWS = [
    {"id": 1, "text": "First row.\nTwo lines, with ünï.", "body": "one"},
    {"id": 2, "text": "Second row.", "body": "two"},
    {"id": 3, "text": "", "body": "three"},
    {"id": 4, "text": "Fourth row.", "body": "four"},
]
JOINED = "First row.\nTwo lines, with ünï.\n\nSecond row.\n\nFourth row."


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_are_joined_in_their_order(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"corpus{kind}", ROWS)
    text = load_text(str(path))
    assert text.content == JOINED
    assert text.sha256 == hashlib.sha256(JOINED.encode()).hexdigest()
    assert text.name == f"corpus{kind}, field text"
    assert load_text(f"{path}:body").content == "one\n\ntwo\n\nthree\n\nfour"
    assert load_text(str(path), field="body").content == "one\n\ntwo\n\nthree\n\nfour"


@pytest.mark.parametrize("characters", [1, 10, 31, 32, 33, 45, len(JOINED) - 1, len(JOINED), len(JOINED) + 1])
def test_rows_end_after_so_many_characters(tmp_path: Path, characters: int) -> None:
    text = load_text(str(write(tmp_path / "c.jsonl", ROWS)), characters=characters)
    assert text.content == JOINED[:characters]
    assert ("first" in text.name) == (characters < len(JOINED))
    assert text.sha256 == hashlib.sha256(JOINED[:characters].encode()).hexdigest()


def test_a_missing_field_lists_the_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"no field 'txet'.*id, text, body; with text: text, body"):
        load_text(f"{path}:txet")
    with pytest.raises(ConfigError, match=r"field 'id' .* holds int, not text"):
        load_text(f"{path}:id")


def test_plain_text_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    for name, content in {"b.txt": "B", "a.txt": "A", "more/c.txt": "C", "note.log": "no"}.items():
        (folder / name).write_text(content, encoding="utf-8")
    text = load_text(str(folder))
    assert text.content == "A\n\nB\n\nC"
    assert text.name == "books (3 files)"
    assert load_text(str(folder / "a.txt")).content == "A"
    (folder / "d.md").write_text("# D", encoding="utf-8")
    assert load_text(str(folder / "d.md")).content == "# D"


def test_wrong_names_say_what_is_possible(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "none").mkdir()
    for name, words in {
        "missing.txt": "does not exist.*hub:NAME",
        "x.pkl": "kind '.pkl'",
        "a.txt:text": "field 'text' of plain text",
        "empty.txt": "is empty",
        "none": "holds no .txt files",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_text(str(tmp_path / name))
    with pytest.raises(ConfigError, match="characters=0"):
        load_text(str(tmp_path / "a.txt"), characters=0)


def test_files_that_are_not_what_they_seem(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name in ("bad.parquet", "bad.jsonl", "latin.txt"):
        with pytest.raises(UnsupportedError, match="cannot be read"):
            load_text(str(tmp_path / name))
    empty = write(tmp_path / "empty.jsonl", [{"text": ""}, {"text": ""}])
    with pytest.raises(ConfigError, match="is empty"):
        load_text(str(empty))


class Loader:
    """Stands for ``load_dataset``: remembers the call, and counts the rows that were read."""

    def __init__(self, rows: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.rows, self.error, self.read = rows, error, 0
        self.call: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}

    def __call__(self, *call: Any, **keywords: Any) -> Iterator[dict[str, Any]]:
        self.call, self.keywords = call, keywords
        if self.error is not None:
            raise self.error
        return self._rows()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            self.read += 1
            yield row


@pytest.mark.parametrize(
    ("name", "call", "split"),
    [
        ("hub:owner/books", ("owner/books", None), "test"),
        ("hub:owner/books:en", ("owner/books", "en"), "test"),
        ("hub:owner/books::train", ("owner/books", None), "train"),
        ("hub:owner/books:en:train:text", ("owner/books", "en"), "train"),
    ],
)
def test_the_hub_is_streamed_and_left_early(
    monkeypatch: pytest.MonkeyPatch, name: str, call: tuple[Any, ...], split: str
) -> None:
    loader = Loader(ROWS * 100)
    monkeypatch.setattr(sources, "_loader", lambda: loader)
    text = load_text(name, characters=40)
    assert text.content == JOINED[:40]
    assert loader.call == call
    assert loader.keywords == {"split": split, "streaming": True}  # and no code of the dataset is trusted
    assert loader.read <= 4
    assert "first 40 characters" in text.name
    assert f"split {split}" in text.name


def test_hub_fields_and_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "_loader", lambda: Loader(ROWS))
    assert load_text("hub:books:::body").content == "one\n\ntwo\n\nthree\n\nfour"
    with pytest.raises(ConfigError, match=r"no field 'b'.*id, text, body"):
        load_text("hub:books:::b")
    for wrong in ("hub:", "hub:../x", "hub:a/b/c", "hub:a:b:c:d:e"):
        with pytest.raises(ConfigError, match="is not of the form"):
            load_text(wrong)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    with pytest.raises(ConfigError, match="is a file or folder here"):
        load_text("hub:books")
    for error, kind, words in (
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), UnsupportedError, "Local text"),
        (ValueError('Bad split: test. Available splits: ["train"]'), ConfigError, 'Available splits: \\["train"\\]'),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), ConfigError, "scripts are no longer"),
    ):
        monkeypatch.setattr(sources, "_loader", lambda error=error: Loader([], error))
        with pytest.raises(kind, match=words):
            load_text("hub:a/b")


def test_offline_the_real_hub_is_named_and_so_is_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupportedError, match=r"Hub cannot be reached: .*give a \.txt"):
        load_text("hub:emozilla/pg19")


def test_the_command_line_reads_them(tmp_path: Path) -> None:
    from pe_retrofit.cli.running import source_text

    assert source_text(str(write(tmp_path / "c.jsonl", ROWS))).content == JOINED


def test_the_texts_every_python_has() -> None:
    topics, modules, both = (load_text(name) for name in ("python_topics", "python_sources", "python"))
    assert topics.content == python_topics().content
    assert modules.sha256 == python_sources().sha256
    assert both.content == topics.content + "\n\n" + modules.content
    assert both.name == f"{topics.name} + {modules.name}"
    with pytest.raises(ConfigError, match="python_topics"):
        load_text("pythonic")


def test_a_split_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def loader(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append(kwargs["split"])
        return ROWS

    monkeypatch.setattr(sources, "_loader", lambda: loader)
    load_text("hub:someone/books")
    load_text("hub:someone/books", split="train")
    load_text("hub:someone/books::validation", split="train")
    assert asked == ["test", "train", "validation"]
