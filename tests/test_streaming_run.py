"""``python -m pe_retrofit.streaming``: what it measures, writes and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

from pe_retrofit import ConfigError, UnknownEncodingError, UnsupportedError, patch_model, status
from pe_retrofit.streaming import SinkCache, perplexity, stream_nll
from pe_retrofit.streaming.__main__ import app
from pe_retrofit.streaming.run import Settings, read_specs, run_streams
from pe_retrofit.texts import Text

TEXT = Text("words", " ".join(f"w{n % 50 + 3}" for n in range(700)), "0" * 64)


class Words:
    """Tokens ``w3 w4 ...``."""

    bos_token_id = 1

    def encode(self, content: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(word[1:]) for word in content.split()]


def run(model: Any, **settings: Any) -> dict[str, Any]:
    chosen = {"tokens": 600, "segment": 16, "memory": 24, "every": 200, **settings}
    return run_streams(model, Words(), TEXT, Settings(**chosen), model_name="tiny")


def test_measures_what_a_stream_gives() -> None:
    model = tiny.llama(num_hidden_layers=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = run(model, encodings=("lm_infinite", "native", "native+t5"), options={"sinks": 2})
    assert json.loads(json.dumps(results)) == results
    sinks, native, table = results["streams"]
    assert [s["encoding"] for s in results["streams"]] == ["lm_infinite", "native", "native+t5"]
    assert (sinks["cache"], sinks["kept_tokens"]) == ("SinkCache", 2 + 24 - 1)
    assert (native["cache"], native["kept_tokens"]) == ("SegmentCache", 24)
    assert native["perplexity"] == pytest.approx(table["perplexity"]), "a zero table is an identity"
    assert [row["stop"] for row in native["rows"]] == [208, 416, 600]
    assert sum(row["tokens"] for row in native["rows"]) == native["tokens"] == 599
    assert len(native["memory"]) == math.ceil(600 / 16)
    assert {point["cache_bytes"] for point in native["memory"][2:]} == {2 * 2 * 24 * 8 * 4}
    assert not status(model).patched
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ids = torch.tensor([[1, *Words().encode(TEXT.content, False)][:600]])
    patch_model(model, "lm_infinite", sinks=2, window=24)
    wanted = perplexity(stream_nll(model, ids, 16, cache=SinkCache(model)))
    assert sinks["perplexity"] == pytest.approx(wanted)


def test_what_cannot_be_measured_is_refused_and_leaves_the_model_alone() -> None:
    model = tiny.llama()
    with pytest.raises(UnsupportedError, match="has 700 tokens, and 800 are wanted"):
        run(model, tokens=800)
    with pytest.raises(UnsupportedError, match="embeddings"):
        run(model, encodings=("sinusoidal",))
    assert not status(model).patched
    with pytest.raises(UnknownEncodingError, match="alibi"):
        run(model, encodings=("alibbi",))
    with pytest.raises(ConfigError, match="has the option 'slope'"):
        run(model, encodings=("alibi",), options={"slope": 3})
    with pytest.raises(ConfigError, match="every=8 must be at least segment=16"):
        run(model, every=8)
    with pytest.raises(ConfigError, match="Name at least one"):
        run(model, encodings=())
    patch_model(model, "alibi")
    with pytest.raises(UnsupportedError, match="unpatch_model"):
        run(model)


def test_options_go_to_the_encodings_that_have_them() -> None:
    specs = read_specs(["lm_infinite", "native+t5", "native"], {"num_buckets": 64, "sinks": 3}, 10)
    assert (specs["lm_infinite"][0].window, specs["lm_infinite"][0].sinks) == (10, 3)
    assert specs["native+t5"][0] == "native"
    assert specs["native+t5"][1].num_buckets == 64
    assert specs["native"] == ["native"]
    assert read_specs(["lm_infinite"], {"window": 7}, 10)["lm_infinite"][0].window == 7
    with pytest.raises(ConfigError, match="No encoding of native has the option 'window'"):
        read_specs(["native"], {"window": 7}, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and its tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    tiny.llama().save_pretrained(path)
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(tiny.VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(path)
    (path / "text.txt").write_text(TEXT.content, encoding="utf-8")
    return path


def test_command_writes_table_file_and_picture(folder: Path, tmp_path: Path) -> None:
    size = ["--tokens", "300", "--segment", "20", "--memory", "30", "--every", "100", "--dtype", "float32"]
    call = [str(folder), *size, "--text", str(folder / "text.txt"), "--out", str(tmp_path / "new")]
    found = CliRunner().invoke(app, [*call, "--encoding", "lm_infinite", "--encoding", "alibi", "--option", "sinks=3"])
    assert found.exit_code == 0, found.output
    assert "lm_infinite: perplexity" in found.output
    assert "keeps 32 of them" in found.output
    saved = json.loads((tmp_path / "new" / "streaming.json").read_text())
    assert saved["kind"] == "streaming"
    assert saved["settings"]["options"] == {"sinks": 3}
    assert (tmp_path / "new" / "streaming.png").read_bytes()[:4] == b"\x89PNG"
    found = CliRunner().invoke(app, [*call, "--json"])
    assert json.loads(found.stdout)["streams"][0]["encoding"] == "lm_infinite"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokens", "5000"], "has 700 tokens, and 5000 are wanted"),
        (["--encoding", "learned", "--option", "max_positions=64"], "embeddings"),
        (["--option", "window"], "key=value"),
        (["--dtype", "int8"], "choose one of auto, float32, bfloat16"),
        (["--memory", "-3"], "memory=-3 must be a whole number"),
    ],
)
def test_command_says_what_is_wrong(folder: Path, tmp_path: Path, more: list[str], words: str) -> None:
    call = [str(folder), "--tokens", "50", "--text", str(folder / "text.txt"), "--out", str(tmp_path)]
    found = CliRunner().invoke(app, [*call, *more])
    assert found.exit_code == 2
    assert words in found.stderr
    assert "Traceback" not in found.output


def test_help_has_examples_and_missing_files_are_named(folder: Path) -> None:
    assert "python -m pe_retrofit.streaming smollm2" in CliRunner().invoke(app, ["--help"]).output
    found = CliRunner().invoke(app, [str(folder), "--text", "nowhere.txt"])
    assert found.exit_code == 1
    assert "nowhere.txt" in found.stderr
