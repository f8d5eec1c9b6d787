"""Calibration: what it reports against the models' own attention weights, recovery, and what it must not touch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers_made
import torch
import transformers as hf
from hosts import HOSTS, VOCAB
from torch import Tensor

from pe_retrofit import (
    AlibiConfig,
    ConfigError,
    KerpleConfig,
    MlpConfig,
    NopeConfig,
    SelfExtendConfig,
    T5Config,
    UnsupportedError,
    WindowConfig,
    YarnConfig,
    calibrate,
    patch_model,
    status,
    unpatch_model,
)
from pe_retrofit.attention.gain import QueryGain
from pe_retrofit.patchers.family import find_host
from pe_retrofit.retrofit import CalibrateOptions, Calibration
from pe_retrofit.retrofit.calibration import fitting

LENGTH = 24
EVERY_ROW = CalibrateOptions(windows=3, length=LENGTH, rows=LENGTH - 1, output_steps=0)
"""To the attention weights alone, and over all of them."""
FORWARD = ["nope", "cope", "fox"]
"""For decoders only."""
FITTED = ["t5", "alibi", "kerple", "fire", "mlp", "sandwich", "shaw", "transformer_xl", "deberta", *FORWARD]
DECODERS = ["llama", "gpt_neox", "qwen3", "mistral", "stablelm", "smollm3"]
"""Grouped keys, partial rotation, normed queries, windows, both at once, layers without a rotation."""
ENCODERS = ["bert", "distilbert"]
CELLS = [(h, e) for h in DECODERS for e in FITTED] + [(h, e) for h in ENCODERS for e in FITTED if e not in FORWARD]


def tokens(count: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(seed))


def fitted(model: Any, spec: Any, options: CalibrateOptions = EVERY_ROW, ids: Tensor | None = None, **more: Any) -> Any:
    found = calibrate(model, spec, tokens() if ids is None else ids, options=options, **more)
    assert isinstance(found, Calibration)
    return found


@torch.no_grad()
def weights(model: Any, ids: Tensor) -> list[Tensor]:
    """Attention weights ``[b, h, q, k]`` of each layer, by the model itself."""
    return list(model(input_ids=ids, output_attentions=True).attentions)


def divergence(original: Tensor, new: Tensor) -> float:
    """Mean KL over windows, heads and all rows but the first, in float64; what ``new`` cannot see is left out."""
    p, q = original[:, :, 1:].double(), new[:, :, 1:].double()
    terms = torch.where((p > 0) & (q > 0), p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log()), 0.0)
    return terms.sum(-1).mean().item()


def learned(model: Any) -> list[tuple[str, Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if ".position_encoding." in f".{n}"]


@pytest.mark.parametrize(("host", "name"), CELLS)
def test_divergence_is_that_of_the_model(host: str, name: str) -> None:
    """What is reported equals the divergence between the attention weights of two models, the original and ours.

    Each head's bias, gain, mask and rotation enter it, and the states that earlier calibrated layers hand on.
    """
    original = HOSTS[host].fresh(attn_implementation="eager")
    wanted = weights(original, tokens())
    model = HOSTS[host].fresh()
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = fitted(model, name)
    layers = [fit.layer for fit in found.layers]
    assert layers == [n for n in range(3) if (host, n) != ("smollm3", 1) or name == "alibi"]
    now = weights(model, tokens())
    for fit in found.layers:
        assert fit.after == pytest.approx(divergence(wanted[fit.layer], now[fit.layer]), rel=2e-3, abs=1e-5)
        assert fit.after <= fit.before
    tables = host in ENCODERS and name in ("shaw", "transformer_xl", "deberta")
    if not tables:  # random tokens and absolute positions hold nothing that such a table could keep for other windows
        assert found.to_dict()["after"] < 0.98 * found.to_dict()["before"]
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[n], p) for n, p in before.items() if n in parameters)
    assert all(p.isfinite().all() for _, p in learned(model))
    if host not in ENCODERS:
        assert any(isinstance(m, QueryGain) for m in model.modules())


@pytest.mark.parametrize("name", ["t5", "kerple", "shaw", "fox"])
def test_before_is_the_default_start(name: str) -> None:
    """The first layer, which sees the same states in both models."""
    wanted = weights(HOSTS["llama"].fresh(attn_implementation="eager"), tokens())
    start = patch_model(HOSTS["llama"].fresh(), name)
    found = fitted(HOSTS["llama"].fresh(), name)
    assert found.layers[0].before == pytest.approx(divergence(wanted[0], weights(start, tokens())[0]), rel=1e-3)


@pytest.mark.parametrize("spec", [[NopeConfig(gains=True), T5Config(8, 40)], NopeConfig(gains=True)])
def test_known_parameters_are_recovered(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that known gains and a known table made is found again, to a divergence of nearly nothing."""
    truth = patch_model(tiny.llama(num_hidden_layers=1), spec)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in learned(truth):
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    ids = tokens(6)
    made = iter([weights(truth, window[None])[0][0] for window in ids])
    monkeypatch.setattr(fitting, "target_weights", lambda call, native, rows: next(made)[:, rows])
    model = tiny.llama(num_hidden_layers=1)
    options = replace(EVERY_ROW, windows=6, steps=50, ridge=1e-6)
    found = fitted(model, spec, options, ids)
    assert found.layers[0].before > 0.1
    assert found.layers[0].after < 1e-3 * found.layers[0].before
    known = dict(learned(truth))
    for name, parameter in learned(model):
        mine, theirs = parameter.detach(), known[name].detach()
        if name.endswith("weight"):  # a constant per head is seen by no softmax; buckets beyond the text by nothing
            mine, theirs = mine[:6] - mine[:1], theirs[:6] - theirs[:1]
        assert (mine - theirs).abs().max() < 0.1, name


