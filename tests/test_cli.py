"""The command line: every verb's output for people and for machines, its errors, and patching folder to folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner, Result

from pe_retrofit import list_encodings
from pe_retrofit.cli.app import VERBS, build
from pe_retrofit.errors import ConfigError
from pe_retrofit.specs import read_layers, read_spec, read_value


def run(*words: Any) -> Result:
    """The outcome of ``pe-retrofit WORDS``."""
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(build(), [str(word) for word in words])


def refused(*words: Any) -> str:
    """The message of a command that must be refused: exit code 2, one message on stderr, nothing on stdout."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def tiny_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Words w0 to w59."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", model_max_length=length)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer(64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT without a head, as MiniLM is saved."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer(32).save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# help and imports


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_examples_and_json(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"pe-retrofit {verb}" in result.stdout
    assert "--json" in result.stdout


def test_help_imports_nothing_that_only_verbs_need() -> None:
    code = (
        "import sys, pe_retrofit.cli.app as a; a.build(); "
        "print(sorted({'matplotlib', 'peft', 'datasets', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_verb_is_refused() -> None:
    assert "No such command 'frobnicate'" in refused("frobnicate")


# reading what the user wrote


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("none", None),
        ("1,2.5", [1, 2.5]),
        ("[1, 2]", [1, 2]),
        ("[512, 2k]", [512, "2k"]),
        ("[a", "[a"),
        ("tile", "tile"),
        ("a,b", "a,b"),
        ("", ""),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("all", None), ("0,3,7", [0, 3, 7]), ("-1", [-1]), ("3::4", slice(3, None, 4)), ("-4:", slice(-4, None))],
)
def test_layers(text: str, chosen: Any) -> None:
    assert read_layers(text) == chosen


@pytest.mark.parametrize("text", ["", "x", "1,", "1:2:3:4", "::0", "0.5"])
def test_layers_not_understood(text: str) -> None:
    with pytest.raises(ConfigError, match="is not understood"):
        read_layers(text)


def test_options_go_to_the_encoding_that_has_them() -> None:
    spec, filled = read_spec("native+t5+alibi", ["num_buckets=64", "alibi.learnable=true"])
    assert spec[0] == "native"
    assert spec[1].num_buckets == 64
    assert spec[2].learnable is True
    assert filled == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yarn", ["factor"], "not an option of the form key=value"),
        ("yarn", ["factor=2", "factor=3"], "given twice"),
        ("t5+alibi", ["x=1"], "has the option 'x'"),
        ("t5", ["alibi.x=1"], "names no encoding"),
        ("yarn", ["factor=nan"], "finite number"),
        ("yarn", ["factor=1e400"], "finite number"),
        ("native+", [], "is no encoding"),
        ("yarn", [], "'factor' is required"),
    ],
)
def test_wrong_options(name: str, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_spec(name, options)


# list and show


def test_list_names_every_encoding() -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in rows] == list_encodings()
    yarn = next(row for row in rows if row["name"] == "yarn")
    assert (yarn["site"], yarn["on_disk"], yarn["options"][0]["default"]) == ("rotation", "plain", "required")
    table = run("list").stdout
    assert all(row["name"] in table and row["paper"] in " ".join(table.split()) for row in rows[:1])
    assert all(row["name"] in table for row in rows)


