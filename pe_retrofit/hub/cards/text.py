"""Foreign text in Markdown: names and sentences from files can neither break a table nor leak a path or a token."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import ConfigError

MISSING = "n/a"
"""What stands where a number is not known."""

LOCAL = "(a local path)"

_PART = r"[^\s'\"`<>|:;,()\[\]{}/\\]+"
_PATH = re.compile(
    rf"(?<![\w./\\])(?:file://)?(?:~[\w.-]*(?:/{_PART})+|(?!//)(?:/{_PART}){{2,}})/?"  # ~/a, /a/b; not https://a/b
    rf"|(?<!\w)[A-Za-z]:\\(?:{_PART}\\)*(?:{_PART})?"
)
_WHOLE_PATH = re.compile(
    r"(?P<before>(?:[^@/\\]*@)?)(?P<path>file://.+|~[\w.-]*/.+|/[^/\s].*|[A-Za-z]:[\\/].+)", re.DOTALL
)
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#|~&$!@])")
_SECRET = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|://[^/\s:@]+:[^/\s@]+@")


def last_part(text: str) -> str:
    """The last part of a path, or of ``encoding@path``; anything else as it is."""
    found = _WHOLE_PATH.fullmatch(text.strip())
    if found is None:
        return text
    path = found["path"].removeprefix("file://").rstrip("/\\")
    if re.fullmatch(r"(~[\w.-]*|/(home|Users|root)(/[^/]+)?|[A-Za-z]:([\\/]Users([\\/][^\\/]+)?)?|)", path):
        return found["before"] + LOCAL  # a home folder's name is its user's
    return found["before"] + re.split(r"[\\/]", path)[-1]


def is_path(text: str) -> bool:
    """Whether a text is an absolute path."""
    return last_part(text) != text


def without_paths(text: str) -> str:
    """A text with the last part of every absolute path in it."""
    home = str(Path.home())
    text = last_part(text) if "\n" not in text else text
    text = _PATH.sub(lambda found: last_part(found[0]), text)
    return text.replace(home, LOCAL) if home.count("/") > 1 else text


def one_line(text: object, most: int = 300) -> str:
    """Printable text on one line, cut where it is too long; no control characters, nothing that turns text around."""
    kept = "".join(
        letter if (kind := unicodedata.category(letter))[0] != "C" else " " if kind == "Cc" else ""
        for letter in str(text)[: 20 * most]
    )
    line = " ".join(kept.split())
    return line if len(line) <= most else line[: most - 3].rstrip() + "..."


def label(text: object, most: int = 100) -> str:
    """Text for metadata, which pages show in places of their own: letters, digits and harmless signs alone."""
    return one_line(re.sub(r"[^\w .,:;/+=()%'-]+", " ", without_paths(one_line(text, 4 * most))), most)


def plain(text: object, most: int = 300) -> str:
    """Text that Markdown shows as it is, in a table too: one line, no markup, no HTML, no links, no absolute paths."""
    line = _MARKUP.sub(r"\\\1", one_line(without_paths(str(text)[: 20 * most]), most))
    line = line.replace("://", "\\://")
    line = re.sub(r"\b(www)\.", r"\1\\.", line, flags=re.IGNORECASE)
    return re.sub(r"^(?=[-+=:])|(?<=^\d)(?=\.\s|\.$)|(?<=^\d\d)(?=\.\s|\.$)", r"\\", _later_digits(line))


def _later_digits(line: str) -> str:
    """``123. text`` is a list to Markdown."""
    return re.sub(r"^(\d{3,9})\.(?=\s|$)", r"\1\\.", line)


def code(text: object) -> str:
    """A name of ours in code type; where it holds what code type cannot, as :func:`plain`."""
    line = one_line(without_paths(str(text)))
    return f"`{line}`" if line and not re.search(r"[`|\\]", line) else plain(line)


def fence(text: str, language: str = "") -> str:
    """A block of code whose text cannot close it."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = "".join(c for c in lines if c in "\n\t" or unicodedata.category(c)[0] != "C").strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", kept)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{kept}\n{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others stand to the right. Cells are safe already."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def number(value: float | None) -> str:
    """Four significant digits."""
    return MISSING if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def percent(value: float | None, *, sign: bool = False) -> str:
    """A share times 100."""
    if value is None:
        return MISSING
    return f"{round(100 * value) or 0:+d}" if sign else f"{100 * value:.0f}"


def tokens(count: int | None) -> str:
    """``8,192 tokens``."""
    return "not recorded" if count is None else f"{count:,} tokens"


def ranges(numbers: Iterable[int]) -> str:
    """``0-29``, ``0, 3, 6``: consecutive ones as a range."""
    found: list[list[int]] = []
    for value in sorted(numbers):
        if found and value == found[-1][-1] + 1:
            found[-1].append(value)
        else:
            found.append([value])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def check_secrets(text: str) -> None:
    """Refuse a card that holds an access token.

    Raises:
        ConfigError: it does; the token itself is not repeated.
    """
    from huggingface_hub import get_token

    mine = get_token() or ""
    if _SECRET.search(text) or (len(mine) >= 10 and mine in text):
        raise ConfigError(
            "The card would hold what looks like an access token or a password. Take it out of the recipe or the "
            "results file, and revoke it if others have seen that file."
        )
