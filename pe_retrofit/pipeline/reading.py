"""Read a recipe file: bounded, with the data types of YAML 1.2, and nothing that could run or blow up.

PyYAML follows YAML 1.1, where ``1e-3`` is a text, ``no`` is false, ``010`` is eight and ``1:30`` is ninety. Here the
rules of YAML 1.2's core schema hold: ``true``/``false``, ``null``, whole numbers, and floats in any usual notation.
JSON is read by the same rules.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..config import shorten
from ..errors import ConfigError

MOST_BYTES = 256 * 1024
MOST_NODES = 10_000
"""Values in a recipe, each alias counted as all it stands for."""

DEEPEST = 12
"""Levels of nesting."""

_NUMBER = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)
_SPECIAL = re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
_CORE = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "int": (re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    "float": (re.compile(f"{_NUMBER.pattern}|{_SPECIAL.pattern}"), "-+0123456789."),
}


class _Loader(yaml.SafeLoader):
    """Plain values only, by YAML 1.2; a key that comes twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own form)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are texts or numbers, each once."""
        made: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            where = f"line {key_node.start_mark.line + 1}"
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise ConfigError(f"{where}: the key {shorten(key)} is no text. Put it in quotes.")
            if key in made:
                raise ConfigError(f"{where}: the key {shorten(key)} is given twice. Give it once.")
            made[key] = self.construct_object(value_node, deep=True)
        return made


for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "null", "int", "float", "map", "seq")}
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node), 10))
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML would read as something else than a text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))
_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")
"""Line breaks of Unicode, which PyYAML folds to spaces unless they are in double quotes."""


def _text(dumper: Any, data: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if _BREAKS.search(data) else None)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: there is no such file, or it holds something else; with the line.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"The recipe {str(path)!r} is a folder; name the .yaml file in it.")
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no recipe {str(path)!r}. `pe-retrofit recipes list` shows those that come with the package, and "
            "`pe-retrofit recipes copy NAME` copies one."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ConfigError(f"The recipe {str(path)!r} cannot be read: {error}.") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"The recipe {str(path)!r} is larger than {MOST_BYTES // 1024} KiB; is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"The recipe {str(path)!r} is not UTF-8 text ({error}); is it the right file?") from error
    return read_text(text, str(path))


def read_text(text: str, name: str = "recipe") -> dict[str, Any]:
    """The mapping in YAML or JSON text; see :func:`read_file`."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _measure(node, 0, [0])
        value = {} if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {name!r} is not valid YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"The recipe {name!r}, {error}") from error
    except (ValueError, RecursionError, TypeError, AttributeError) as error:  # e.g. a number of 10,000 digits
        raise ConfigError(f"The recipe {name!r} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(value, dict):
        raise ConfigError(f"The recipe {name!r} holds a {type(value).__name__}, not sections such as 'model: ...'.")
    return value


def write_text(value: Any) -> str:
    """YAML that :func:`read_text` reads back to the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)


def _measure(node: Any, depth: int, count: list[int]) -> None:
    """Refuse what aliases or nesting would make enormous."""
    count[0] += 1
    where = f"line {node.start_mark.line + 1}"
    if count[0] > MOST_NODES:
        raise ConfigError(f"{where}: more than {MOST_NODES} values, with aliases written out. A recipe is smaller.")
    if depth > DEEPEST:
        raise ConfigError(f"{where}: nested deeper than {DEEPEST} levels, or an alias that contains itself.")
    if node.tag not in _TAGS:
        raise ConfigError(f"{where}: the tag {node.tag!r} is not allowed. Write plain values.")
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                _measure(part, depth + 1, count)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _measure(part, depth + 1, count)
