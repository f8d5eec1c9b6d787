"""The loopback Hub answers as the Hub does: asked through ``huggingface_hub``, and where that is not enough by hand."""

from __future__ import annotations

import http.client
from pathlib import Path

import hub_fixtures
import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

hub, waits = hub_fixtures.hub, hub_fixtures.waits
REPO = "alice/model"


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    made = HfApi(endpoint=hub.endpoint, token=hub.token)
    made.create_repo(REPO)
    files = {"a.txt": b"small", "deep/b.txt": b"deeper", "deep/er/c.safetensors": bytes(2000)}
    made.create_commit(REPO, [CommitOperationAdd(k, v) for k, v in files.items()], commit_message="files")
    return made


def get(hub: HubServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request("GET", path, headers={"Authorization": f"Bearer {hub.token}", **headers})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_listings(api: HfApi) -> None:
    assert api.whoami()["name"] == "alice"
    assert {f.path for f in api.list_repo_tree(REPO)} == {".gitattributes", "a.txt", "deep"}
    assert {f.path for f in api.list_repo_tree(REPO, "deep")} == {"deep/b.txt", "deep/er"}
    found = {f.path: f for f in api.list_repo_tree(REPO, recursive=True)}
    assert {"deep/er/c.safetensors", "deep/er", "deep"} < set(found)
    assert found["deep/er/c.safetensors"].lfs.size == 2000
    assert [f.path for f in api.get_paths_info(REPO, ["a.txt", "none"])] == ["a.txt"]
    assert [c.title for c in api.list_repo_commits(REPO)] == ["files", "initial commit"]
    api.create_branch(REPO, branch="side")
    assert [b.name for b in api.list_repo_refs(REPO).branches] == ["main", "side"]


def test_snapshots(api: HfApi, tmp_path: Path) -> None:
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path))
    assert (folder / "deep" / "er" / "c.safetensors").read_bytes() == bytes(2000)
    assert (folder / "a.txt").read_bytes() == b"small"


def test_parts_of_files(api: HfApi, hub: HubServer) -> None:
    path = f"/{REPO}/resolve/main/a.txt"
    status, body, headers = get(hub, path)
    assert (status, body, headers["X-Repo-Commit"]) == (200, b"small", hub.repos[REPO].refs["main"])
    assert get(hub, path, Range="bytes=2-")[:2] == (206, b"all")
    assert get(hub, path, Range="bytes=1-2")[:2] == (206, b"ma")
    status, body, headers = get(hub, path, Range="bytes=-2")
    assert (status, body, headers["Content-Range"]) == (206, b"ll", "bytes 3-4/5")
    assert get(hub, path, Range="bytes=9-")[0] == 416


def test_what_is_not_there(api: HfApi, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "none.txt", cache_dir=tmp_path)
    api.create_repo("alice/hidden", private=True)
    for token in (False, hub.stranger_token):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("alice/hidden", token=token)
    assert get(hub, f"/{REPO}/resolve/main/a.txt", Authorization="Bearer hf_wrong")[0] == 401


def test_commits_are_checked(api: HfApi, hub: HubServer) -> None:
    first = hub.repos[REPO].history()[-1].oid
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, [CommitOperationAdd("x", b"x")], commit_message="late", parent_commit=first)
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("none.txt")], commit_message="gone")
    with pytest.raises(BadRequestError):
        api.create_commit(REPO, [CommitOperationAdd("x", b"x")], commit_message="on a commit", revision=first)
    api.create_commit(REPO, [CommitOperationDelete("deep/")], commit_message="gone")
    assert set(hub.repos[REPO].files()) == {"a.txt"}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)


def test_faults_and_the_record(api: HfApi, hub: HubServer, waits: list[float]) -> None:
    hub.fail("GET", "/revision/side", status=418, times=1, message="only coffee")
    with pytest.raises(HfHubHTTPError, match="only coffee"):
        api.model_info(REPO, revision="side")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="side")
    assert [r.status for r in hub.seen("GET", "/revision/side")] == [418, 404]
    assert hub.token not in str(hub.requests)
    body = bytes(300_000)
    hub.fail("PUT", "/lfs/", how="drop")
    api.upload_file(path_or_fileobj=body, path_in_repo="big.safetensors", repo_id=REPO)
    sizes = [r.size for r in hub.seen("PUT", "/lfs/")]
    assert sizes[1:] == [len(body) // 2, len(body)]


def test_environment_of_a_fresh_process(hub: HubServer, tmp_path: Path) -> None:
    env = hub.environment(tmp_path)
    assert (env["HF_ENDPOINT"], env["HF_HOME"], env["HF_TOKEN"]) == (hub.endpoint, str(tmp_path), hub.token)
    assert "HF_TOKEN" not in hub.environment(tmp_path, token="")
