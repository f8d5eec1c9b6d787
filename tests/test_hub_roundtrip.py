"""Pushed to the loopback Hub, pulled by a fresh process: the same logits, whoever asks for whichever revision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hub_fixtures
import tiny
import torch
from hub_server import HubServer

from pe_retrofit.hub.pushing import push_folder

hub = hub_fixtures.hub

PULL = """
import json, sys
import torch, transformers
import pe_retrofit
from huggingface_hub.errors import RepositoryNotFoundError

ids = torch.load("ids.pt", weights_only=True)
found = {}
for name, (repo, revision) in json.loads(sys.argv[1]).items():
    model = transformers.AutoModelForCausalLM.from_pretrained(repo, revision=revision).eval()
    with torch.no_grad():
        found[name] = model(input_ids=ids).logits
    assert str(pe_retrofit.status(model)), name
torch.save(found, "logits.pt")
for token, repo in ((False, "alice/hidden"), (sys.argv[2], "alice/hidden"), (None, "alice/nowhere")):
    try:
        transformers.AutoModelForCausalLM.from_pretrained(repo, token=token)
    except OSError as error:
        assert "is not a" in str(error) or "not found" in str(error).lower(), error
    else:
        raise AssertionError(f"{repo} was loaded with {token}")
"""


def test_pulled_models_give_the_logits_of_those_pushed(hub: HubServer, tmp_path: Path) -> None:
    ids = tiny.ids(2, 48)
    torch.save(ids, tmp_path / "ids.pt")
    wanted, folders = {}, {}
    for i, name in enumerate(("first", "second", "third")):
        patched = tiny.patched("alibi", learnable=True)
        with torch.no_grad():
            for parameter in patched.parameters():
                parameter.mul_(1 + 0.1 * i)
            wanted[name] = patched(input_ids=ids).logits
        patched.save_pretrained(tmp_path / name, max_shard_size="40KB")
        folders[name] = tmp_path / name
    push_folder(folders["first"], "alice/model")
    push_folder(folders["second"], "alice/model", revision="longer/run")
    pull = push_folder(folders["third"], "alice/model", create_pr=True)
    push_folder(folders["first"], "alice/hidden", private=True)
    asked = {
        "first": ("alice/model", None),
        "second": ("alice/model", "longer/run"),
        "third": ("alice/model", pull.revision),
        "hidden": ("alice/hidden", "main"),
    }
    before = len(hub.requests)
    broken = f"/alice/hidden/resolve/{hub.repos['alice/hidden'].refs['main']}/model-00001-of-00002.safetensors"
    hub.fail("GET", broken, how="cut")  # a connection that breaks half-way through a file
    result = subprocess.run(
        [sys.executable, "-c", PULL, json.dumps(asked), hub.stranger_token],
        env={**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    got = torch.load(tmp_path / "logits.pt", weights_only=True)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-6)
        assert not torch.equal(wanted[name], wanted["first"]) or name == "first"
    torch.testing.assert_close(got["hidden"], wanted["first"], rtol=1e-6, atol=1e-6)
    pulled = hub.requests[before:]
    assert {r.method for r in pulled} <= {"GET", "HEAD"}
    assert len([r for r in pulled if (r.method, r.path) == ("GET", broken)]) == 2
    assert hub.token not in result.stdout + result.stderr
