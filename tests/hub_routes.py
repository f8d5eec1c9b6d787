"""What the loopback Hub answers: one function per path of the Hub's interface."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml
from hub_store import MAIN, Blob, Commit, RefusedError, Repo, User

REPO = r"([\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request, read in full."""

    hub: Any
    method: str
    path: str
    query: str
    body: bytes
    headers: Mapping[str, str]
    user: User | None

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        """Whether the query switches something on."""
        return parse_qs(self.query).get(name, ["0"])[0].lower() in ("1", "true")

    def signed_in(self) -> User:
        """Who asks; without a token it is refused."""
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        return self.user

    def repo(self, name: str, *, write: bool = False) -> Repo:
        """A repository, as far as the user may see and change it."""
        found = self.hub.repos.get(name)
        if found is None or (found.private and not self._belongs(found)):
            raise RefusedError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and not self.signed_in().may_write(found.namespace):
            raise RefusedError(403, f"You don't have the required permissions to change {name}")
        return found

    def storage(self, name: str) -> Repo:
        """A repository whose large files the user may send: also those of a pull request by somebody else."""
        if self.signed_in().role != "write":
            raise RefusedError(403, f"This token may not write to {name}")
        return self.repo(name)

    def _belongs(self, repo: Repo) -> bool:
        return self.user is not None and repo.namespace in (self.user.name, *self.user.orgs)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """JSON goes back."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def answer(asked: Asked) -> Answer:
    """Find the route and take it."""
    for method, pattern, route in ROUTES:
        if asked.method in method and (match := re.fullmatch(pattern, asked.path)):
            return route(asked, *map(unquote, match.groups()))
    raise RefusedError(404, f"Sorry, we can't find {asked.method} {asked.path}", "EntryNotFound")


def whoami(asked: Asked) -> Answer:
    """Name, organisations, and what the token may do."""
    user = asked.signed_in()
    token = {"displayName": "loopback", "role": user.role}
    orgs = [{"name": name, "roleInOrg": "write"} for name in user.orgs]
    return json_answer(
        {"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}
    )


def create(asked: Asked) -> Answer:
    """A new repository."""
    user, wanted = asked.signed_in(), asked.json
    namespace = wanted.get("organization") or user.name
    name = f"{namespace}/{wanted['name']}"
    if namespace not in asked.hub.namespaces:
        raise RefusedError(404, f"There is no user or organization {namespace}")
    if not user.may_write(namespace):
        raise RefusedError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    url = f"{asked.hub.endpoint}/{name}"
    if name in asked.hub.repos:
        raise RefusedError(409, "You already created this model repo", url=url)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    asked.hub.repos[name] = Repo(name, private)
    return json_answer({"url": url, "id": name, "name": name})


def validate(asked: Asked) -> Answer:
    """The metadata at the top of a card."""
    parts = asked.json["content"].split("---\n")
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError as error:
        return json_answer({"errors": [{"message": f"YAML: {error}"[:80]}], "warnings": []}, 400)
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_answer({"errors": [], "warnings": warnings})


def preupload(asked: Asked, name: str, revision: str) -> Answer:
    """Which files go as LFS, and what the revision has under their names."""
    repo, wanted = asked.repo(name, write=not asked.flag("create_pr")), asked.json
    there = repo.at(revision).files
    files = []
    for file in wanted["files"]:
        path = file["path"]
        entry = {
            "path": path,
            "uploadMode": repo.mode(path, file["size"], b64decode(file["sample"])),
            "shouldIgnore": repo.ignored(path, revision, wanted.get("gitIgnore")),
        }
        files.append(entry | ({"oid": there[path].oid} if path in there else {}))
    return json_answer({"files": files})


def lfs_batch(asked: Asked, name: str) -> Answer:
    """Where to send the contents that are not there yet."""
    repo = asked.storage(name)
    objects = []
    for wanted in asked.json["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.large:
            verify = {"href": f"{asked.hub.endpoint}/{name}.git/info/lfs/objects/verify"}
            entry["actions"] = {
                "upload": {"href": f"{asked.hub.endpoint}/lfs/{name}/{wanted['oid']}?signature=fine"},
                "verify": verify,
            }
        objects.append(entry)
    return json_answer({"transfer": "basic", "objects": objects})


def lfs_put(asked: Asked, name: str, oid: str) -> Answer:
    """A content, sent to storage: the address is the permission."""
    if sha256(asked.body).hexdigest() != oid:
        raise RefusedError(400, "The content has another SHA-256 than its address")
    asked.hub.repos[name].large[oid] = asked.body
    return Answer()


def lfs_verify(asked: Asked, name: str) -> Answer:
    """Whether a content arrived whole."""
    kept = asked.storage(name).large.get(asked.json["oid"])
    if kept is None or len(kept) != asked.json["size"]:
        raise RefusedError(404, "The content did not arrive")
    return json_answer({})


def commit(asked: Asked, name: str, revision: str) -> Answer:
    """Additions and deletions at once."""
    repo = asked.repo(name, write=not asked.flag("create_pr"))
    asked.signed_in()
    lines = [json.loads(line) for line in asked.body.splitlines()]
    made, ref = repo.apply(revision, lines, asked.flag("create_pr"))
    url = f"{asked.hub.endpoint}/{name}"
    reply = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
    if asked.flag("create_pr"):
        reply["pullRequestUrl"] = f"{url}/discussions/{ref.split('/')[-1]}"
    return json_answer(reply)


def branch(asked: Asked, name: str, ref: str) -> Answer:
    """A new branch, from main or from ``startingPoint``."""
    repo = asked.repo(name, write=True)
    if ref in repo.refs:
        raise RefusedError(409, f"Reference already exists: {ref}")
    if ref.startswith("refs/"):
        raise RefusedError(400, f"Invalid reference for a branch: {ref}")
    repo.refs[ref] = repo.at(asked.json.get("startingPoint") or MAIN).oid
    return json_answer({})


def info(asked: Asked, name: str, revision: str = MAIN) -> Answer:
    """What a repository is and holds."""
    repo = asked.repo(name)
    at = repo.at(revision)
    siblings = [{"rfilename": path, "size": len(b.content), "blobId": b.git_oid} for path, b in at.files.items()]
    known = {"id": name, "modelId": name, "author": repo.namespace, "sha": at.oid, "private": repo.private}
    return json_answer({**known, "tags": [], "siblings": siblings, "disabled": False, "gated": False})


def refs(asked: Asked, name: str) -> Answer:
    """Branches and pull requests."""
    found = asked.repo(name).refs
    pulls = {ref: oid for ref, oid in found.items() if ref.startswith("refs/pr/")}
    rows = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": oid} for r, oid in found.items() if r not in pulls]
    requests = [{"name": r, "ref": r, "targetCommit": oid} for r, oid in pulls.items()]
    return json_answer({"branches": rows, "converts": [], "tags": [], "pullRequests": requests})


def commits(asked: Asked, name: str, revision: str) -> Answer:
    """The commits of a branch, last first."""
    rows = asked.repo(name).history(revision)
    date = "2026-01-01T00:00:00.000Z"
    return json_answer([{"id": c.oid, "title": c.title, "message": "", "authors": [], "date": date} for c in rows])


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    made = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    if blob.lfs:
        made["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return made


def tree(asked: Asked, name: str, revision: str, folder: str = "") -> Answer:
    """The files of a folder, or of all below it; folders too."""
    at = asked.repo(name).at(revision)
    prefix = f"{folder}/" if folder else ""
    inside = {path: blob for path, blob in sorted(at.files.items()) if path.startswith(prefix)}
    if folder and not inside:
        raise RefusedError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    deep = asked.flag("recursive")
    folders = {str(above) for path in inside for above in PurePosixPath(path).parents}
    shown = [f for f in sorted(folders) if f != "." and f.startswith(prefix) and (deep or "/" not in f[len(prefix) :])]
    rows = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in shown]
    return json_answer(rows + [_entry(p, b) for p, b in inside.items() if deep or "/" not in p[len(prefix) :]])


def paths_info(asked: Asked, name: str, revision: str) -> Answer:
    """Chosen files."""
    at = asked.repo(name).at(revision)
    wanted = parse_qs(asked.body.decode()).get("paths", [])
    return json_answer([_entry(path, at.files[path]) for path in wanted if path in at.files])


def resolve(asked: Asked, name: str, revision: str, path: str) -> Answer:
    """A file, whole or in part."""
    at: Commit = asked.repo(name).at(revision)
    headers = {"X-Repo-Commit": at.oid, "Accept-Ranges": "bytes"}
    blob = at.files.get(path)
    if blob is None:
        return json_answer({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
    headers |= {"ETag": f'"{blob.oid}"', "Content-Type": "application/octet-stream"}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}"
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
    asked_range = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("Range") or "")
    if asked_range is None or asked.method == "HEAD":
        return Answer(200, blob.content, headers)
    size, (first, last) = len(blob.content), asked_range.groups()
    start = int(first) if first else max(0, size - int(last or 0))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size:
        raise RefusedError(416, f"Range not satisfiable: the file has {size} bytes")
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Answer(206, blob.content[start : end + 1], headers)


MODEL = f"/api/models/{REPO}"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Answer]]] = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/repos/create", create),
    (("POST",), "/api/validate-yaml", validate),
    (("POST",), f"{MODEL}/preupload/([^/]+)", preupload),
    (("POST",), f"/{REPO}\\.git/info/lfs/objects/batch", lfs_batch),
    (("PUT",), f"/lfs/{REPO}/([0-9a-f]+)", lfs_put),
    (("POST",), f"/{REPO}\\.git/info/lfs/objects/verify", lfs_verify),
    (("POST",), f"{MODEL}/commit/([^/]+)", commit),
    (("POST",), f"{MODEL}/branch/([^/]+)", branch),
    (("GET",), f"{MODEL}/revision/([^/]+)", info),
    (("GET",), f"{MODEL}/refs", refs),
    (("GET",), f"{MODEL}/commits/([^/]+)", commits),
    (("GET",), f"{MODEL}/tree/([^/]+)", tree),
    (("GET",), f"{MODEL}/tree/([^/]+)/(.+)", tree),
    (("POST",), f"{MODEL}/paths-info/([^/]+)", paths_info),
    (("GET",), MODEL, info),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", resolve),
]
