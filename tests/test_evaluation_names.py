"""What a user may name: encodings on the fly, folders, saved retrofits, adapters; and the verb from end to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from typer.testing import CliRunner

from pe_retrofit import AlibiConfig, ConfigError, T5Config, UnknownEncodingError, UnsupportedError, patch_model, status
from pe_retrofit.cli.app import build
from pe_retrofit.evaluation.opening import open_model
from pe_retrofit.specs import read_named

TRAINED = 256


def tokenizer() -> Any:
    """Bytes as tokens, in the files of a real tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<s>": 256, "</s>": 257, "<pad>": 258}
    made = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tiny() -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=TRAINED, initializer_range=0.3, bos_token_id=256,
        eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(build(), ["eval", *arguments])


SMALL = [
    *("--tasks", "perplexity,passkey", "--lengths", "384,416", "--samples", "1", "--depths", "0,1"),
    *("--set", "perplexity.tail=64", "--set", "perplexity.windows=2"),
    *("--set", "perplexity.window=64", "--set", "perplexity.stride=32"),
]


@pytest.mark.parametrize(
    ("text", "spec", "layers", "model"),
    [
        ("org/name", None, None, "org/name"),
        ("alibi@org/name", [AlibiConfig()], None, "org/name"),
        ("alibi:learnable=true@a", [AlibiConfig(learnable=True)], None, "a"),
        ("native+t5:num_buckets=64,max_distance=256@a", ["native", T5Config(64, 256)], None, "a"),
        ("nope:layers=3::4@a", None, slice(3, None, 4), "a"),
        ("nope:layers=0,2@a", None, [0, 2], "a"),
        ("native@a", None, None, "a"),
    ],
)
def test_names_are_read(text: str, spec: Any, layers: Any, model: str) -> None:
    named = read_named(text)
    assert named.model == model
    assert named.layers == layers
    if spec is not None or "nope" not in text:
        assert named.spec == spec


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alibi@x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_named("alibi@x").spec is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("alibbi@a", UnknownEncodingError, "alibi"),
        ("yarn:factr=4@a", ConfigError, "factor"),
        ("yarn:4@a", ConfigError, "key=value"),
        ("@a", ConfigError, "lacks an encoding"),
        ("alibi@", ConfigError, "lacks a model"),
        ("nope:layers=1,layers=2@a", ConfigError, "twice"),
        ("nope:layers=x@a", ConfigError, "--layers"),
    ],
)
def test_wrong_names_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_named(text)


def test_tables_show_the_last_part_of_a_path(tmp_path: Path) -> None:
    assert read_named(f"yarn:factor=2@{tmp_path}").label == f"yarn:factor=2@{tmp_path.name}"
    assert read_named("yarn:factor=2@org/name").label == "yarn:factor=2@org/name"
    assert read_named(str(tmp_path)).label == tmp_path.name


def test_the_verb_writes_what_it_says(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(f"yarn:factor=2@{folder}", *SMALL, "--out", str(out))
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert results["status"] == "complete"
    assert results["model"]["trained_length"] == results["stock"]["trained_length"] == TRAINED
    assert results["model"]["encoding"][0]["encodings"][0]["name"] == "yarn"
    assert results["stock"]["encoding"] == []
    assert set(results["tasks"]) == {"perplexity", "passkey"}
    for task in results["tasks"].values():
        assert task["status"] == "ok"
        assert task["truncated"] == 0
        assert all("stock" in cell for cell in task["cells"])
    assert results["model"]["integrity"]["cache"]["ok"]
    # again: nothing is left to do, and the numbers are the same
    once_more = run(f"yarn:factor=2@{folder}", *SMALL, "--out", str(out), "--json")
    assert once_more.exit_code == 0, once_more.output
    again = json.loads(once_more.stdout)
    assert again["tasks"]["passkey"]["cells"] == results["tasks"]["passkey"]["cells"]
    assert again["tasks"]["perplexity"]["seconds"] == results["tasks"]["perplexity"]["seconds"]
    assert str(folder.parent) not in (out / "results.json").read_text()  # no path of this machine


def test_an_unpatched_model_is_its_own_stock(folder: Path, tmp_path: Path) -> None:
    done = run(str(folder), *SMALL, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["stock"] is None


def test_a_saved_retrofit_is_compared_with_the_same_weights_unpatched(folder: Path, tmp_path: Path) -> None:
    model = patch_model(tiny(), "alibi")
    model.save_pretrained(tmp_path / "saved")
    tokenizer().save_pretrained(tmp_path / "saved")
    saved = run(str(tmp_path / "saved"), *SMALL, "--out", str(tmp_path / "one"), "--json")
    assert saved.exit_code == 0, saved.output
    other = run(f"alibi@{folder}", *SMALL, "--against", str(folder), "--out", str(tmp_path / "two"), "--json")
    assert other.exit_code == 0, other.output
    one, two = json.loads(saved.stdout), json.loads(other.stdout)
    for task in ("perplexity", "passkey"):
        assert one["tasks"][task]["cells"] == two["tasks"][task]["cells"]
    assert one["stock"] is not None


def adapter(folder: Path, out: Path, spec: Any = None) -> Any:
    peft = pytest.importorskip("peft")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    modules = None
    if spec is not None:
        patch_model(model, spec)
        modules = ["position_encoding"]
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=modules)
    )
    if spec is not None:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "position_encoding" in name and "modules_to_save" in name:
                    parameter.normal_()
    wrapped.save_pretrained(out)
    return wrapped.eval()


