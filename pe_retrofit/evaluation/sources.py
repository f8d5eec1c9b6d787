"""Texts a user names: files, folders, and streams from the Hugging Face Hub.

========================================  ==============================================================================
``book.txt``, ``notes.md``                a UTF-8 file
``folder``                                its ``.txt`` files and those below it, by path
``corpus.jsonl``, ``.json``, ``.csv``,    the field ``text`` of every row; ``corpus.jsonl:content`` for another field
``.parquet``
``hub:NAME:CONFIG:SPLIT:FIELD``           a dataset of the Hub, streamed until there is enough; by default its default
                                          config, the split ``test`` and the field ``text``; parts may be empty
========================================  ==============================================================================

PG19 (Rae et al. 2019, Compressive Transformers, arXiv 1911.05507): ``hub:emozilla/pg19``. Proof-pile's
test split (Azerbayev et al. 2022): ``hub:emozilla/proofpile-test-tokenized``, whose rows hold text beside tokens; the
original brings code of its own, which is not run. Rows are taken in their order and joined by an empty line; nothing
is shuffled, so the same name gives the same text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..models import quiet
from ..texts import Text, text_from

HUB = "hub:"
FIELD = "text"
SPLIT = "test"
CHARACTERS = 20_000_000
"""Characters after which a stream of rows ends: some five million tokens."""

JOINT = "\n\n"
PLAIN = (".txt", ".md")
ROWS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
FORMS = (
    "a .txt, .md, .jsonl, .json, .parquet or .csv file, a folder of .txt files, or hub:NAME[:CONFIG[:SPLIT[:FIELD]]]"
)


def load_text(name: str, *, field: str | None = None, characters: int = CHARACTERS) -> Text:
    """The text a user names; see the table above.

    Args:
        name: a path, or ``hub:...``.
        field: of the rows; by default the one in ``name``, else ``text``.
        characters: at most so many are taken from rows; plain text is taken whole.

    Raises:
        ConfigError: there is no such file, field, split or dataset, or it holds no text; with what there is.
        UnsupportedError: the Hub cannot be reached, a file cannot be read, or ``datasets`` is not installed.
    """
    if characters < 1:
        raise ConfigError(f"characters={characters} must be at least 1.")
    if name.startswith(HUB):
        return _from_hub(name, field, characters)
    path, named = _split_field(name)
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise ConfigError(f"The text {name!r} does not exist. Give {FORMS}.")
    kind = path.suffix.lower()
    if kind in ROWS:
        return _from_rows(path, field or named or FIELD, characters)
    if kind not in PLAIN or named:
        what = f"field {named!r} of plain text" if named else f"kind {kind!r}"
        raise ConfigError(f"The text {name!r} cannot be read ({what}). Give {FORMS}.")
    return _filled(text_from(path), name)


def _split_field(name: str) -> tuple[Path, str | None]:
    """``corpus.jsonl:content`` to its parts; a file whose own name has a colon stays whole."""
    path, colon, field = name.rpartition(":")
    if colon and not Path(name).exists() and Path(path).suffix:
        return Path(path), field or None
    return Path(name), None


def _from_folder(folder: Path) -> Text:
    files = sorted(folder.rglob("*.txt"), key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise ConfigError(f"The folder {str(folder)!r} holds no .txt files. Give {FORMS}.")
    content = JOINT.join(text_from(path).content for path in files)
    return _filled(_text(f"{folder.resolve().name} ({len(files)} files)", content), str(folder))


def _from_rows(path: Path, field: str, characters: int) -> Text:
    load = _loader()
    try:
        with quiet():
            rows = load(ROWS[path.suffix.lower()], data_files={"train": [str(path)]}, split="train", streaming=True)
            content, whole = _join(_values(rows, field, str(path)), characters)
    except ConfigError:
        raise
    except Exception as error:  # of pyarrow, pandas and datasets, for files that are not what they seem
        raise UnsupportedError(f"The text {path} cannot be read: {_words(error)}.") from error
    return _filled(_text(_name(f"{path.name}, field {field}", content, whole), content), str(path))


def _from_hub(name: str, field: str | None, characters: int) -> Text:
    dataset, config, split, named = _parse_hub(name)
    field = field or named or FIELD
    load = _loader()
    try:
        with quiet():
            rows = load(dataset, config, split=split, streaming=True)
            content, whole = _join(_values(rows, field, name), characters)
    except ConfigError:
        raise
    except Exception as error:  # of datasets, huggingface_hub, httpx, fsspec, pyarrow
        raise _hub_problem(name, error) from error
    source = f"{HUB}{dataset}, config {config or 'default'}, split {split}, field {field}"
    return _filled(_text(_name(source, content, whole), content), name)


def _parse_hub(name: str) -> tuple[str, str | None, str, str | None]:
    parts = name[len(HUB) :].split(":")
    if len(parts) > 4 or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", parts[0]):
        raise ConfigError(f"{name!r} is not of the form hub:NAME[:CONFIG[:SPLIT[:FIELD]]], such as hub:emozilla/pg19.")
    if Path(parts[0]).exists():
        raise ConfigError(f"{name!r}: {parts[0]!r} is a file or folder here. Leave out {HUB!r} to read it.")
    config, split, field = [*parts[1:], "", "", ""][:3]
    return parts[0], config or None, split or SPLIT, field or None


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


def _name(source: str, content: str, whole: bool) -> str:
    return source if whole else f"{source}, first {len(content)} characters"


def _filled(text: Text, name: str) -> Text:
    if not text.content.strip():
        raise ConfigError(f"The text {name!r} is empty.")
    return text


def _text(name: str, content: str) -> Text:
    return Text(name, content, hashlib.sha256(content.encode()).hexdigest())
