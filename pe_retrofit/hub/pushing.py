"""Push the folder of a saved model or adapter to the Hub."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import ConfigError
from ..progress import Report
from .contents import Contents, SentFile, read_contents
from .retrying import Asking, HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
PULL_REQUEST = re.compile(r"refs/pr/[1-9][0-9]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
BRANCH = re.compile(r"(?!refs/)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")

__all__ = ["HubError", "Pushed", "SentFile", "push_folder"]


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be.

    Attributes:
        repo_id: ``namespace/name``.
        url: where the files are to be seen.
        revision: branch, or ``refs/pr/N``, that holds them.
        commit: its name; None for a dry run.
        pr_url: of the pull request that was opened, or None.
        files: of the folder, with their sizes and how the Hub stores them.
        left_out: hidden and temporary files and folders that were not sent.
        removed: weights of an earlier version that were deleted in the same commit, because loaders would take them.
        bytes: of all files.
        sent_bytes: content that went out, each byte counted once; 0 where the Hub had everything. Through Xet, which
            sends parts of files, the most that it can have been.
        changed: False where the Hub had all of it already and no commit was made.
        created: the repository is new.
        dry_run: nothing was asked of the Hub.
    """

    repo_id: str
    url: str
    revision: str
    commit: str | None
    pr_url: str | None
    files: tuple[SentFile, ...]
    left_out: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int
    sent_bytes: int
    changed: bool
    created: bool
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    report: Report | None = None,
) -> Pushed:
    """Push a saved model or adapter in one commit: the Hub holds all of the folder, or what it held before.

    A push that broke off is taken up by pushing again: large files that arrived are not sent a second time, and where
    the Hub has all of it there is no new commit. Requests that fail in passing are made again, with growing pauses or
    those that the Hub asks for. Other files of the repository stay, but weights of an earlier version that loaders
    would take in place of the new ones go (``Pushed.removed``).

    Args:
        folder: with config.json or adapter_config.json, and safetensors. Hidden and temporary files stay here.
        repo_id: ``namespace/name``; made if it does not exist.
        private: of a new repository. For one that exists it must be as it is; None for either.
        revision: branch, made from main if it does not exist, or ``refs/pr/N``; main by default.
        create_pr: open a pull request against main instead of committing to it.
        message: title of the commit.
        token: of the Hub; by default what HF_TOKEN or ``hf auth login`` gives.
        endpoint: of the Hub; by default HF_ENDPOINT.
        dry_run: ask nothing of the Hub, and say what would be sent.
        report: is called with what is going on, bytes done, bytes in all.

    Raises:
        ConfigError: something about the arguments or the folder is wrong; nothing was sent. All problems in one.
        HubError: the Hub refused, or could not be reached; the message says what to do.
    """
    from huggingface_hub import HfApi

    token = token or _token_in_use()
    endpoint = endpoint or _endpoint()
    contents = read_contents(Path(folder), token)
    _check(repo_id, contents, revision, create_pr, message)
    target = revision or MAIN
    bytes_in_all = sum(file.size for file in contents.files)
    planned = Pushed(
        repo_id=repo_id,
        url=_url(endpoint, repo_id, target),
        revision=target,
        commit=None,
        pr_url=None,
        files=contents.files,
        left_out=contents.left_out,
        removed=(),
        bytes=bytes_in_all,
        sent_bytes=0,
        changed=False,
        created=False,
        dry_run=dry_run,
    )
    if dry_run:
        return planned
    _check_online(token, endpoint)
    from .sending import Meter, send

    api, ask = HfApi(endpoint=endpoint, token=token), Asking(repo_id, endpoint, token, repeat_lost=not create_pr)
    meter = Meter(contents, report)
    meter.say(f"looking for {repo_id}")
    created = _ready_repo(api, ask, repo_id, private)
    if target != MAIN:
        _ready_branch(api, ask, repo_id, target)
    sent = send(api, ask, repo_id, contents, target, create_pr, message or "Upload with pe_retrofit", meter)
    if sent.pr_url:
        target = f"refs/pr/{sent.pr_url.rstrip('/').split('/')[-1]}"
    return dataclasses.replace(
        planned,
        url=_url(endpoint, repo_id, target),
        revision=target,
        created=created,
        **{field.name: getattr(sent, field.name) for field in dataclasses.fields(sent)},
    )


