"""``pe-retrofit push``: what it shows, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
import tiny
import typer
from hub_fixtures import write_model
from hub_server import HubServer
from typer.testing import CliRunner, Result

from pe_retrofit import patch_model
from pe_retrofit.cli import push
from pe_retrofit.cli.app import Verbs

hub, model, waits = hub_fixtures.hub, hub_fixtures.model, hub_fixtures.waits


def run(*words: Any) -> Result:
    app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    push.register(app)
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, ["push", *map(str, words)])


def test_dry_run_shows_everything_and_sends_nothing(hub: HubServer, model: Path) -> None:
    (model / ".cache").mkdir()
    result = run(model, "alice/model", "--dry-run", "--private")
    assert result.exit_code == 0, result.output
    for words in (
        "Would be sent",
        "model-00001-of-00002.safetensors",
        "12.1 kB",
        "Left out: .cache/",
        "Nothing was sent",
    ):
        assert words in result.stdout
    assert hub.requests == []


def test_pushed_and_pushed_again(hub: HubServer, model: Path) -> None:
    first = run(model, "alice/model", "--private", "--message", "Mine")
    assert first.exit_code == 0, first.output
    assert "Pushed (new repository): 24.4 kB sent" in first.stdout
    assert 'AutoModelForCausalLM.from_pretrained("alice/model")' in first.stdout
    assert hub.repos["alice/model"].private
    assert hub.repos["alice/model"].history()[0].title == "Mine"
    assert "no new commit" in run(model, "alice/model").stdout


def test_json_is_all_there_is(hub: HubServer, model: Path) -> None:
    result = run(model, "alice/model", "--revision", "side", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["commit"] == hub.repos["alice/model"].refs["side"]
    assert found["load"][0]["with"] == "plain transformers"
    assert 'from_pretrained("alice/model", revision="side")' in found["load"][0]["code"]
    assert hub.token not in result.output
    (model / "notes.md").write_text("more", encoding="utf-8")
    pull = json.loads(run(model, "alice/model", "--create-pr", "--json").stdout)
    assert pull["pr_url"].endswith("/discussions/1")


def test_ways_to_load_follow_the_folder(tmp_path: Path, hub: HubServer) -> None:
    patched = tiny.llama()
    patch_model(patched, "alibi")
    patched.save_pretrained(tmp_path / "alibi")
    with_plugin = push.ways_to_load(tmp_path / "alibi", "a/b", "main")
    assert [way["with"] for way in with_plugin] == ["the plugin"]
    assert with_plugin[0]["code"].startswith("import pe_retrofit\n")
    config = json.loads((tmp_path / "alibi" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (tmp_path / "alibi" / "config.json").write_text(json.dumps(config))
    ways = push.ways_to_load(tmp_path / "alibi", "a/b", "main")
    assert [way["with"] for way in ways] == ["the plugin", "the code in the repository"]
    assert "trust_remote_code=True" in ways[1]["code"]
    adapter = write_model(tmp_path / "adapter")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    assert "load_adapter" in push.ways_to_load(adapter, "a/b", "main")[0]["code"]


def test_wrong_input_is_2_and_a_refusing_hub_is_1(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run(model, "model", "--revision", "a b")
    assert refused.exit_code == 2
    assert "namespace/name" in refused.stderr
    assert "'a b'" in refused.stderr
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    reading = run(model, "alice/model")
    assert reading.exit_code == 1
    assert "may only read" in " ".join(reading.stderr.split())
    assert hub.read_token not in reading.output


def test_the_token_is_no_option() -> None:
    shown = run("--help").output
    assert "HF_TOKEN" in shown
    assert "hf auth login" in shown
    assert "--token" not in shown
    assert run("a", "b", "--token", "hf_x").exit_code == 2