def test_a_rotation_too_slow_to_matter_needs_nothing() -> None:
    slow = {"rope_type": "linear", "factor": 1e6, "rope_theta": 1e4}
    found = fitted(tiny.llama(rope_parameters=slow), "nope")
    assert all(fit.before < 1e-4 and fit.after < 1e-4 for fit in found.layers)


def test_yarn_in_the_original_is_what_is_fitted_to() -> None:
    """Its frequencies and its factor on cos and sin."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    wanted = weights(tiny.llama(rope_parameters=yarn, attn_implementation="eager"), tokens())
    model = tiny.llama(rope_parameters=yarn)
    found = fitted(model, "t5")
    now = weights(model, tokens())
    for fit in found.layers:
        assert fit.after == pytest.approx(divergence(wanted[fit.layer], now[fit.layer]), rel=2e-3)


@pytest.mark.parametrize(
    "spec",
    [
        ["t5", "alibi"],
        ["kerple", WindowConfig(7)],
        AlibiConfig(sides="split"),
        "window",
        ["deberta", WindowConfig(7)],
        ["shaw", "t5"],
    ],
)
def test_biases_that_are_not_fitted_and_windows_count(spec: Any) -> None:
    """A window hides keys for good: the original's attention to the others is what is fitted to."""
    split = isinstance(spec, AlibiConfig)
    build: Callable[..., Any] = tiny.bert if split else tiny.llama
    wanted = weights(build(attn_implementation="eager"), tokens())
    model = build()
    more = {"size": 7} if spec == "window" else {}
    found = fitted(model, spec, **more)
    now = weights(model, tokens())
    for fit in found.layers:
        seen = wanted[fit.layer] * (now[fit.layer] > 0)
        assert fit.after == pytest.approx(
            divergence(seen / seen.sum(-1, keepdim=True), now[fit.layer]), rel=2e-3, abs=1e-5
        )
        assert fit.after <= fit.before


@pytest.mark.parametrize("name", FITTED)
def test_unpatching_gives_the_original_back(name: str) -> None:
    model = tiny.llama()
    with torch.no_grad():
        before = model(input_ids=tokens()).logits
    keys = list(model.state_dict())
    fitted(model, name)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=tokens()).logits, before, atol=1e-3)
        assert torch.equal(unpatch_model(model)(input_ids=tokens()).logits, before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["t5", "fire", "nope", "deberta"])
def test_saved_reloaded_and_generating(name: str, tmp_path: Path) -> None:
    model = tiny.llama()
    fitted(model, name)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens()).logits, model(input_ids=tokens()).logits)
    assert [n for n, _ in learned(again)] == [n for n, _ in learned(model)]
    more = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    ids = tokens(2, 40)
    assert torch.equal(model.generate(ids, **more), model.generate(ids, use_cache=False, **more))


def test_everything_else_is_as_before() -> None:
    """Training mode of each module, the random state, gradients, and the attributes of the attention."""
    model = tiny.llama().train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    old = list(model.modules())
    state = torch.get_rng_state()
    fitted(model, "t5")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in old] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not any("observer" in key.lower() for a in find_host(model).attentions for key in a.__dict__)
    unpatch_model(model)
    assert [m.training for m in model.modules()] == modes


def test_same_seed_same_result() -> None:
    options = CalibrateOptions(windows=2, length=LENGTH, rows=5, seed=3)
    first, second, other = tiny.llama(), tiny.llama(), tiny.llama()
    found = [
        fitted(m, "t5", o) for m, o in ((first, options), (second, options), (other, CalibrateOptions(2, LENGTH, 5)))
    ]
    assert found[0].layers[0] == found[1].layers[0] != found[2].layers[0]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(learned(first), learned(second), strict=True))


