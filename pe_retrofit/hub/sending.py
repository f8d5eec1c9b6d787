"""Send files in one commit through ``huggingface_hub``, counting what goes out."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any, BinaryIO, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..progress import Report
from .contents import Contents
from .retrying import Asking, HubError

DECIDING = (
    *("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "position_encoding.json"),
)
"""Files at the top of a repository that loaders take weights or a patch from. Those that the folder does not have go in
the same commit: a ``model.safetensors`` of an earlier version would be loaded in place of new shards."""


@dataclass(frozen=True)
class Sent:
    """What became of a commit.

    Attributes:
        commit: on the Hub that holds the files now.
        pr_url: of the pull request, or None.
        removed: paths that were deleted.
        sent_bytes: of file content that went out.
        changed: whether there is a new commit.
    """

    commit: str
    pr_url: str | None
    removed: tuple[str, ...]
    sent_bytes: int
    changed: bool


class Meter:
    """How far each file is; several threads send at once."""

    def __init__(self, contents: Contents, report: Report | None) -> None:
        self.sizes = {file.path: file.size for file in contents.files}
        self.at: dict[str, int] = {}
        self.total = sum(self.sizes.values())
        self._report = report or (lambda what, done, total: None)
        self._lock = threading.Lock()

    @property
    def sent(self) -> int:
        """Bytes that went out, each counted once."""
        return sum(self.at.values())

    def say(self, what: str, done: float | None = None) -> None:
        """Tell what goes on."""
        self._report(what, self.sent if done is None else done, self.total)

    def reached(self, path: str, position: int) -> None:
        """A file has been read up to here."""
        with self._lock:
            self.at[path] = position
            self.say(f"sending {path}")


class _Metered(io.BufferedReader):
    """A file that tells how far it has been read; reading it again after a broken request counts anew."""

    def __init__(self, path: str, name: str, meter: Meter) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self._name, self._meter = name, meter

    def read(self, size: int | None = -1) -> bytes:
        """As any file."""
        found = super().read(size)
        self._meter.reached(self._name, self.tell())
        return found


class Addition(CommitOperationAdd):
    """A file of a commit that is metered while it is sent, and shows no bar of its own."""

    meter: Meter

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The open file. The client wants a bar (``with_tqdm``) when it sends, and none when it computes a hash."""
        if not with_tqdm:
            with super().as_file() as file:
                yield file
            return
        with _Metered(str(self.path_or_fileobj), self.path_in_repo, self.meter) as file:
            yield cast(BinaryIO, file)

    def b64content(self) -> bytes:
        """The file inside the body of the commit."""
        self.meter.reached(self.path_in_repo, self.upload_info.size)
        return super().b64content()


def send(
    api: HfApi, ask: Asking, repo_id: str, contents: Contents, target: str, create_pr: bool, message: str, meter: Meter
) -> Sent:
    """Commit the files of a folder to a branch.

    Args:
        api: with endpoint and token.
        ask: makes the requests.
        repo_id: of a repository that exists.
        contents: without problems.
        target: branch that exists.
        create_pr: to a new pull request against it.
        message: of the commit.
        meter: of these contents.

    Raises:
        HubError: the Hub refused, could not be reached, or does not hold the files afterwards.
    """
    hashes: dict[str, Any] = {}
    heads: list[str | None] = []
    removed: tuple[str, ...] = ()

    def commit() -> Any:
        nonlocal removed
        info = api.model_info(repo_id, revision=target)
        heads.append(info.sha)
        stale = _stale([sibling.rfilename for sibling in info.siblings or ()], meter.sizes)
        removed = tuple(dict.fromkeys((*removed, *stale)))
        additions = _additions(contents, meter, hashes)  # new for each try: the client remembers in them what was there
        deletions = [CommitOperationDelete(path, is_folder=False) for path in stale]
        return api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=message,
            revision=target,
            create_pr=create_pr,
            parent_commit=info.sha,
        )

    meter.say(f"sending to {repo_id}")
    with _no_bars():
        made = ask("sending the files", commit)
    changed = made.oid != heads[0]
    sent = (meter.total if changed else 0) if is_xet() else meter.sent
    meter.say("checking what arrived", meter.total)
    _check_arrived(api, ask, repo_id, made.oid, meter.sizes, hashes)
    return Sent(made.oid, made.pr_url, removed if changed else (), sent, changed)


def _additions(contents: Contents, meter: Meter, hashes: dict[str, Any]) -> list[Addition]:
    """One operation per file; hashes that are known from an earlier try are not computed again."""
    made = []
    for file in contents.files:
        addition = Addition(file.path, contents.folder / file.path)
        addition.meter = meter
        addition.upload_info = hashes.setdefault(file.path, addition.upload_info)
        made.append(addition)
    return made


def is_xet() -> bool:
    """Whether large files go through Xet, which sends only the parts that the Hub lacks and does not say how many."""
    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _stale(there: Sequence[str], files: dict[str, int]) -> tuple[str, ...]:
    """What :data:`DECIDING` says of files that the folder does not have."""
    return tuple(p for p in there if p not in files and any(fnmatch(p, d) for d in DECIDING) and "/" not in p)


def _check_arrived(
    api: HfApi, ask: Asking, repo_id: str, commit: str, sizes: dict[str, int], hashes: dict[str, Any]
) -> None:
    """See that the commit holds every file, whole.

    Raises:
        HubError: with the names of those it does not hold.
    """

    def look() -> dict[str, Any]:
        found = api.list_repo_tree(repo_id, recursive=True, revision=commit)
        return {entry.path: entry for entry in found if hasattr(entry, "size")}

    there = ask("checking what arrived", look)
    missing = [path for path in sizes if path not in there]
    other = [path for path in sizes if path in there and _differs(there[path], sizes[path], hashes[path])]
    if missing or other:
        named = [f"{kind}: {', '.join(paths[:5])}" for kind, paths in (("missing", missing), ("other", other)) if paths]
        raise HubError(
            f"{repo_id} does not hold what was sent ({'; '.join(named)}). Files go missing where the repository has a "
            ".gitignore that names them: change it, and push again. Others were changed by somebody else meanwhile."
        )


def _differs(entry: Any, size: int, info: Any) -> bool:
    """Whether a file on the Hub has another size or, of a large one, another SHA-256 than the one here."""
    return entry.size != size or (entry.lfs is not None and entry.lfs.sha256 != info.sha256.hex())


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client's own bars off; the report tells."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
