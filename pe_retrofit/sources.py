"""Texts a user names: files, folders, and streams from the Hugging Face Hub.

========================================  ==============================================================================
``book.txt``, ``notes.md``                a UTF-8 file
``folder``                                its ``.txt`` files and those below it, by path
``corpus.jsonl``, ``.json``, ``.csv``,    the field ``text`` of every row; ``corpus.jsonl:content`` for another field
``.parquet``
``hub:NAME:CONFIG:SPLIT:FIELD``           a dataset of the Hub, streamed until there is enough; by default its default
                                          config, the split ``test`` and the field ``text``; parts may be empty
``python``                                English and code that every Python has: ``python_topics``, its language
                                          reference, and ``python_sources``, its standard library; each has its name
========================================  ==============================================================================

PG19 (Rae et al. 2019, Compressive Transformers, arXiv 1911.05507): ``hub:emozilla/pg19``. Proof-pile's
test split (Azerbayev et al. 2022): ``hub:emozilla/proofpile-test-tokenized``, whose rows hold text beside tokens; the
original brings code of its own, which is not run. Rows are taken in their order and joined by an empty line; nothing
is shuffled, so the same name gives the same text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, UnsupportedError
from .models import quiet
from .texts import Text, python_sources, python_topics, text_from

HUB = "hub:"
FIELD = "text"
SPLIT = "test"
CHARACTERS = 20_000_000
"""Characters after which a stream of rows ends: some five million tokens."""

JOINT = "\n\n"
PLAIN = (".txt", ".md")
ROWS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
FORMS = (
    "a .txt, .md, .jsonl, .json, .parquet or .csv file, a folder of .txt files, python, python_topics or "
    "python_sources, or hub:NAME[:CONFIG[:SPLIT[:FIELD]]]"
)


@dataclass(frozen=True)
class Rows:
    """Rows of a file, or of a dataset of the Hub, in their order.

    Attributes:
        name: as the user gave it.
        label: where they come from, in words.
        field: the one asked for, or None.
        stream: a ``datasets.IterableDataset`` of them.
    """

    name: str
    label: str
    field: str | None
    stream: Any


def open_rows(name: str, *, field: str | None = None, split: str = SPLIT) -> Rows | None:
    """The rows a user names, not read yet; None for plain text.

    Args:
        name: a path, or ``hub:...``.
        field: for :attr:`Rows.field`; by default the one in ``name``.
        split: of a dataset of the Hub, where ``name`` gives none.

    Raises:
        ConfigError: there is no such file or dataset.
        UnsupportedError: the Hub cannot be reached, a file cannot be read, or ``datasets`` is not installed.
    """
    if name.startswith(HUB):
        dataset, config, part, named = _parse_hub(name, split)
        with reading(name):
            stream = _loader()(dataset, config, split=part, streaming=True)
        return Rows(name, f"{HUB}{dataset}, config {config or 'default'}, split {part}", field or named, stream)
    path, named = _split_field(name)
    if name in _NAMED or path.is_dir() or path.suffix.lower() not in ROWS:
        return None
    _check_exists(path, name)
    with reading(name):
        files = {"train": [str(path)]}
        stream = _loader()(ROWS[path.suffix.lower()], data_files=files, split="train", streaming=True)
    return Rows(name, path.name, field or named, stream)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Say in words what goes wrong while rows are read."""
    try:
        with quiet():
            yield
    except (ConfigError, UnsupportedError):
        raise
    except Exception as error:  # of datasets, pyarrow, pandas, huggingface_hub, httpx, fsspec
        if name.startswith(HUB):
            raise _hub_problem(name, error) from error
        raise UnsupportedError(f"The text {name} cannot be read: {_words(error)}.") from error


def load_text(name: str, *, field: str | None = None, characters: int = CHARACTERS, split: str = SPLIT) -> Text:
    """The text a user names; see the table above.

    Args:
        name: a path, ``hub:...``, or the name of one of Python's texts.
        field: of the rows; by default the one in ``name``, else ``text``.
        characters: at most so many are taken from rows; plain text is taken whole.
        split: of a dataset of the Hub, where ``name`` gives none.

    Raises:
        ConfigError: there is no such file, field, split or dataset, or it holds no text; with what there is.
        UnsupportedError: the Hub cannot be reached, a file cannot be read, or ``datasets`` is not installed.
    """
    if characters < 1:
        raise ConfigError(f"characters={characters} must be at least 1.")
    rows = open_rows(name, field=field, split=split)
    if rows is not None:
        return _from_rows(rows, characters)
    if name in _NAMED:
        return _NAMED[name]()
    path, named = _split_field(name)
    if path.is_dir():
        return _from_folder(path)
    _check_exists(path, name)
    if path.suffix.lower() not in PLAIN or named:
        what = f"field {named!r} of plain text" if named else f"kind {path.suffix.lower()!r}"
        raise ConfigError(f"The text {name!r} cannot be read ({what}). Give {FORMS}.")
    return _filled(text_from(path), name)


def check_text(name: str) -> None:
    """See that a text is there, without reading it; one of the Hub is checked for its form only.

    Raises:
        ConfigError: there is no such file, or it is of no kind that can be read.
    """
    if name.startswith(HUB):
        _parse_hub(name, SPLIT)
        return
    path, _ = _split_field(name)
    if name in _NAMED or (path.is_dir() and _folder_files(path)):
        return
    _check_exists(path, name)
    if path.suffix.lower() not in (*PLAIN, *ROWS):
        raise ConfigError(f"The text {name!r} cannot be read (kind {path.suffix.lower()!r}). Give {FORMS}.")