@pytest.mark.parametrize("where", ["fit_layer", "run_layer", "observe"])
def test_failure_midway_leaves_the_model_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama().train()
    model.eval()
    model.model.norm.train()
    with torch.no_grad():
        before = model(input_ids=tokens()).logits
    module = import_module("pe_retrofit.retrofit.calibration.calibrate")
    real, calls = getattr(module, where), []

    def fail(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(module, where, fail)
    with pytest.raises(KeyboardInterrupt):
        fitted(model, "t5")
    assert not status(model).patched
    assert not learned(model)
    assert model.model.norm.training
    assert not model.model.layers[0].training
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens()).logits, before)
    monkeypatch.undo()
    fitted(model, "t5")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FITTED)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """The same fit up to rounding; what is reported holds for the parameters as they are stored."""
    wanted = fitted(tiny.llama(), name).to_dict()
    model = tiny.llama().to(dtype)
    found = fitted(model, name).to_dict()
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert found["after"] == pytest.approx(wanted["after"], rel=0.1 if dtype == torch.bfloat16 else 0.01)
    with torch.no_grad():
        assert model(input_ids=tokens()).logits.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "more", "layers"),
    [
        ("t5", {"layers": [1, 3]}, [1, 3]),
        ("nope", {"layers": slice(1, None, 2)}, [1, 3]),
        ("rnope", {"window": 8}, [3]),
        ({"0": "t5", "1": "native", "rest": "alibi"}, {}, [0, 2, 3]),
        ({"0": ["native", "t5"], "2:": "fire"}, {}, [2, 3]),
    ],
)
def test_some_layers(spec: Any, more: Any, layers: list[int]) -> None:
    """Only layers whose rotation is gone are fitted; the others are what they were, or start as they do by default."""
    model = tiny.llama(num_hidden_layers=4)
    found = fitted(model, spec, **more)
    assert [fit.layer for fit in found.layers] == layers
    assert found.to_dict()["after"] < found.to_dict()["before"]
    for name, parameter in learned(model):
        moved = not any(torch.equal(parameter, p) for p in (torch.zeros_like(parameter),))
        assert moved == (int(name.split(".")[2]) in layers), name
    again = patch_model(tiny.llama(num_hidden_layers=4), found.spec, layers=more.get("layers"))
    assert [n for n, _ in learned(again)] == [n for n, _ in learned(model)], "the spec is what patch_model takes"


def test_options_say_how() -> None:
    model = tiny.llama()
    found = fitted(model, "t5", CalibrateOptions(2, LENGTH, 8, gains=False))
    assert not any(isinstance(m, QueryGain) for m in model.modules())
    assert found.tokens == 2 * LENGTH
    local = fitted(tiny.llama(), "t5", replace(EVERY_ROW, sequential=False))
    ours = fitted(tiny.llama(), "t5")
    assert local.layers[0].after == ours.layers[0].after
    assert local.layers[1].after != ours.layers[1].after
    assert ours.layers[0].state_error > 0
    assert ours.layers[-1].state_error != ours.layers[-1].state_error, "not measured after the last layer"


@pytest.mark.parametrize("config", [MlpConfig(1), MlpConfig(2), MlpConfig(8, 3), MlpConfig(8, 2, "silu")])
@pytest.mark.parametrize("build", [tiny.llama, tiny.bert])
def test_networks_of_every_size(config: MlpConfig, build: Callable[..., Any]) -> None:
    found = fitted(build(), config)
    assert all(0 <= fit.after <= fit.before + 1e-4 for fit in found.layers)


REFUSED = [
    ("yarn", {"factor": 2.0}, "patch_model instead"),
    (["native", "t5"], {}, "keeps or scales the model's own encoding"),
    ([YarnConfig(2.0), "t5"], {}, "keeps or scales the model's own encoding"),
    ([SelfExtendConfig(6, 3), "t5"], {}, "keeps or scales the model's own encoding"),
    (["native", KerpleConfig()], {}, "patch_model instead"),
    ("nope", {"options": CalibrateOptions(2, LENGTH, 8, gains=False)}, "no parameters"),
]


@pytest.mark.parametrize(("spec", "more", "message"), REFUSED)
def test_what_cannot_be_fitted_is_refused(spec: Any, more: dict[str, Any], message: str) -> None:
    model = tiny.llama()
    options = more.pop("options", EVERY_ROW) if "options" in more else EVERY_ROW
    with pytest.raises(UnsupportedError, match=message):
        calibrate(model, spec, tokens(), options=options, **more)
    assert not status(model).patched


