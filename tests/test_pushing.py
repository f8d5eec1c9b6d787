"""Pushing to a Hub over HTTP: repositories, branches, pull requests, what breaks and what is taken up again."""

from __future__ import annotations

import hashlib
import logging
import shutil
import traceback
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
from hub_fixtures import contents, write_model
from hub_server import HubServer
from hub_store import Repo
from huggingface_hub import HfApi, constants, get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory

from pe_retrofit.errors import ConfigError
from pe_retrofit.hub.pushing import HubError, push_folder
from pe_retrofit.hub.retrying import TRIES, asked_pause

hub, model, waits = hub_fixtures.hub, hub_fixtures.model, hub_fixtures.waits
REPO = "alice/model"


def puts(hub: HubServer, folder: Path, name: str) -> list[int]:
    """The answers to sending a large file."""
    oid = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return [r.status for r in hub.seen("PUT", oid)]


def commits(hub: HubServer) -> list[int]:
    return [r.status for r in hub.seen("POST", "/commit/")]


def titles(hub: HubServer, revision: str = "main") -> list[str]:
    return [c.title for c in hub.repos[REPO].history(revision)]


def test_new_repository_holds_the_folder(hub: HubServer, model: Path) -> None:
    told: list[tuple[str, float, float]] = []
    pushed = push_folder(model, REPO, message="First", report=lambda *now: told.append(now))
    assert hub.repos[REPO].files() == contents(model)
    assert titles(hub) == ["First", "initial commit"]
    assert pushed.commit == hub.repos[REPO].refs["main"]
    assert pushed.url == f"{hub.endpoint}/{REPO}"
    assert (pushed.created, pushed.changed, pushed.dry_run, pushed.pr_url) == (True, True, False, None)
    assert pushed.bytes == pushed.sent_bytes == sum(map(len, contents(model).values()))
    assert {f.path: f.size for f in pushed.files} == {name: len(body) for name, body in contents(model).items()}
    done = [now for _, now, _ in told]
    assert done == sorted(done)
    assert told[-1][1:] == (pushed.bytes, pushed.bytes)


def test_visibility_is_as_asked_or_refused(hub: HubServer, model: Path) -> None:
    push_folder(model, REPO, private=True)
    assert hub.repos[REPO].private
    push_folder(model, REPO)
    push_folder(model, REPO, private=True)
    before = len(hub.requests)
    with pytest.raises(ConfigError, match=r"exists and is private, and private=False"):
        push_folder(model, REPO, private=False)
    assert {r.method for r in hub.requests[before:]} == {"GET"}
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.endpoint, token=hub.stranger_token).model_info(REPO)


def test_organisation(hub: HubServer, model: Path) -> None:
    assert push_folder(model, "acme/model").created
    assert "acme/model" in hub.repos


def test_unchanged_folder_makes_no_commit(hub: HubServer, model: Path) -> None:
    first = push_folder(model, REPO)
    again = push_folder(model, REPO)
    pull = push_folder(model, REPO, create_pr=True)
    assert (again.commit, again.changed, again.sent_bytes) == (first.commit, False, 0)
    assert (pull.pr_url, pull.changed, hub.repos[REPO].pulls) == (None, False, 0)
    assert commits(hub) == [200]
    assert len(hub.seen("PUT")) == 2


def test_only_what_changed_is_sent(hub: HubServer, model: Path) -> None:
    push_folder(model, REPO)
    (model / "README.md").write_text("---\nlicense: mit\n---\nHello", encoding="utf-8")
    pushed = push_folder(model, REPO)
    assert pushed.sent_bytes == (model / "README.md").stat().st_size
    assert len(hub.seen("PUT")) == 2
    assert hub.repos[REPO].files() == contents(model)


def test_revision_is_a_branch_of_its_own(hub: HubServer, model: Path) -> None:
    pushed = push_folder(model, REPO, revision="steps/2000")
    assert pushed.revision == "steps/2000"
    assert pushed.url.endswith("/tree/steps%2F2000")
    assert hub.repos[REPO].files() == {}
    assert hub.repos[REPO].files("steps/2000") == contents(model)
    assert not push_folder(model, REPO, revision="steps/2000").changed


