"""Long English text that every Python has, for measurements that need no download.

Its content differs a little between Python versions, so each text carries its SHA-256: figures are comparable only
where that is the same.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, UnsupportedError

SHORTEST_PARAGRAPH = 40
"""Paragraphs of fewer characters may repeat; longer ones are kept once."""


@dataclass(frozen=True)
class Text:
    """A text and where it comes from.

    Attributes:
        name: the source in words.
        content: the text.
        sha256: of the text in UTF-8, hexadecimal.
    """

    name: str
    content: str
    sha256: str


def python_topics() -> Text:
    """The Python language reference as ``help()`` shows it (``pydoc_data.topics``): about 370,000 characters.

    Several topics are excerpts of others, and a model with a long context would score by copying them; so a paragraph
    that occurred before is left out.

    Raises:
        UnsupportedError: this Python was installed without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UnsupportedError(
            "This Python has no pydoc_data.topics, the text measured on. It belongs to the standard library; install "
            "the complete one (on Debian and Ubuntu: apt install libpython3-stdlib)."
        ) from error
    seen: set[str] = set()
    kept = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            key = paragraph.strip()
            if key in seen:
                continue
            if len(key) >= SHORTEST_PARAGRAPH:
                seen.add(key)
            kept.append(paragraph)
    return _text("pydoc_data.topics, each paragraph once", "\n\n".join(kept))


def python_sources(characters: int = 1_000_000) -> Text:
    """The sources of the standard library's top-level modules, by name, cut after so many characters.

    Raises:
        ConfigError: ``characters`` is not positive.
        UnsupportedError: this Python has no sources (an embedded or frozen one).
    """
    if characters < 1:
        raise ConfigError(f"characters={characters} must be at least 1.")
    parts, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
        if length >= characters:
            break
    if not parts:
        raise UnsupportedError(f"No Python sources were found in {sysconfig.get_path('stdlib')}.")
    return _text("sources of the Python standard library", "".join(parts)[:characters])


def text_from(path: Path) -> Text:
    """A UTF-8 file.

    Raises:
        UnsupportedError: it cannot be read as UTF-8 text.
    """
    try:
        return _text(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedError(f"The text {path} cannot be read: {error}. Give a UTF-8 text file.") from error


def _text(name: str, content: str) -> Text:
    return Text(name, content, hashlib.sha256(content.encode()).hexdigest())
