"""What the loopback Hub keeps: users, repositories, their branches and commits. All in memory."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

MAIN = "main"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LARGE = 10 * 1024 * 1024
"""From this size on every file is stored as LFS."""


class RefusedError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: in the body and in ``X-Error-Message``.
        code: for ``X-Error-Code``.
        more: further fields of the body.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class User:
    """Who a token belongs to.

    Attributes:
        name: namespace of the user.
        role: of the token: ``write``, ``read``, or ``fineGrained`` with no right to write.
        orgs: organisations that the user may write to.
    """

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def may_write(self, namespace: str) -> bool:
        """Whether the token can change a repository of the namespace."""
        return self.role == "write" and namespace in (self.name, *self.orgs)


@dataclass(frozen=True)
class Blob:
    """A file's content."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        """As LFS names it."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "\n".join((*lines, "")).encode()

    @property
    def git_oid(self) -> str:
        """As git names it."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def oid(self) -> str:
        """What clients compare with: SHA-256 of LFS files, git's name of others."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """All files at one moment."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A model repository.

    Attributes:
        id: ``namespace/name``.
        private: hidden from all but those who may write.
        refs: branch or ``refs/pr/N`` to commit.
        commits: by name.
        large: LFS contents that arrived, by SHA-256, whether committed or not.
    """

    id: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit(MAIN, "initial commit", {".gitattributes": Blob(ATTRIBUTES)})

    @property
    def namespace(self) -> str:
        """Of the owner."""
        return self.id.split("/")[0]

    @property
    def pulls(self) -> int:
        """How many pull requests there are."""
        return sum(ref.startswith("refs/pr/") for ref in self.refs)

    def at(self, revision: str = MAIN) -> Commit:
        """The commit that a branch, a pull request or a commit's name means."""
        name = revision.removeprefix("refs/heads/")
        oid = self.refs.get(name, name)
        if oid not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = MAIN) -> dict[str, bytes]:
        """Contents by path, without ``.gitattributes``."""
        found = self.at(revision).files
        return {path: blob.content for path, blob in found.items() if path != ".gitattributes"}

    def history(self, revision: str = MAIN) -> list[Commit]:
        """The commit and those before it."""
        found = [self.at(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def commit(self, ref: str, title: str, files: dict[str, Blob], parent: str | None = None) -> Commit:
        """Put a state of all files on a branch."""
        listing = "\n".join(f"{path} {blob.git_oid}" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{len(self.commits)}\n{parent}\n{title}\n{listing}".encode()).hexdigest()
        made = Commit(oid, parent, title, dict(files))
        self.commits[oid] = made
        self.refs[ref] = oid
        return made

    def mode(self, path: str, size: int, sample: bytes) -> str:
        """``lfs`` or ``regular``."""
        if size == 0 or path == ".gitattributes":
            return "regular"
        return "lfs" if path.endswith(".safetensors") or size >= LARGE or b"\0" in sample else "regular"

    def ignored(self, path: str, revision: str, rules: str | None) -> bool:
        """Whether ``.gitignore``, as sent along or as in the repository, names the file."""
        if rules is None:
            kept = self.at(revision).files.get(".gitignore")
            rules = kept.content.decode() if kept else ""
        name = PurePosixPath(path).name
        return any(fnmatch(name, rule.strip()) for rule in rules.splitlines() if rule.strip())

    def apply(self, revision: str, lines: list[dict[str, Any]], as_pull: bool) -> tuple[Commit, str]:
        """Carry out a commit's operations; returns it and the ref it is on."""
        base = self.at(revision)
        ref = f"refs/pr/{self.pulls + 1}" if as_pull else revision.removeprefix("refs/heads/")
        if ref not in self.refs and not as_pull:
            raise RefusedError(400, f"{revision} is not a branch: commits go to branches.")
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, base.oid):
            raise RefusedError(412, "The branch has moved on since the parent commit. Please refresh and try again.")
        files = dict(base.files)
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            path = value["path"]
            if key == "file":
                files[path] = Blob(b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.large:
                    raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Blob(self.large[value["oid"]], lfs=True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = [
                    p for p in files if p == path or (key == "deletedFolder" and p.startswith(f"{path.rstrip('/')}/"))
                ]
                if not gone:
                    raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                raise RefusedError(400, f"Unknown operation {key}")
        return self.commit(ref, header["summary"], files, base.oid), ref
