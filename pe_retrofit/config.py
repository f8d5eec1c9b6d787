"""Options of encodings: strict dataclasses whose errors are collected and reported together, and their JSON form.

A config is data. It is bounded (no field admits a size that would allocate without limit), it names no code, and
``to_dict`` / ``from_dict`` carry it to and from the ``position_encoding`` block of a model's ``config.json``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, TypeVar

from .errors import ConfigError

SCHEMA_VERSION = 1
"""Version of the ``position_encoding`` block. A file with a newer one is refused."""

Made = TypeVar("Made", bound="StrictOptions")

_CHECK = "check"
_HELP = "help"


def number(default: Any = MISSING, *, low: float, high: float, help: str, optional: bool = False) -> Any:
    """A finite float in ``[low, high]``; ``None`` too when ``optional``."""

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not _is_finite(value):
            return f"must be a finite number between {low:g} and {high:g}"
        return None if low <= value <= high else f"must be between {low:g} and {high:g}"

    return field(default=default, metadata={_CHECK: check, _HELP: help})


def integer(default: Any = MISSING, *, low: int, high: int, help: str, optional: bool = False) -> Any:
    """An int in ``[low, high]``; ``None`` too when ``optional``."""

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number between {low} and {high}"
        return None if low <= value <= high else f"must be between {low} and {high}"

    return field(default=default, metadata={_CHECK: check, _HELP: help})


def flag(default: bool, *, help: str) -> Any:
    """True or False."""
    return field(
        default=default,
        metadata={_CHECK: lambda v: None if isinstance(v, bool) else "must be true or false", _HELP: help},
    )


def choice(default: str, options: Sequence[str], *, help: str) -> Any:
    """One of the given words."""

    def check(value: Any) -> str | None:
        return None if value in options else f"must be one of {', '.join(map(repr, options))}"

    return field(default=default, metadata={_CHECK: check, _HELP: help})


def numbers(*, low: float, high: float, most: int, help: str, optional: bool = True) -> Any:
    """A list of at most ``most`` finite floats in ``[low, high]``; ``None`` too when ``optional``."""

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, (list, tuple)) or not 0 < len(value) <= most:
            return f"must be a list of 1 to {most} numbers"
        good = all(_is_finite(v) and low <= v <= high for v in value)
        return None if good else f"must hold finite numbers between {low:g} and {high:g} only"

    return field(default=None if optional else MISSING, metadata={_CHECK: check, _HELP: help})


def integers(default: Sequence[int], *, low: int, high: int, most: int, help: str) -> Any:
    """A list of at most ``most`` ints in ``[low, high]``."""

    def check(value: Any) -> str | None:
        whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if whole and 0 < len(value) <= most and all(low <= v <= high for v in value):
            return None
        return f"must be a list of 1 to {most} whole numbers between {low} and {high}, such as [{low}]"

    return field(default=tuple(default), metadata={_CHECK: check, _HELP: help})


def words(default: Any = None, *, most: int, help: str) -> Any:
    """A text of 1 to ``most`` characters, such as the name of a file; ``None`` too where that is the default."""

    def check(value: Any) -> str | None:
        good = (value is None and default is None) or (isinstance(value, str) and 0 < len(value) <= most)
        return None if good else f"must be a text of 1 to {most} characters"

    return field(default=default, metadata={_CHECK: check, _HELP: help})


def names(default: Sequence[str], *, most: int, help: str) -> Any:
    """A list of at most ``most`` short texts, each once; it may be empty."""

    def check(value: Any) -> str | None:
        texts = isinstance(value, (list, tuple)) and all(isinstance(v, str) and 0 < len(v) <= 200 for v in value)
        good = texts and len(value) <= most and len(set(value)) == len(value)
        return None if good else f"must be a list of at most {most} names, each once"

    return field(default=tuple(default), metadata={_CHECK: check, _HELP: help})


def checked(default: Any, check: Callable[[Any], str | None], *, help: str) -> Any:
    """A value that ``check`` finds fault with in words, or returns None for."""
    return field(default=default, metadata={_CHECK: check, _HELP: help})


@dataclass(frozen=True)
class StrictOptions:
    """Options that check themselves.

    Subclass it as a frozen dataclass whose fields come from :func:`number`, :func:`integer`, :func:`flag`,
    :func:`choice` or :func:`numbers`, and set ``name``. ``check`` may add problems that concern several fields.

    Raises:
        ConfigError: with one line per wrong field.
    """

    name: ClassVar[str] = ""
    noun: ClassVar[str] = "encoding"

    def __post_init__(self) -> None:
        problems = []
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, list):  # configs are compared and hashed
                value = tuple(value)
                object.__setattr__(self, spec.name, value)
            check: Callable[[Any], str | None] | None = spec.metadata.get(_CHECK)
            problem = check(value) if check else None
            if problem:
                problems.append(f"{spec.name}={shorten(value)} {problem}")
        if not problems:
            problems = list(self.check())
        if problems:
            raise _refusal(f"The options of {self.noun} {self.name!r} are not valid:", problems)

    def check(self) -> Sequence[str]:
        """Problems that concern several fields at once; empty when all is well."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., field: value}`` with plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"name": self.name, **plain}

    @classmethod
    def from_options(cls: type[Made], options: Mapping[str, Any]) -> Made:
        """Build from keyword options; unknown, missing and wrong ones are reported together."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        problems = [f"{key!r} is not an option{_hint(key, known)}" for key in options if key not in known]
        problems += [
            f"{name!r} is required: {spec.metadata.get(_HELP, '')}"
            for name, spec in known.items()
            if spec.default is MISSING and name not in options
        ]
        good = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k in known}
        if problems:
            for key, value in good.items():
                check = known[key].metadata.get(_CHECK)
                if check and (problem := check(value)):
                    problems.append(f"{key}={shorten(value)} {problem}")
            allowed = ", ".join(known) or "none"
            raise _refusal(f"The options of {cls.noun} {cls.name!r} are not valid (options: {allowed}):", problems)
        return cls(**good)

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One row per option: name, default and meaning."""
        return [
            {
                "option": f.name,
                "default": "required" if f.default is MISSING else f.default,
                "help": f.metadata.get(_HELP, ""),
            }
            for f in dataclasses.fields(cls)
        ]


@dataclass(frozen=True)
class EncodingConfig(StrictOptions):
    """Base of every encoding's options."""


def _refusal(head: str, problems: Sequence[str]) -> ConfigError:
    error = ConfigError(head + "".join(f"\n  - {p}" for p in problems))
    error.problems = tuple(problems)
    return error


def _is_finite(value: Any) -> bool:
    """Whether a value is a finite number; an int always is, however many digits it has."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def shorten(value: Any) -> str:
    """A value in at most 60 characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"(a number of {value.bit_length()} bits)"  # Python itself refuses to print the largest
    try:
        text = repr(value)
    except ValueError:  # such a number within a list
        return f"(a {type(value).__name__} with a number too long to print)"
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def finite(value: Any) -> Any:
    """The same with NaN and infinity as None, which every JSON reader understands."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
