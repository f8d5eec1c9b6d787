"""The reference of the Python names: everything in the ``__all__`` of the package and of its subpackages."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import pe_retrofit
from docsite.prose import code, inline, markdown
from pe_retrofit import get_encoding, list_encodings
from pe_retrofit.config import EncodingConfig

LEFT_OUT = ("cli", "demo", "encodings")
"""Subpackages with pages of their own, or without names for use from outside."""


def modules() -> dict[str, ModuleType]:
    """Page name -> module, the package itself first."""
    found = {"pe_retrofit": pe_retrofit}
    for one in pkgutil.iter_modules(pe_retrofit.__path__):
        if one.ispkg and one.name not in LEFT_OUT:
            module = import_module(f"pe_retrofit.{one.name}")
            if getattr(module, "__all__", ()):
                found[one.name] = module
    return found


def page(module: ModuleType) -> str:
    """All public names of a module."""
    told = [f"# {module.__name__}", markdown(inspect.getdoc(module) or "")]
    configs = []
    for name in sorted(module.__all__, key=lambda n: (not n.islower(), n.lower())):
        value = getattr(module, name)
        if isinstance(value, type) and issubclass(value, EncodingConfig) and value is not EncodingConfig:
            configs.append(value)
        else:
            told += _entry(name, value)
    if configs:
        told += ["## Options of the encodings", _configs(configs)]
    return "\n\n".join(part for part in told if part) + "\n"


def _configs(kinds: list[Any]) -> str:
    known = {get_encoding(name).Config: name for name in list_encodings()}
    rows = ["| class | of |", "| --- | --- |"]
    rows += [f"| `{kind.__name__}` | [`{known[kind]}`](../encodings/{known[kind]}.md#options) |" for kind in kinds]
    return "\n".join(rows)


def _entry(name: str, value: Any) -> list[str]:
    documentation = inspect.getdoc(value) if _documented(value) else ""
    told = [f"## {name}"]
    if isinstance(value, type):
        told += [code(f"class {_signature(name, value)}", "python"), markdown(documentation or "")]
        told += [part for pair in _methods(value) for part in pair]
    elif callable(value):
        told += [code(_signature(name, value), "python"), markdown(documentation or "")]
    else:
        told.append(inline(_plain(value)))
    return told


def _documented(value: Any) -> bool:
    """A dataclass without a docstring gets its signature as one."""
    text = getattr(value, "__doc__", None) or ""
    return bool(text) and not text.startswith(f"{getattr(value, '__name__', '')}(")


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "A sequence: " + ", ".join(dict.fromkeys(f"`{_word(one)}`" for one in value)) + "."
    if isinstance(value, dict):
        return "A mapping: " + ", ".join(f"`{key}`" for key in value) + "."
    shown = repr(value) if isinstance(value, (str, int, float)) else re.sub(r"[\w.]+[.]", "", str(value))
    return f"`{shown}`."


def _word(value: Any) -> str:
    return str(getattr(value, "name", value))


def _methods(kind: type) -> list[tuple[str, str]]:
    """What a class defines itself and says something about."""
    found = []
    for name, value in vars(kind).items():
        inner = getattr(value, "__func__", getattr(value, "func", value))
        if name.startswith("_") or not (inspect.getdoc(value) or "").strip():
            continue
        if isinstance(value, property) or hasattr(value, "func"):
            found.append((f"### {kind.__name__}.{name}", markdown(inspect.getdoc(value) or "")))
        elif inspect.isfunction(inner):
            shown = code(_signature(name, inner), "python")
            found.append((f"### {kind.__name__}.{name}()", f"{shown}\n\n{markdown(inspect.getdoc(inner) or '')}"))
    return found


def _signature(name: str, value: Any) -> str:
    """``name(...)``, one parameter per line where it is long; no addresses, no quotes around types."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parts: list[str] = []
    kinds = [p.kind for p in found.parameters.values()]
    for at, one in enumerate(found.parameters.values()):
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and one.VAR_POSITIONAL not in kinds[:at] and one.KEYWORD_ONLY not in kinds[:at]:
            parts.append("*")
        parts.append(_tidy(str(one)))
    silent = isinstance(value, type) or found.return_annotation is inspect.Signature.empty
    returns = "" if silent else f" -> {_type(found.return_annotation)}"
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def _type(annotation: Any) -> str:
    return _tidy(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _tidy(text: str) -> str:
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "...", text)
    text = re.sub(r"<factory>|<class '([\w.]+)'>", lambda m: m[1] or "...", text)
    return re.sub(r": '([^']*)'", r": \1", text)