def test_models_that_cannot_be_fitted_to() -> None:
    with pytest.raises(UnsupportedError, match="unpatch_model"):
        fitted(patch_model(tiny.llama(), "t5"), "alibi")
    for kind in (
        {"rope_type": "dynamic"},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ):
        model = tiny.llama(rope_parameters={"factor": 2.0, "rope_theta": 1e4, **kind})
        with pytest.raises(UnsupportedError, match="depends on the length of the text"):
            fitted(model, "t5")
        assert not status(model).patched
    with pytest.raises(UnsupportedError, match="causal attention only"):
        fitted(tiny.bert(), "nope")
    with pytest.raises(UnsupportedError, match="keeps or scales"):
        fitted(tiny.bert(), ["native", "t5"])
    for host in ("glm", "cohere"):
        for gains in (True, False):
            with pytest.raises(UnsupportedError, match="rotate-half layout"):
                fitted(HOSTS[host].fresh(), "t5", CalibrateOptions(3, LENGTH, 8, gains=gains))


def test_wrong_texts() -> None:
    model, tokenizer = tiny.llama(vocab_size=300), tokenizers_made.decoder_tokenizer()
    options = CalibrateOptions(windows=4, length=16, rows=8)
    with pytest.raises(ConfigError, match="hold 9 tokens, and a window needs 16"):
        calibrate(model, "t5", "too short", tokenizer=tokenizer, options=options)
    with pytest.raises(ConfigError, match=r"need a tokenizer, .* not loaded from anywhere"):
        calibrate(model, "t5", "some text", options=options)
    with pytest.raises(TypeError, match="one text, a list of texts or token ids"):
        calibrate(model, "t5", 5, tokenizer=tokenizer, options=options)
    for ids in (tokens(0, 16), tokens(4, 15), torch.rand(4, 16), torch.zeros(4, 16, 1).long()):
        with pytest.raises(ConfigError, match="shape"):
            calibrate(model, "t5", ids, options=options)
    for value in (-1, 300):
        with pytest.raises(ConfigError, match=f"0 to 299, .* got {value} to {value}"):
            calibrate(model, "t5", torch.full((4, 16), value), options=options)
    with pytest.raises(ConfigError, match="exceeds the 32 positions"):
        fitted(tiny.bert(), "t5", CalibrateOptions(3, 40, 8), tokens(3, 40))
    assert not status(model).patched
    found = calibrate(model, "t5", ["ab" * 40, "yz" * 40], tokenizer=tokenizer, options=options)
    assert found.tokens == 64


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match=r"(?s)rows.*below length"):
        CalibrateOptions(length=16, rows=16)
    with pytest.raises(ConfigError) as caught:
        CalibrateOptions.from_options({"windows": 0, "ridge": -1.0, "wndows": 3})
    assert all(word in str(caught.value) for word in ("windows=0", "ridge=-1.0", "'wndows'"))


def test_windows_longer_than_trained() -> None:
    found = fitted(
        tiny.llama(), "t5", CalibrateOptions(2, 3 * tiny.LENGTH, 20, output_steps=0), tokens(2, 3 * tiny.LENGTH)
    )
    assert found.to_dict()["after"] < found.to_dict()["before"]


@pytest.mark.parametrize("name", ["t5", "alibi", "nope", "kerple"])
def test_fitting_to_outputs(name: str) -> None:
    """What attention adds to the states comes nearer than with the default start, and the report holds for it too."""
    wanted = weights(HOSTS["llama"].fresh(attn_implementation="eager"), tokens())
    model = HOSTS["llama"].fresh()
    found = fitted(model, name, replace(EVERY_ROW, output_steps=3))
    now = weights(model, tokens())
    for fit in found.layers:
        assert fit.after == pytest.approx(divergence(wanted[fit.layer], now[fit.layer]), rel=2e-3)
    plain = fitted(HOSTS["llama"].fresh(), name)
    assert [fit.after for fit in found.layers] != [fit.after for fit in plain.layers]


def test_progress_is_told() -> None:
    told: list[tuple[str, float, float]] = []
    fitted(tiny.llama(), "t5", report=lambda *what: told.append(what))
    assert told[0] == ("the original", 0, 2)
    assert told[-1] == ("done", 2, 2)


def test_vocabulary_of_the_hosts() -> None:
    assert VOCAB > 61, "tokens() must hold for them too"


def test_page() -> None:
    """The code of docs/retrofit.md runs."""
    page = (Path(__file__).parent.parent / "docs" / "retrofit.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/retrofit.md", "exec", dont_inherit=True), {})
