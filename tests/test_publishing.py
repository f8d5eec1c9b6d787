"""From a model in memory to somebody else's machine: with the package, without it, as an adapter, as a plain model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
import tiny
import torch
from hub_server import HubServer
from matrix import logits, randomise
from test_remote_code import run_without

from pe_retrofit import ConfigError, UnsupportedError, patch_model, publish
from pe_retrofit.training import LoraOptions, add_lora

hub = hub_fixtures.hub

PULL = """
import sys, torch, transformers
if sys.argv[3] == "with":
    import pe_retrofit
auto, repo, how = sys.argv[1:4]
more = {"trust_remote_code": True} if how == "code" else {}
model = getattr(transformers, auto).from_pretrained(repo, **more).eval()
assert ("pe_retrofit" in sys.modules) == (how == "with")
with torch.no_grad():
    torch.save(model(input_ids=torch.load("ids.pt"))[0], "logits.pt")
print(type(model).__module__)
"""


def pulled(hub: HubServer, tmp_path: Path, auto: str, repo: str, how: str) -> torch.Tensor:
    """Logits of a fresh process that knows nothing but the repository's name."""
    environment = {**hub.environment(tmp_path / f"home_{how}"), "OMP_NUM_THREADS": "1"}
    arguments = ["-c", PULL, auto, repo, how]
    if how == "with":
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    else:
        done = run_without(arguments, tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.token not in done.stdout + done.stderr
    assert ("transformers_modules" in done.stdout) == (how == "code")
    return torch.load(tmp_path / "logits.pt", weights_only=True)


@pytest.mark.parametrize("build", [tiny.llama, tiny.bert], ids=["llama", "bert"])
def test_others_get_the_same_logits_with_the_package_and_without(build: Any, hub: HubServer, tmp_path: Path) -> None:
    model = build()
    patch_model(model, "t5")
    randomise(model)
    ids = tiny.ids(2, 24)
    torch.save(ids, tmp_path / "ids.pt")
    sent = publish(model, None, "alice/mine", license="apache-2.0", base_model="alice/base")
    assert sent.created
    names = set(hub.repos["alice/mine"].files())
    assert {"config.json", "model.safetensors", "modeling_pe_retrofit.py", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    auto = "AutoModelForMaskedLM" if build is tiny.bert else "AutoModelForCausalLM"
    for how in ("with", "code"):
        torch.testing.assert_close(
            pulled(hub, tmp_path, auto, "alice/mine", how), logits(model, ids), rtol=0, atol=1e-6
        )


def test_a_scaling_is_pulled_as_a_plain_model(hub: HubServer, tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "yarn", factor=2.0)
    ids = tiny.ids(1, 50)
    torch.save(ids, tmp_path / "ids.pt")
    publish(model, None, "alice/plain", base_model="alice/base")
    assert not [name for name in hub.repos["alice/plain"].files() if name.endswith(".py")]
    found = pulled(hub, tmp_path, "AutoModelForCausalLM", "alice/plain", "plain")
    torch.testing.assert_close(found, logits(model, ids), rtol=0, atol=1e-5)


def test_an_adapter_alone_is_pulled_onto_its_base(hub: HubServer, tmp_path: Path) -> None:
    base = tiny.llama()
    publish_plain(base, "alice/base", tmp_path)
    model = tiny.llama()
    model.config._name_or_path = model.name_or_path = "alice/base"
    patch_model(model, ["native", "t5"])
    wrapped = add_lora(model, LoraOptions(r=2)).eval()
    randomise(wrapped)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = tiny.ids(1, 20)
    torch.save(ids, tmp_path / "ids.pt")
    wanted = logits(wrapped, ids)
    publish(wrapped, None, "alice/adapter")
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"names the base model by a path.*base_model="):
        publish(wrapped, None, "alice/adapter")
    publish(wrapped, None, "alice/adapter", base_model="alice/base")
    assert str(tmp_path) not in hub.repos["alice/adapter"].files()["adapter_config.json"].decode()
    assert "adapter_model.safetensors" in hub.repos["alice/adapter"].files()
    assert "model.safetensors" not in hub.repos["alice/adapter"].files()
    code = (
        "import torch, pe_retrofit; m = pe_retrofit.load_adapter('alice/adapter')\n"
        "with torch.no_grad(): torch.save(m(input_ids=torch.load('ids.pt')).logits, 'logits.pt')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), wanted, rtol=0, atol=1e-5)


def publish_plain(model: Any, repo: str, tmp_path: Path) -> None:
    from pe_retrofit.hub import push_folder

    model.save_pretrained(tmp_path / "plain")
    push_folder(tmp_path / "plain", repo)


def test_a_dry_run_tells_everything_and_sends_nothing(hub: HubServer) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    planned = publish(model, None, "alice/never", dry_run=True)
    assert {f.path for f in planned.files} >= {"config.json", "README.md", "model.safetensors"}
    assert planned.bytes > 10_000
    assert hub.requests == []


@pytest.mark.parametrize(("repo", "error"), [("not a repo", ConfigError), ("alice/x/y", ConfigError)])
def test_nothing_is_sent_under_a_wrong_name(repo: str, error: type[Exception], hub: HubServer) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    with pytest.raises(error, match="repo_id"):
        publish(model, None, repo)
    assert hub.requests == []


def test_an_adapter_can_be_merged_on_the_way(hub: HubServer, tmp_path: Path) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    wrapped = add_lora(model, LoraOptions(r=2)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = tiny.ids(1, 20)
    torch.save(ids, tmp_path / "ids.pt")
    wanted = logits(wrapped, ids)
    publish(wrapped, None, "alice/merged", form="merged", base_model="alice/base")
    found = pulled(hub, tmp_path, "AutoModelForCausalLM", "alice/merged", "with")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    with pytest.raises(UnsupportedError, match="form='adapter'"):
        publish(tiny.patched("alibi"), None, "alice/none", form="adapter")


def test_the_code_beside_the_weights_holds_no_token(hub: HubServer) -> None:
    model = tiny.llama()
    patch_model(model, "alibi")
    publish(model, None, "alice/clean", private=True)
    repo = hub.repos["alice/clean"]
    assert repo.private
    files = repo.files()
    assert not [name for name, content in files.items() if hub.token.encode() in content]
    assert json.loads(files["config.json"])["auto_map"]["AutoModelForCausalLM"]