def files_of(name: str) -> list[Path]:
    """The files of plain text that a name stands for; none for Python's texts."""
    if name in _NAMED:
        return []
    path, _ = _split_field(name)
    return _folder_files(path) if path.is_dir() else [path]


def _python() -> Text:
    return joined([python_topics(), python_sources()])


_NAMED: dict[str, Callable[[], Text]] = {
    "python": _python,
    "python_topics": python_topics,
    "python_sources": python_sources,
}


def joined(texts: Sequence[Text]) -> Text:
    """Several texts as one, an empty line between them."""
    if len(texts) == 1:
        return texts[0]
    return _text(" + ".join(text.name for text in texts), JOINT.join(text.content for text in texts))


def values(rows: Rows, field: str) -> Iterator[str]:
    """The texts in one field of the rows that hold any; read them within :func:`reading`."""
    return _values(rows.stream, field, rows.name)


def _check_exists(path: Path, name: str) -> None:
    if not path.is_file():
        raise ConfigError(f"The text {name!r} does not exist. Give {FORMS}.")


def _split_field(name: str) -> tuple[Path, str | None]:
    """``corpus.jsonl:content`` to its parts; a file whose own name has a colon stays whole."""
    try:
        Path(name).exists()
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"The text {name[:60]!r}... does not exist ({error.strerror}). Give {FORMS}.") from error
    path, colon, field = name.rpartition(":")
    if colon and not Path(name).exists() and Path(path).suffix:
        return Path(path), field or None
    return Path(name), None


def _folder_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.txt"), key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise ConfigError(f"The folder {str(folder)!r} holds no .txt files. Give {FORMS}.")
    return files


def _from_folder(folder: Path) -> Text:
    files = _folder_files(folder)
    content = JOINT.join(text_from(path).content for path in files)
    return _filled(_text(f"{folder.resolve().name} ({len(files)} files)", content), str(folder))


def _from_rows(rows: Rows, characters: int) -> Text:
    field = rows.field or FIELD
    with reading(rows.name):
        content, whole = _join(values(rows, field), characters)
    label = f"{rows.label}, field {field}"
    if not whole:
        label += f", first {len(content)} characters"
    return _filled(_text(label, content), rows.name)


def _parse_hub(name: str, default: str) -> tuple[str, str | None, str, str | None]:
    parts = name[len(HUB) :].split(":")
    if len(parts) > 4 or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", parts[0]):
        raise ConfigError(f"{name!r} is not of the form hub:NAME[:CONFIG[:SPLIT[:FIELD]]], such as hub:emozilla/pg19.")
    if Path(parts[0]).exists():
        raise ConfigError(f"{name!r}: {parts[0]!r} is a file or folder here. Leave out {HUB!r} to read it.")
    config, split, field = [*parts[1:], "", "", ""][:3]
    return parts[0], config or None, split or default, field or None


def _hub_problem(name: str, error: Exception) -> ConfigError | UnsupportedError:
    """A failure in words: the Hub cannot be reached, or the dataset is not there, or not as asked."""
    words = _words(error)
    offline = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith(
        ("httpx", "httpcore")
    )
    if offline or re.search(r"offline|couldn't reach|connect|resolve", words, re.IGNORECASE):
        return UnsupportedError(
            f"The text {name!r} cannot be read, because the Hugging Face Hub cannot be reached: {words}. Local text "
            f"needs no network: give {FORMS.partition(', or hub')[0]}."
        )
    return ConfigError(f"The text {name!r} cannot be read: {words}.")


def _values(rows: Iterable[Mapping[str, Any]], field: str, name: str) -> Iterator[str]:
    for row in rows:
        if field not in row:
            texts = [key for key, value in row.items() if isinstance(value, str)]
            raise ConfigError(
                f"The text {name!r} has no field {field!r}. Its fields: {', '.join(row)}; with text: "
                f"{', '.join(texts) or 'none'}. Name one after a colon."
            )
        value = row[field]
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"The field {field!r} of {name!r} holds {type(value).__name__}, not text. Its fields: {', '.join(row)}."
            )
        if value:
            yield value


def _join(values: Iterable[str], characters: int) -> tuple[str, bool]:
    """The values joined and cut, and whether that is all of them."""
    parts: list[str] = []
    length = 0
    for value in values:
        if length >= characters:
            return JOINT.join(parts)[:characters], False
        length += len(value) + (len(JOINT) if parts else 0)
        parts.append(value)
    return JOINT.join(parts)[:characters], length <= characters


def _loader() -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UnsupportedError(
            "Rows of text are read with the package 'datasets', which is not installed. Install it with: "
            "pip install 'pe_retrofit[eval]'. A .txt file needs nothing."
        ) from error
    return load_dataset


def _words(error: Exception) -> str:
    cause: BaseException = error
    while type(cause).__name__ == "DatasetGenerationError" and cause.__cause__ is not None:
        cause = cause.__cause__  # it only says that an error occurred
    return " ".join(str(cause).split()).rstrip(".") or type(cause).__name__


def _filled(text: Text, name: str) -> Text:
    if not text.content.strip():
        raise ConfigError(f"The text {name!r} is empty.")
    return text


def _text(name: str, content: str) -> Text:
    return Text(name, content, hashlib.sha256(content.encode()).hexdigest())
