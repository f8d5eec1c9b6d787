"""Names of a package that are imported when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def importer(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """A module's ``__getattr__`` (PEP 562).

    Args:
        package: ``__name__`` of the module.
        places: name to the submodule of ``package`` that defines it.
    """

    def find(name: str) -> object:
        if name in places:
            return getattr(import_module(f".{places[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
