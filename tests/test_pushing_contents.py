"""What of a folder goes to the Hub, what stays, and what is refused: before anything is sent."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
from hub_fixtures import contents, write_model
from hub_server import HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pe_retrofit.errors import ConfigError
from pe_retrofit.hub.contents import CREDENTIALS, PICKLES, read_contents
from pe_retrofit.hub.pushing import push_folder

hub, model = hub_fixtures.hub, hub_fixtures.model
SLOW = settings(deadline=None, suppress_health_check=list(HealthCheck))


def refused(folder: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError, match="nothing was sent") as caught:
        push_folder(folder, **{"repo_id": "alice/model", "dry_run": True, **options})
    return caught.value.problems


WORDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters="/\\"), min_size=1, max_size=20)
NAMES = WORDS.map(lambda word: f"f{word}.txt".replace("\u00a0", "_")).filter(lambda name: name.isprintable())
TREES = st.dictionaries(
    st.tuples(NAMES) | st.tuples(st.sampled_from(["data", "d+ü", "100%?#"]), NAMES), st.binary(max_size=600), max_size=6
)


@settings(SLOW, max_examples=12)
@given(tree=TREES)
def test_any_tree_arrives_as_it_is(hub: HubServer, tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = write_model(tmp_path_factory.mktemp("tree"))
    for parts, body in tree.items():
        path = folder.joinpath(*parts)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body if not body.startswith(b"\x80") else b"-" + body)
    name = f"alice/tree{len(hub.repos)}"
    pushed = push_folder(folder, name)
    assert hub.repos[name].files() == contents(folder)
    assert pushed.bytes == pushed.sent_bytes
    assert not push_folder(folder, name).changed


@settings(SLOW, max_examples=30)
@given(
    names=st.lists(st.sampled_from((*PICKLES, *CREDENTIALS)), min_size=1, max_size=4, unique=True),
    inside=st.sampled_from(["", "deep/er"]),
    upper=st.booleans(),
)
def test_every_pickle_and_credential_is_named_in_one_error(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], inside: str, upper: bool
) -> None:
    folder = write_model(tmp_path_factory.mktemp("refused"))
    made = [
        name.replace("*", f"my{i}").upper() if upper else name.replace("*", f"my{i}") for i, name in enumerate(names)
    ]
    (folder / inside).mkdir(parents=True, exist_ok=True)
    for name in made:
        (folder / inside / name).write_bytes(b"x")
    problems = refused(folder)
    assert {p.split(" ")[0] for p in problems} == {f"{inside}/{name}".lstrip("/") for name in made}


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "special_tokens_map.json", "modeling_x.py"])
def test_files_of_models_are_no_credentials(model: Path, name: str) -> None:
    (model / name).write_text("{}", encoding="utf-8")
    assert name in {f.path for f in push_folder(model, "alice/model", dry_run=True).files}


def test_pickles_under_other_names(model: Path) -> None:
    import torch

    (model / "state.json").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.ones(2)}, model / "weights.data")
    assert [p.split(" is ")[0] for p in refused(model)] == ["state.json", "weights.data"]


def test_tokens_in_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token in use is found wherever it is, another one in small texts."""
    token = "hf_loopbackTokenForTheContents"
    with (model / "big.dat").open("wb") as stream:
        stream.write(b"\0" * 100_000 + token.encode() + b"\0" * 100_000)
    (model / "train.yaml").write_text(f"hub_token: hf_{'aB3' * 11}x\n", encoding="utf-8")
    (model / "log.txt").write_text(f"Bearer {token}", encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN", token)
    problems = refused(model)
    assert [p.split(" ")[0] for p in problems] == ["big.dat", "log.txt", "train.yaml"]
    assert "token in use" in problems[0]
    assert token not in "".join(problems)
    assert [p.split(" ")[0] for p in refused(model, token="another")] == ["train.yaml"]


def test_links(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}", encoding="utf-8")
    (model / "ok.json").symlink_to("config.json")
    (model / "out.json").symlink_to(outside)
    (model / "deep").mkdir()
    (model / "deep" / "up.json").symlink_to("../../outside.json")
    (model / "loop").symlink_to(model, target_is_directory=True)
    (model / "broken.json").symlink_to("nowhere.json")
    os.mkfifo(model / "pipe")
    assert [p.split(" ")[0] for p in refused(model)] == ["broken.json", "deep/up.json", "loop", "out.json", "pipe"]
    for name in ("out.json", "deep/up.json", "loop", "broken.json", "pipe"):
        (model / name).unlink()
    assert "ok.json" in {f.path for f in push_folder(model, "alice/model", dry_run=True).files}


def test_what_stays_is_named(model: Path) -> None:
    for name in (
        ".git/config",
        "__pycache__/a.pyc",
        ".DS_Store",
        "a.lock",
        ".model.x.writing/config.json",
        "b~",
        "c.tmp",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("x", encoding="utf-8")
    (model / ".git" / "weights.bin").write_bytes(b"x")  # not looked at
    (model / ".gitattributes").write_text("*.safetensors filter=lfs\n", encoding="utf-8")
    planned = push_folder(model, "alice/model", dry_run=True)
    assert sorted(planned.left_out) == sorted(
        [".DS_Store", ".git/", ".model.x.writing/", "__pycache__/", "a.lock", "b~", "c.tmp"]
    )
    assert ".gitattributes" in {f.path for f in planned.files}


def test_incomplete_folders(tmp_path: Path, model: Path) -> None:
    assert "not a folder" in refused(tmp_path / "nowhere")[0]
    (tmp_path / "empty").mkdir()
    assert "neither config.json nor adapter_config.json" in refused(tmp_path / "empty")[0]
    shard = sorted(model.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200])
    (model / "config.json").write_text("[", encoding="utf-8")
    problems = refused(model)
    assert len(problems) == 2
    assert "no whole safetensors file" in problems[0]
    assert "config.json is not a JSON object" in problems[1]
    shard.unlink()
    (model / "config.json").write_text("{}", encoding="utf-8")
    assert refused(model) == (
        f"model.safetensors.index.json names files that are not there: {shard.name}; save the model again",
    )
    for path in model.glob("*.safetensors*"):
        path.unlink()
    assert "no safetensors file" in refused(model)[0]


def test_an_adapter_is_enough(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "adapter")
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert read_contents(folder, None).problems == ()


@pytest.mark.parametrize("repo", ["model", "a/b/c", "-a/b", "a/b--c", "a/b..c", "a/ b", "a/", "", f"a/{'b' * 100}"])
def test_wrong_names_of_repositories(model: Path, repo: str) -> None:
    assert repr(repo) in refused(model, repo_id=repo)[0]


@pytest.mark.parametrize(
    "branch", ["", "-x", "a b", "a..b", "a//b", "x.lock", "refs/heads/x", "refs/pr/0", "a" * 40, "ü"]
)
def test_wrong_revisions(model: Path, branch: str) -> None:
    assert repr(branch) in refused(model, revision=branch)[0]


def test_all_that_is_wrong_comes_at_once(model: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"x")
    problems = refused(model, repo_id="model", revision="side", create_pr=True, message=" ")
    assert len(problems) == 4
    assert [next(w for w in ("repo_id", "create_pr", "message", "optimizer.pt") if w in p) for p in problems] == [
        "repo_id",
        "create_pr",
        "message",
        "optimizer.pt",
    ]