def test_pull_request_leaves_main_alone(hub: HubServer, model: Path) -> None:
    push_folder(model, REPO)
    (model / "notes.md").write_text("more", encoding="utf-8")
    pushed = push_folder(model, REPO, create_pr=True)
    assert (pushed.revision, pushed.pr_url) == ("refs/pr/1", f"{hub.endpoint}/{REPO}/discussions/1")
    assert "notes.md" not in hub.repos[REPO].files()
    assert hub.repos[REPO].files("refs/pr/1") == contents(model)
    (model / "notes.md").write_text("still more", encoding="utf-8")
    push_folder(model, REPO, revision="refs/pr/1")
    assert hub.repos[REPO].files("refs/pr/1")["notes.md"] == b"still more"
    with pytest.raises(ConfigError, match="no pull request refs/pr/7"):
        push_folder(model, REPO, revision="refs/pr/7")


def test_strangers_may_open_pull_requests(hub: HubServer, model: Path) -> None:
    push_folder(model, REPO)
    (model / "notes.md").write_text("more", encoding="utf-8")
    assert push_folder(model, REPO, create_pr=True, token=hub.stranger_token).revision == "refs/pr/1"
    with pytest.raises(HubError, match="no right to write to 'alice'"):
        push_folder(model, REPO, token=hub.stranger_token)


def test_weights_of_an_earlier_version_go_and_other_files_stay(hub: HubServer, model: Path, tmp_path: Path) -> None:
    (model / "notes.md").write_text("mine", encoding="utf-8")
    push_folder(model, REPO)
    single = write_model(tmp_path / "single", seed=1)
    pushed = push_folder(single, REPO)
    assert set(pushed.removed) == {p for p in contents(model) if p.startswith("model")}
    assert hub.repos[REPO].files() == {**contents(single), "notes.md": b"mine"}


def test_broken_upload_is_taken_up(hub: HubServer, model: Path, waits: list[float]) -> None:
    first, second = sorted(p.name for p in model.glob("*.safetensors"))
    hub.fail("PUT", hashlib.sha256((model / second).read_bytes()).hexdigest(), how="drop", times=-1)
    with pytest.raises(HubError, match="cannot be reached"):
        push_folder(model, REPO)
    assert hub.repos[REPO].files() == {}
    assert puts(hub, model, first) == [200]
    hub.faults.clear()
    pushed = push_folder(model, REPO)
    assert puts(hub, model, first) == [200]
    assert [status for status in puts(hub, model, second) if status] == [200]
    assert hub.repos[REPO].files() == contents(model)
    assert pushed.sent_bytes == pushed.bytes - (model / first).stat().st_size


@pytest.mark.parametrize(
    ("method", "part", "how"),
    [
        ("PUT", "/lfs/", {"how": "drop"}),
        ("PUT", "/lfs/", {"status": 503}),
        ("POST", "/objects/verify", {"status": 500}),
        ("POST", "/objects/batch", {"how": "lose"}),
        ("POST", "/preupload/", {"status": 502}),
        ("POST", "/validate-yaml", {"how": "drop"}),
        ("POST", "/repos/create", {"how": "lose"}),
        ("POST", "/repos/create", {"status": 503}),
        ("POST", "/branch/", {"how": "lose"}),
        ("POST", "/commit/", {"status": 503}),
        ("POST", "/commit/", {"status": 409}),
        ("POST", "/commit/", {"status": 412}),
        ("POST", "/commit/", {"how": "drop"}),
        ("POST", "/commit/", {"how": "lose", "times": 1}),
        ("GET", "/whoami-v2", {"status": 429}),
        ("GET", "/api/models/alice/model", {"how": "lose", "times": 3}),
        ("GET", "/tree/", {"how": "cut"}),
    ],
)
def test_passing_faults_are_outlived(
    hub: HubServer, model: Path, waits: list[float], method: str, part: str, how: dict[str, Any]
) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nHello", encoding="utf-8")
    hub.fail(method, part, **{"times": 2, **how})
    pushed = push_folder(model, REPO, revision="there")
    assert pushed.changed
    assert hub.repos[REPO].files("there") == contents(model)
    assert len(titles(hub, "there")) == 2
    assert waits
    assert hub.faults[0].times == 0


def test_retry_after_is_honoured(hub: HubServer, model: Path, waits: list[float]) -> None:
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "40"})
    hub.fail("PUT", "/lfs/", status=429, headers={"Retry-After": "17"})
    push_folder(model, REPO)
    assert 18.0 in waits  # the client adds one
    assert 40 <= waits[-1] <= 41


