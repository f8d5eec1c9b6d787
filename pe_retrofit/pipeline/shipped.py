"""The recipes that come with the package: data files, found in an installed wheel and in a source tree."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .sections import nearest

LAUNCHERS = "accelerate"
"""Folder of configs for accelerate's launcher."""

HEADER = ("What", "Hardware", "Time", "Launch")


@dataclass(frozen=True)
class Shipped:
    """A recipe and what its header says.

    Attributes:
        name: of the file, without its ending.
        family: folder it lies in.
        what, hardware, time, launch: from the comment at its top.
        path: where it is.
    """

    name: str
    family: str
    what: str
    hardware: str
    time: str
    launch: str
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "path": str(self.path)}


def root() -> Path:
    """The folder of all recipes.

    Raises:
        ConfigError: it is not there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / LAUNCHERS).is_dir():
            return folder
    raise ConfigError(f"The recipes are missing from this installation ({package}). Install the package again.")


def shipped() -> list[Shipped]:
    """All recipes, by family and name."""
    base = root()
    files = [path for path in sorted(base.glob("*/*.yaml")) if path.parent.name != LAUNCHERS]
    return [_read(path) for path in files]


def launchers() -> dict[str, Path]:
    """accelerate's configs by name."""
    return {path.stem: path for path in sorted((root() / LAUNCHERS).glob("*.yaml"))}


def find(name: str) -> Path:
    """A recipe, or a launcher's config, by its name: ``smollm2_yarn4_lora``, ``smollm2/...`` or ``accelerate/ddp``.

    Raises:
        ConfigError: there is none; with the nearest names.
    """
    plain = name.removesuffix(".yaml")
    known = {found.name: found.path for found in shipped()}
    known |= {f"{found.family}/{found.name}": found.path for found in shipped()}
    known |= {f"{LAUNCHERS}/{key}": path for key, path in launchers().items()}
    if plain not in known:
        hint = nearest(plain, list(known)) or "; `pe-retrofit recipes list` shows them"
        raise ConfigError(f"No recipe is called {name!r}{hint}.")
    return known[plain]


def named_or_file(text: str) -> Path:
    """A recipe file, or one of those that come with the package.

    Raises:
        ConfigError: neither; with what there is.
    """
    path = Path(text)
    if path.exists() or path.suffix.lower() in (".yaml", ".yml", ".json"):
        if not path.exists() and "/" not in text and path.stem in {found.name for found in shipped()}:
            raise ConfigError(
                f"There is no recipe {text!r} here. The package has one of this name: copy it with `pe-retrofit "
                f"recipes copy {path.stem}`, or run it as it is with `pe-retrofit train {path.stem}`."
            )
        return path
    return find(text)


def copy(name: str, target: Path, *, force: bool = False) -> Path:
    """Copy a recipe; returns the file that was written.

    Args:
        name: see :func:`find`.
        target: a file, or a folder that exists.
        force: replace a file that is there.

    Raises:
        ConfigError: no such recipe, or there is a file.
    """
    source = find(name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise ConfigError(f"{str(target)!r} exists already; name another file, or replace it with --force.")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_bytes(source.read_bytes())
    fresh.replace(target)
    return target


def _read(path: Path) -> Shipped:
    said = dict.fromkeys(HEADER, "")
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        found = re.match(rf"# ({'|'.join(HEADER)}): +(.*)", line)
        if found:
            key = found[1]
            said[key] = found[2].strip()
        elif key and re.match(r"#  +\S", line):  # goes on
            said[key] += " " + line[1:].strip()
        else:
            key = ""
    values = {key.lower(): value for key, value in said.items()}
    return Shipped(name=path.stem, family=path.parent.name, path=path, **values)