@pytest.mark.parametrize("name", list_encodings())
def test_show_every_encoding_in_words_and_as_a_picture(name: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    picture = tmp_path / "new" / "picture.png"
    result = run("show", name, "--out", picture, "--length", 24, "--heads", 3, "--head-dim", 16)
    assert result.exit_code == 0, result.output
    assert "Formula" in result.stdout
    assert any(bar in result.stdout for bar in "▁▂▃▄▅▆▇█")
    pixels = imread(picture)
    assert pixels.shape[1] > 1000
    assert 0.005 < (pixels[..., :3].min(-1) < 0.9).mean() < 0.9  # something is drawn, on white


def test_show_json_holds_the_numbers() -> None:
    shown = json.loads(run("show", "alibi", "--heads", 2, "--length", 5, "--json").stdout)["shown"]
    assert shown["distance"] == [0, 1, 2, 3, 4]
    assert shown["bias"] == [[-d * 2.0**-4 for d in range(5)], [-d * 2.0**-8 for d in range(5)]]


def test_show_rotation_reads_what_is_installed() -> None:
    result = json.loads(run("show", "linear", "factor=8", "--head-dim", 8, "--json").stdout)
    stock, patched = result["shown"]["inv_freq"]["stock"], result["shown"]["inv_freq"]["patched"]
    assert patched == pytest.approx([f / 8 for f in stock], rel=1e-6)
    assert (result["shown"]["trained"], result["shown"]["extended"]) == (4096, 32768)


def test_show_says_what_was_filled_in() -> None:
    t5 = json.loads(run("show", "t5", "--json").stdout)
    assert "zero at the start" in t5["shown"]["note"]
    assert t5["shown"]["bucket"][:17] == [*range(16), 16]
    assert json.loads(run("show", "yarn", "--json").stdout)["example_values"] == {"factor": 4.0}
    assert "4.0 (example)" in run("show", "yarn").stdout


def shown(*words: Any) -> Any:
    """The numbers that ``show`` draws."""
    return json.loads(run("show", *words, "--json").stdout)["shown"]


def test_show_piecewise_rotations_as_effective_distances() -> None:
    """Against the formula, pair by pair; what is masked is null."""
    seen = shown("self_extend", "window=8", "group=4", "--trained", 16, "--length", 32)
    last = seen["distance"][-1]
    assert (last, seen["trained"], seen["position"]) == (31, 16, list(range(32)))
    for d, at in zip(seen["distance"], seen["effective"], strict=True):
        assert at == (d if d < 8 else last // 4 - (last - d) // 4 + 8 - 2)
    for i, row in enumerate(seen["matrix"]):
        for j, at in enumerate(row):
            assert at == (None if j > i else i - j if i - j < 8 else i // 4 - j // 4 + 6)
    held = shown("lm_infinite", "sinks=2", "window=5", "limit=9", "--trained", 16, "--length", 32)["matrix"]
    for i, row in enumerate(held):
        for j, at in enumerate(row):
            visible = j <= i and (i - j < 5 or j < 2)
            assert at == (min(i - j, 9) if visible else None)


def test_show_scores_for_one_text() -> None:
    shaw = shown("shaw", "max_distance=3", "--length", 8, "--heads", 2)
    assert shaw["what"] == "added score"
    assert shaw["bucket"] == [0, 1, 2, 3, 3, 3, 3, 3]
    assert "zero at the start" in shaw["note"]
    for head in shaw["matrix"]:
        assert [value is None for value in head[4]] == [False] * 5 + [True] * 3
        assert head[7][0] == head[7][1] == head[7][4] != head[7][5]  # they read one row
        assert head[7][::-1] == shaw["bias"][shaw["matrix"].index(head)]
    both = shown("shaw", "max_distance=3", "--length", 8, "--encoder")
    assert both["distance"] == list(range(-3, 5))
    assert both["bucket"] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert all(value is not None for value in both["matrix"][0][0])
    counted = shown("cope", "--length", 20)["counted"]
    assert all(0 < now < then < now + 1 for head in counted for now, then in pairwise(head))


def test_show_decay_of_each_frequency() -> None:
    seen = shown("xpos", "scale_base=64", "--head-dim", 8)
    wanted = [((m / 4 + 0.4) / 1.4) ** (1 / 64) for m in range(4)]
    assert seen["decay"] == {"patched": pytest.approx(wanted, rel=1e-12)}
    assert "decay" in shown("yarn")
    assert shown("yarn")["decay"] == {}
    assert "counts half" in run("show", "xpos").stdout


def test_show_what_queries_at_different_positions_see() -> None:
    fire = shown("fire", "length=16", "--trained", 64, "--length", 8)
    assert list(fire["queries"]) == ["8", "64", "256"]
    near, far = (fire["queries"][place]["bias"][0] for place in ("8", "256"))
    assert near[0] == pytest.approx(far[0])
    assert near[3] != pytest.approx(far[3], rel=1e-3)
    assert shown("alibi")["queries"] == {}


def test_show_windows_to_their_end() -> None:
    seen = shown("window", "size=32", "--length", 16)
    assert seen["position"] == list(range(0, 64, 4))
    assert [value is None for value in seen["matrix"][0][-1]] == [True] * 8 + [False] * 8
    assert "one position in 4" in seen["note"]


def test_show_refusals() -> None:
    assert "Did you mean 'alibi'" in refused("show", "alibbi")
    assert "causal attention only" in refused("show", "nope", "--encoder")
    assert "must end in .png" in refused("show", "alibi", "--out", "x.jpg")
    assert "must be even" in refused("show", "yarn", "--head-dim", "7")
    assert "cannot be retrofitted" in refused("show", "pope")
    assert "name one encoding" in refused("show", "native+t5")


def test_list_capabilities() -> None:
    rows = json.loads(run("list", "--capabilities", "--json").stdout)
    assert [row["name"] for row in rows] == list_encodings()
    alibi = rows[0]
    assert alibi["families"] == {"llama": True, "gpt_neox": True, "bert": True}
    assert (alibi["tp"], alibi["cp"], alibi["kernels"]["cpu"][0], alibi["saved"]) == (
        True,
        False,
        "toeplitz",
        "pe_retrofit",
    )
    table = run("list", "--capabilities").stdout
    assert all(name in table for name in list_encodings())


# check


def test_check_reports_every_property() -> None:
    from pe_retrofit.properties import PROPERTIES

    result = run("check", "learned", "max_positions=140", "--family", "llama", "--json")
    report = json.loads(result.stdout)
    assert [row["name"] for row in report["properties"]] == list(PROPERTIES)
    assert report["filled"] == ["learned.weight"]
    assert all(row["figure"] and row["meaning"] for row in report["properties"])


def test_check_says_what_it_chose_and_how_it_starts() -> None:
    report = json.loads(run("check", "normalized", "--json").stdout)
    assert report["lacking"] == ["consistent", "relative", "cached = uncached"]
    assert "no cache can be continued" in report["breaks"]
    assert [start["encoding"] for start in report["starts"]] == ["normalized", "native + normalized"]
    assert json.loads(run("check", "native+window", "--json").stdout)["chosen"] == {"size": 32}
    table = " ".join(run("check", "string").stdout.split())
    assert "local = 8 (example" in table
    assert "at the start, up to L: string: changes the output by" in table
    assert "native + conv: an exact identity" in " ".join(run("check", "conv").stdout.split())


def test_check_table_and_refusals() -> None:
    table = run("check", "learned", "--family", "bert").stdout
    assert "max_positions = 256 (example" in table
    assert "refuses inputs beyond 256 tokens" in " ".join(table.split())
    assert "choose one of llama, gpt_neox, bert" in refused("check", "alibi", "--family", "gpt3")
    assert "attends in both directions" in refused("check", "nope", "--family", "bert")


# patch


def test_patch_native_scaling_gives_a_plain_model(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "yarn"
    result = run("patch", llama, "yarn", "factor=4", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["plain"] is True
    assert report["auto_class"] == "AutoModelForCausalLM"
    assert report["context_length"] == {"before": 64, "after": 256}
    assert report["reload_difference"] == 0.0
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"]) == ("llama", 256)
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert AutoTokenizer.from_pretrained(out).model_max_length == 256
    assert [p.name for p in out.parent.iterdir()] == ["yarn"]
    assert oct((out / "model.safetensors").stat().st_mode)[-3:] == oct(0o666 & ~_umask())[-3:]


def test_patch_saves_what_transformers_cannot_say_under_its_own_type(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "hybrid"
    result = run(
        "patch", llama, "t5", "num_buckets=8", "--native", "--layers", "-2:", "--dtype", "bfloat16", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "native + t5 on layers [2, 3]" in result.stdout
    assert "import pe_retrofit" in result.stdout
    assert "Context" not in result.stdout  # nothing was extended
    assert json.loads((out / "config.json").read_text())["model_type"] == "pe_retrofit"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.model.layers[3].self_attn.position_encoding["t5"].weight.shape == (8, 4)
    assert AutoTokenizer.from_pretrained(out).model_max_length == 64


def test_patch_encoder_uses_the_class_it_was_saved_with(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "long"
    report = json.loads(run("patch", bert, "learned", "max_positions=128", "--out", out, "--json").stdout)
    assert report["auto_class"] == "AutoModel"
    assert report["context_length"] == {"before": 32, "after": 128}
    assert "plain transformers" in report["needs"]
    model = AutoModel.from_pretrained(out)
    assert type(model) is BertModel
    assert model.embeddings.position_embeddings.weight.shape[0] == 128
    assert AutoTokenizer.from_pretrained(out).model_max_length == 128


def test_patch_again_what_was_patched_and_saved(llama: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("patch", llama, "nope", "--layers", "0", "--out", first).exit_code == 0
    result = run("patch", first, "alibi", "--layers", "1,2", "--out", second)
    assert result.exit_code == 0, result.output
    patches = json.loads((second / "config.json").read_text())["position_encoding"]["patches"]
    assert [(p["encodings"][0]["name"], p["layers"]) for p in patches] == [("nope", [0]), ("alibi", [1, 2])]
    assert "already patched" in refused("patch", first, "alibi", "--layers", "0", "--out", tmp_path / "third")


def test_patch_without_tokenizer_says_so(llama: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((llama / name).read_bytes())
    report = json.loads(run("patch", bare, "nope", "--out", tmp_path / "out", "--json").stdout)
    assert report["tokenizer"].startswith("none: ")


def test_patch_keeps_what_is_in_the_way(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("dear diary")
    assert "is not empty" in refused("patch", llama, "nope", "--out", out)
    assert "no saved model" in refused("patch", llama, "nope", "--out", out, "--overwrite")
    assert contents(out) == {"diary.txt": b"dear diary"}
    assert "holds the model being read" in refused("patch", llama, "nope", "--out", llama, "--overwrite")
    assert "holds the model being read" in refused("patch", llama, "nope", "--out", llama.parent, "--overwrite")
    assert "is a file" in refused("patch", llama, "nope", "--out", out / "diary.txt")


def test_patch_overwrites_a_model_as_a_whole(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("patch", llama, "nope", "--out", out).exit_code == 0
    (out / "stale.txt").write_text("from before")
    assert run("patch", llama, "ntk", "factor=2", "--out", out, "--overwrite").exit_code == 0
    assert not (out / "stale.txt").exists()
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_leaves_everything_as_it_was(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    out = tmp_path / "out"
    if old:
        assert run("patch", llama, "nope", "--out", out).exit_code == 0
    before = contents(tmp_path)

    def fill(self: PreTrainedModel, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill)
    result = run("patch", llama, "alibi", "--out", out, "--overwrite")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert contents(tmp_path) == before
    assert out.exists() is old


def test_a_saved_model_that_differs_is_not_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = PreTrainedModel.save_pretrained

    def corrupt(self: PreTrainedModel, folder: Path) -> None:
        with torch.no_grad():
            self.model.norm.weight.mul_(2)
        save(self, folder)
        with torch.no_grad():
            self.model.norm.weight.div_(2)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", corrupt)
    result = run("patch", llama, "alibi", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "other logits than the one in memory" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_patch_refusals(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "Missing option '--out'" in refused("patch", llama, "alibi")
    assert "There is no folder" in refused("patch", "./nowhere", "alibi", "--out", out)
    assert "cannot be loaded" in refused("patch", "nobody/nothing", "alibi", "--out", out)
    assert "holds no config.json" in refused("patch", tmp_path, "alibi", "--out", out)
    assert "--dtype 'int4' is unknown" in refused("patch", llama, "alibi", "--dtype", "int4", "--out", out)
    assert "out of range" in refused("patch", llama, "alibi", "--layers", "4", "--out", out)
    assert "is not in the folder" in refused("patch", llama, "alibi", "--gguf-file", "x.gguf", "--out", out)
    assert "keeps the rotation that 'nope' replaces" in refused("patch", llama, "nope", "--native", "--out", out)
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert "is a file" in refused("patch", tmp_path / "weights.bin", "alibi", "--out", out)
    assert not out.exists()


def test_patch_refuses_a_damaged_model(llama: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((llama / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:1000])
    assert "cannot be loaded" in refused("patch", damaged, "alibi", "--out", tmp_path / "out")


def test_several_gguf_files_need_a_choice(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    message = refused("patch", tmp_path, "alibi", "--out", tmp_path / "out")
    assert "choose one with --gguf-file: a.gguf, b.gguf" in message


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