def _token_in_use() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).rstrip("/")


def _url(endpoint: str, repo_id: str, revision: str) -> str:
    return f"{endpoint}/{repo_id}" if revision == MAIN else f"{endpoint}/{repo_id}/tree/{quote(revision, safe='')}"


def _check(repo_id: str, contents: Contents, revision: str | None, create_pr: bool, message: str | None) -> None:
    """Refuse wrong arguments and folders, with all that is wrong."""
    problems = [*_wrong_name(repo_id), *_wrong_revision(revision, create_pr)]
    if message is not None and not message.strip():
        problems.append("message is empty; leave it out or say what the commit is")
    problems += contents.problems
    if problems:
        lines = "".join(f"\n- {problem}." for problem in problems)
        error = ConfigError(f"{str(contents.folder)!r} cannot be pushed to {repo_id!r}; nothing was sent:{lines}")
        error.problems = tuple(problems)
        raise error


def _wrong_name(repo_id: str) -> list[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(repo_id, str) or repo_id.count("/") != 1:
        return [f"repo_id {repo_id!r} must be namespace/name, such as my-name/my-model"]
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return [
            f"repo_id {repo_id!r} may hold letters, digits, '-', '_' and '.', at most 96 of them, neither '--' nor "
            "'..', and begin or end with neither '-' nor '.'"
        ]
    return []


def _wrong_revision(revision: str | None, create_pr: bool) -> list[str]:
    if revision is None or revision == MAIN:
        return []
    if create_pr:
        return [
            f"create_pr opens a pull request against main, so revision {revision!r} cannot be given with it; leave one "
            "of them out, or push to refs/pr/N to add to a pull request"
        ]
    if COMMIT.fullmatch(revision):
        return [f"revision {revision!r} is a commit, and only branches can be pushed to; name a branch"]
    bad = ".." in revision or revision.endswith((".lock", "."))
    if not PULL_REQUEST.fullmatch(revision) and (bad or not BRANCH.fullmatch(revision)):
        return [
            f"revision {revision!r} must be the name of a branch (letters, digits, '-', '_', '.', '/') or refs/pr/N"
        ]
    return []


def _check_online(token: str | None, endpoint: str) -> None:
    """What would fail at the first request."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise HubError(
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids all requests to the Hub: unset it and push again."
        )
    if not token:
        raise HubError(
            "There is no token to push with. Log in with `hf auth login`, or set HF_TOKEN to a token with write right "
            f"from {endpoint}/settings/tokens."
        )


def _ready_repo(api: HfApi, ask: Asking, repo_id: str, private: bool | None) -> bool:
    """Find the repository, or make it; returns whether it is new.

    Raises:
        ConfigError: it exists and is private where it should be public, or the reverse.
        HubError: the token may not write, or is not accepted.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def find() -> Any:
        try:
            return api.model_info(repo_id)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    who = ask("looking whose token it is", api.whoami)
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"The token of {who.get('name')!r} may only read. Take one with write right from "
            f"{ask.endpoint}/settings/tokens (`hf auth login` or HF_TOKEN)."
        )
    found = ask("looking for the repository", find)
    created = found is None
    if created:
        ask("making the repository", lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        found = ask("looking for the repository", lambda: api.model_info(repo_id))
    if private is not None and bool(found.private) != private:
        words = {True: "private", False: "public"}
        raise ConfigError(
            f"{repo_id} exists and is {words[not private]}, and private={private} was asked for. Pushing does not "
            f"change that: leave private out, or make it {words[private]} at {ask.endpoint}/{repo_id}/settings."
        )
    return created


def _ready_branch(api: HfApi, ask: Asking, repo_id: str, revision: str) -> None:
    """Make the branch from main, unless it is there."""
    from huggingface_hub.errors import RevisionNotFoundError

    def there() -> bool:
        try:
            api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            return False
        return True

    if ask("looking for the branch", there):
        return
    if PULL_REQUEST.fullmatch(revision):
        raise ConfigError(f"{repo_id} has no pull request {revision}; open one with create_pr.")
    ask("making the branch", lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