def test_an_adapter_is_opened_on_its_base_and_compared_without(folder: Path, tmp_path: Path) -> None:
    wrapped = adapter(folder, tmp_path / "lora")
    opened = open_model(str(tmp_path / "lora"))
    ids = torch.randint(0, 250, (1, 20))
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, wrapped(ids).logits)
        with opened.stock() as stock:
            assert torch.equal(stock(ids).logits, tiny()(ids).logits)
    done = run(str(tmp_path / "lora"), *SMALL, "--out", str(tmp_path / "run"), "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert results["model"]["adapter"]
    assert results["tasks"]["perplexity"]["cells"][0]["ratio"] != 1.0


def test_an_adapter_with_learned_positions_needs_its_encoding(folder: Path, tmp_path: Path) -> None:
    wrapped = adapter(folder, tmp_path / "lora", "t5")
    with pytest.raises(UnsupportedError, match=r"holds learned positions.*NAME@ADAPTER"):
        open_model(str(tmp_path / "lora"))
    opened = open_model(f"t5@{tmp_path / 'lora'}")
    assert status(opened.model).patched
    ids = torch.randint(0, 250, (1, 20))
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, wrapped(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name a model"),
        (("/nowhere/at/all",), "There is no folder"),
        (("X", "--lengths", "2k,abc"), "'abc' is no length"),
        (("X", "--depths", "0,x"), "'x' is no number"),
        (("X", "--set", "digits=7"), "TASK.OPTION=VALUE"),
        (("X", "--set", "passkey.digits=7", "--set", "passkey.digits=8"), "twice"),
        (("X", "--tasks", "pasky"), "did you mean 'passkey'"),
        (("X", "--dtype", "int8"), "--dtype"),
        (("X", "--against", "Y", "--text", "/nowhere.txt"), "nowhere.txt"),
        (("X", "--lengths", "300"), "passkey prompt needs at least"),
    ],
)
def test_the_verb_names_what_is_wrong(folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    words = [str(folder) if word == "X" else word for word in arguments]
    done = run(*words, "--tasks", "passkey", "--out", str(tmp_path)) if "--tasks" not in words else run(*words)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_tasks_are_listed() -> None:
    done = run("--list", "--json")
    assert done.exit_code == 0
    found = {task["name"] for task in json.loads(done.stdout)["tasks"]}
    assert {"perplexity", "passkey"} <= found
    assert run("--list").exit_code == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    """A real signal to a real process."""
    words = ["--tasks", "passkey", "--lengths", "384", "--samples", "300", "--depths", "0,1", "--batch-size", "1"]
    command = [sys.executable, "-m", "pe_retrofit.cli", "eval", f"nope@{folder}", *words, "--out", str(tmp_path)]
    # where the tests run in the background of a shell, ctrl-c is ignored, and would be by what they start
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / "samples" / "model.jsonl"
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    done = log.read_text().splitlines()
    assert 3 <= len(done) < 600
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "interrupted"
    again = run(f"nope@{folder}", *words, "--out", str(tmp_path), "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["tasks"]["passkey"]["n"] == 600
    assert log.read_text().splitlines()[: len(done)] == done
