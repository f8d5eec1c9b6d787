"""What of a folder goes to the Hub: its files, what is left out, and what is refused."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

CONFIGS = ("config.json", "adapter_config.json")

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.dill", "*.pt2", "*.mar")
"""Names of files that are pickles, or usually are."""

CREDENTIALS = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".pypirc", ".npmrc", ".git-credentials", "id_rsa*", "id_ed25519*"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "token", "token.txt", "tokens.txt", "*_token", "*_token.txt", "hf_token*"),
    *("stored_tokens", "credentials", "credentials.*", "secrets", "secrets.*", "*.kdbx"),
)
"""Names of files that hold passwords or keys."""

LEFT_OUT = (
    *(".*", "__pycache__", "*.pyc", "*.lock", "*.tmp", "*.part", "*.incomplete", "*.writing", "*.swp", "*~"),
    *("Thumbs.db", "desktop.ini"),
)
"""Names of files and folders that are not part of a model."""

KEPT = (".gitattributes",)
"""Hidden files that belong to a repository."""

LARGE = 10 * 1024 * 1024
"""From this size on the Hub stores every file as LFS."""

SAMPLE = 512
SMALL_TEXT = 4 * 1024 * 1024
ANY_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{34}\b")


@dataclass(frozen=True)
class SentFile:
    """A file of the folder.

    Attributes:
        path: inside the repository, with slashes.
        size: in bytes.
        mode: ``regular`` or ``lfs``: what the Hub will choose, as far as its usual rules tell.
    """

    path: str
    size: int
    mode: str


@dataclass(frozen=True)
class Contents:
    """A folder as it would be sent.

    Attributes:
        folder: absolute, links resolved.
        files: to send, by path.
        left_out: files and folders (with a slash at the end) that stay here.
        problems: why it cannot be sent; empty when all is well.
    """

    folder: Path
    files: tuple[SentFile, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]


def read_contents(folder: Path, token: str | None) -> Contents:
    """Look through a folder; every file is read once where there is a token to search for.

    Args:
        folder: of a model or an adapter.
        token: in use; a file that contains it is refused.
    """
    root = folder.expanduser().resolve()
    if not root.is_dir():
        return Contents(root, (), (), (f"{str(folder)!r} is not a folder; name the folder of a saved model",))
    files, left_out, problems = [], [], []
    seen: set[str] = set()
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        folder_itself = path.is_dir() and not path.is_symlink()
        secret = not folder_itself and _is(path.name.lower(), CREDENTIALS)
        if path.name not in KEPT and _is(path.name, LEFT_OUT) and not secret:
            left_out.append(name + "/" * folder_itself)
            continue
        if folder_itself:
            continue
        seen.add(name)
        problem = _problem(root, path, name, token)
        if problem:
            problems.append(f"{name} {problem}" if name.isprintable() else f"{name!r} {problem}")
            continue
        size = path.stat().st_size
        files.append(SentFile(name, size, _mode(path, size)))
    problems += _incomplete(root, seen)
    return Contents(root, tuple(files), tuple(left_out), tuple(problems))


def _walk(root: Path) -> Iterator[Path]:
    """Everything below in a fixed order; what is in folders that are left out stays unseen."""
    with os.scandir(root) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not _is(entry.name, LEFT_OUT):
            yield from _walk(Path(entry.path))


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _problem(root: Path, path: Path, name: str, token: str | None) -> str | None:
    """Why a file must not be sent, in words that follow its name."""
    if _is(path.name.lower(), CREDENTIALS):
        return "looks like credentials; move it out of the folder"
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root):
            return "is a link that leads out of the folder; put the file itself there (cp -L)"
        if not target.is_file():
            return "is a link to a folder or to nothing; put the files themselves there (cp -rL)"
    if not path.is_file():
        return "is no regular file; remove it"
    if "\\" in name or not name.isprintable() or not _is_text(name):
        return "has a name that not every system can store; rename it with printable characters and no backslash"
    if _is(path.name.lower(), PICKLES):
        return "is a pickle by its name, which runs code when it is loaded; save weights as safetensors, or move it out"
    return _problem_within(path, token)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _problem_within(path: Path, token: str | None) -> str | None:
    try:
        with path.open("rb") as stream:
            start = stream.read(SAMPLE)
            if path.suffix == ".safetensors":
                broken = _broken(path)
                if broken:
                    return broken
            elif (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5") or (start[:2] == b"PK" and b"data.pkl" in start):
                return "is a pickle, which runs code when it is loaded; save weights as safetensors, or move it out"
            if start and token and _holds(stream.fileno(), token.encode()):
                return "contains the token in use; remove it from the file"
            if b"\0" not in start and path.stat().st_size <= SMALL_TEXT and ANY_TOKEN.search(path.read_bytes()):
                return "contains what looks like a token of the Hub (hf_...); remove it from the file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _broken(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return None
    except SafetensorError as error:
        return f"is no whole safetensors file ({error}); save it again"


def _holds(descriptor: int, wanted: bytes) -> bool:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        return content.find(wanted) >= 0


def _mode(path: Path, size: int) -> str:
    if size >= LARGE or (path.suffix == ".safetensors" and size):
        return "lfs"
    with path.open("rb") as stream:
        return "lfs" if b"\0" in stream.read(SAMPLE) else "regular"


def _incomplete(root: Path, files: set[str]) -> list[str]:
    """What a model or an adapter needs and is not there."""
    configs = [name for name in CONFIGS if name in files]
    if not configs:
        return ["The folder holds neither config.json nor adapter_config.json: it is no saved model and no adapter"]
    problems = [f"{name} is not a JSON object; save the model again" for name in configs if _json(root / name) is None]
    problems += _local_base(root) if "adapter_config.json" in configs else []
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not weights:
        problems.append("The folder holds no safetensors file; save the model with save_pretrained")
    for name in sorted(files):
        if not name.endswith(".safetensors.index.json") or "/" in name:
            continue
        named = (_json(root / name) or {}).get("weight_map")
        missing = sorted({str(v) for v in named.values()} - files) if isinstance(named, dict) else ["its weight_map"]
        if missing:
            problems.append(f"{name} names files that are not there: {', '.join(missing[:5])}; save the model again")
    return problems


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _local_base(root: Path) -> list[str]:
    """An adapter that names its base by a folder of this machine helps nobody else, and tells its path."""
    base = (_json(root / "adapter_config.json") or {}).get("base_model_name_or_path")
    if not isinstance(base, str) or not (
        Path(base).is_absolute() or base.startswith((".", "~")) or Path(base).exists()
    ):
        return []
    return [
        f"adapter_config.json names the base model by a path (base_model_name_or_path={Path(base).name!r}), which "
        "others do not have; write the base's id on the Hub there, or publish with base_model='namespace/name'"
    ]