def test_a_long_retry_after_is_told_instead(hub: HubServer, model: Path, waits: list[float]) -> None:
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "4000"}, times=-1)
    with pytest.raises(HubError, match=r"429, at once\). It asks to wait 400\d seconds") as caught:
        push_folder(model, REPO)
    assert (caught.value.status, commits(hub), waits) == (429, [429], [])


def test_pauses_that_servers_ask_for() -> None:
    assert asked_pause({"Retry-After": " 12 "}) == 12
    assert asked_pause({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert asked_pause({"Retry-After": "soon"}) is None
    assert asked_pause({"ratelimit": '"api";r=0;t=55'}) == 55
    assert asked_pause({"ratelimit": '"api";r=3;t=55'}) is None
    assert asked_pause({}) is None


def test_faults_without_end_are_given_up(hub: HubServer, model: Path, waits: list[float]) -> None:
    hub.fail("POST", "/commit/", status=500, times=-1)
    with pytest.raises(HubError, match=rf"has a fault \(500, after {TRIES} tries\)") as caught:
        push_folder(model, REPO)
    assert caught.value.status == 500
    assert commits(hub) == [500] * TRIES
    assert len(waits) == TRIES - 1
    assert waits[-1] > 3 * waits[0]
    assert len(hub.seen("PUT")) == 2  # the large files had arrived


def test_no_server_is_an_error_in_words(hub: HubServer, model: Path, waits: list[float]) -> None:
    with pytest.raises(HubError, match="cannot be reached"):
        push_folder(model, REPO, endpoint="http://127.0.0.1:9")
    assert len(waits) == TRIES - 1


def test_answers_that_never_come(hub: HubServer, model: Path, waits: list[float]) -> None:
    client = type(get_session())
    set_client_factory(lambda: client(timeout=0.5))
    try:
        hub.fail("GET", "/whoami-v2", how="hang")
        push_folder(model, REPO)
    finally:
        set_client_factory(default_client_factory)
    assert hub.repos[REPO].files() == contents(model)
    assert len(waits) == 1


@pytest.mark.parametrize("how", [{"how": "lose"}, {"status": 504}])
def test_a_lost_pull_request_is_not_opened_twice(
    hub: HubServer, model: Path, waits: list[float], how: dict[str, Any]
) -> None:
    push_folder(model, REPO)
    (model / "notes.md").write_text("more", encoding="utf-8")
    hub.fail("POST", "/commit/", **how)
    with pytest.raises(HubError, match="second pull request"):
        push_folder(model, REPO, create_pr=True)
    assert len(commits(hub)) == 2
    hub.fail("PUT", "/lfs/", how="drop", times=8)  # more than the client's own tries
    shutil.copytree(write_model(model.parent / "other", seed=3), model, dirs_exist_ok=True)
    push_folder(model, REPO, create_pr=True)
    assert hub.faults[-1].times == 0


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_wrongWrongWrongWrongWrongWrongWrong", REPO, r"does not accept the token \(401\).*hf auth login"),
        (HubServer.read_token, REPO, "may only read"),
        (HubServer.narrow_token, REPO, r"no right to write to 'alice' \(403\)"),
        (HubServer.token, "closed/model", r"no right to write to 'closed' \(403\)"),
        (HubServer.token, "nobody/model", r"'nobody/model' was not found \(404\)"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_repeated(
    hub: HubServer, model: Path, waits: list[float], token: str, repo: str, words: str
) -> None:
    with pytest.raises(HubError, match=words):
        push_folder(model, repo, token=token)
    assert waits == []
    assert repo not in hub.repos
    assert len(hub.seen("GET", "/whoami")) == 1
    assert len(hub.seen("POST")) <= 1


def test_malformed_card_stops_before_anything_is_sent(hub: HubServer, model: Path, waits: list[float]) -> None:
    (model / "README.md").write_text("---\na: [\n---\nHello", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"metadata in README\.md"):
        push_folder(model, REPO)
    assert hub.seen("PUT") == []
    assert waits == []


def test_refused_commit_names_the_reason(hub: HubServer, model: Path, waits: list[float]) -> None:
    hub.fail("POST", "/commit/", status=400, message="file names are odd", times=-1)
    with pytest.raises(HubError, match=r"malformed \(400\).*file names are odd"):
        push_folder(model, REPO)
    assert (commits(hub), waits) == ([400], [])


def test_files_that_the_repository_ignores_are_missed(hub: HubServer, model: Path) -> None:
    push_folder(model, REPO)
    HfApi(endpoint=hub.endpoint, token=hub.token).upload_file(
        path_or_fileobj=b"*.md\n", path_in_repo=".gitignore", repo_id=REPO
    )
    (model / "notes.md").write_text("more", encoding="utf-8")
    with pytest.raises(HubError, match=r"missing: notes\.md"):
        push_folder(model, REPO)


def test_a_repository_that_appears_meanwhile_is_taken(hub: HubServer, model: Path) -> None:
    HfApi(endpoint=hub.endpoint, token=hub.token).create_repo(REPO, private=True)
    hub.fail("GET", "/api/models/", status=404, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(ConfigError, match="exists and is private"):
        push_folder(model, REPO, private=False)


def test_a_commit_of_somebody_else_meanwhile_is_kept(
    hub: HubServer, model: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(model, REPO)
    (model / "notes.md").write_text("more", encoding="utf-8")
    upload = HfApi.preupload_lfs_files

    def interrupted(self: HfApi, *args: Any, **more: Any) -> None:
        monkeypatch.setattr(HfApi, "preupload_lfs_files", upload)
        HfApi(endpoint=hub.endpoint, token=hub.token).upload_file(
            path_or_fileobj=b"theirs", path_in_repo="theirs.md", repo_id=REPO
        )
        upload(self, *args, **more)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", interrupted)
    push_folder(model, REPO)
    assert commits(hub) == [200, 200, 412, 200]
    assert hub.repos[REPO].files() == {**contents(model), "theirs.md": b"theirs"}


def test_what_arrived_damaged_is_told(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sorted(p.name for p in model.glob("*.safetensors"))[0]
    oid = hashlib.sha256((model / name).read_bytes()).hexdigest()
    push_folder(model, REPO)
    hub.repos["alice/other"] = other = Repo("alice/other")
    other.large[oid] = b"another file"
    with pytest.raises(HubError, match=f"other: {name}"):
        push_folder(model, "alice/other")


def test_dry_run_asks_nothing(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / ".cache").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    planned = push_folder(model, REPO, dry_run=True, private=True)
    assert hub.requests == []
    assert planned.dry_run
    assert planned.commit is None
    assert {f.path: f.mode for f in planned.files} == {
        p: "lfs" if p.endswith(".safetensors") else "regular" for p in contents(model)
    }
    assert planned.left_out == (".cache/",)
    assert planned.to_dict()["files"][0] == {"path": "config.json", "size": 73, "mode": "regular"}


def test_offline_and_without_a_token(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError, match=r"no token.*hf auth login"):
        push_folder(model, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push_folder(model, REPO, token=hub.token)
    assert hub.requests == []


def test_token_is_nowhere(hub: HubServer, model: Path, waits: list[float], capfd: Any, monkeypatch: Any) -> None:
    """Neither in what is returned, nor in errors with their traceback, nor in any log.

    Even of a Hub that echoes it in its refusals; httpcore's log is left out then, because it shows all answers raw.
    """
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in (None, "huggingface_hub", "httpx2", "httpcore2")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    told: list[str] = []
    try:
        pushed = push_folder(model, REPO, report=lambda *now: told.append(str(now)))
        loggers[-1].setLevel(logging.WARNING)
        for part, status in (("/commit/", 400), ("/commit/", 500), ("/preupload/", 403), ("/whoami-v2", 401)):
            hub.faults.clear()
            hub.fail("POST" if "whoami" not in part else "GET", part, status=status, message=hub.token, times=-1)
            (model / "notes.md").write_text(str(status), encoding="utf-8")
            with pytest.raises(HubError) as caught:
                push_folder(model, REPO)
            assert "***" in str(caught.value) or status == 401
            shown = "".join(traceback.format_exception(caught.value))
            kept += [shown, repr(caught.value), repr(vars(caught.value))]
            assert caught.value.__context__ is None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    everything = "\n".join([*kept, *told, *capfd.readouterr(), repr(pushed), str(pushed.to_dict())])
    assert "curl" in everything
    assert hub.token not in everything
