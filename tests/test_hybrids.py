"""Specs per layer and named hybrids: against SmolLM3's interleaving, against patching in steps, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from matrix import cached_logits, distance, logits
from typer.testing import CliRunner

import pe_retrofit
from pe_retrofit import (
    AlibiConfig,
    ConfigError,
    EncodingConfig,
    EncodingInfo,
    HybridEncoding,
    NopeConfig,
    RnopeConfig,
    T5Config,
    UnknownEncodingError,
    UnsupportedError,
    WindowConfig,
    YarnConfig,
    get_encoding,
    patch_model,
    register_encoding,
    status,
    unpatch_model,
)
from pe_retrofit.cli.app import build
from pe_retrofit.layering import split_spec
from pe_retrofit.properties import check_encoding

LAYERS = 8
WINDOW = 7


def llama(layers: int = LAYERS, **more: Any) -> Any:
    return tiny.llama(num_hidden_layers=layers, **more)


def smollm3(model: Any, **more: Any) -> Any:
    """A SmolLM3 with the weights of a Llama: every fourth layer has no rotation."""
    own = model.config.to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = hf.SmolLM3Config(
        **{name: own[name] for name in (*same, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        pad_token_id=0,
        **more,
    )
    made = hf.SmolLM3ForCausalLM(config).eval()
    made.load_state_dict(model.state_dict())
    return made


def patches(model: Any) -> list[tuple[str, list[int]]]:
    return [(patch.encodings, patch.layers) for patch in status(model).patches]


EVERY_FOURTH = [{"3::4": "nope"}, {"3::4": "nope", "rest": "native"}, {(3, 7): NopeConfig(), "0:3": "native"}]


@pytest.mark.parametrize("spec", EVERY_FOURTH, ids=str)
def test_smollm3(spec: Any) -> None:
    model, ids = llama(), tiny.ids(2, 50)
    theirs = smollm3(model)
    assert theirs.config.no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]
    before = logits(model, ids)
    patch_model(model, copy.deepcopy(spec))
    assert patches(model) == [("nope", [3, 7])]
    assert distance(logits(model, ids), logits(theirs, ids)) < 1e-6
    assert distance(before, logits(theirs, ids)) > 1e-2, "the oracle must differ from the original"


def test_smollm3_by_name() -> None:
    model, ids = llama(), tiny.ids(2, 50)
    theirs = smollm3(model)
    patch_model(model, "rnope", window=None)
    assert distance(logits(model, ids), logits(theirs, ids)) < 1e-6


@pytest.mark.parametrize(
    "spec",
    [
        {"3::4": "nope", "rest": ["native", WindowConfig(WINDOW)]},
        {"rest": ["native", WindowConfig(WINDOW)], (-1, 3): "nope"},
        RnopeConfig(window=WINDOW),
        {"name": "rnope", "window": WINDOW},
    ],
    ids=["slice", "tuple", "config", "dict"],
)
def test_smollm3_with_windows(spec: Any) -> None:
    """In one pass, padded, and decoding with a cache, of which SmolLM3 keeps the window only."""
    model, ids = llama(), tiny.ids(2, 50)
    kinds = ["full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(LAYERS)]
    theirs = smollm3(model, use_sliding_window=True, sliding_window=WINDOW, layer_types=kinds)
    patch_model(model, spec)
    wanted = logits(theirs, ids)
    assert distance(logits(model, ids), wanted) < 1e-5
    assert distance(cached_logits(model, ids, [9, 1, 1, 20, 1, 18]), wanted) < 1e-5
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    padded, theirs_padded = (logits(m, ids, attention_mask=mask) for m in (model, theirs))
    assert distance(padded[1:], theirs_padded[1:]) < 1e-5
    assert distance(padded[:1, 6:], theirs_padded[:1, 6:]) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "mapping"),
    [
        ("rnope", {}, {"3::4": NopeConfig(), "rest": ["native", WindowConfig(4096)]}),
        ("irope", {}, {"3::4": NopeConfig(attn_scale=0.1)}),
        ("irope", {"window": 6}, {"3::4": NopeConfig(attn_scale=0.1), "rest": ["native", WindowConfig(6)]}),
        ("swan", {}, {"0::4": NopeConfig(attn_scale=0.1), "rest": ["native", WindowConfig(512)]}),
        (
            "swan",
            {"every": 3, "window": 5, "attn_scale": 0.3, "floor_scale": 9},
            {(0, 3, 6): NopeConfig(attn_scale=0.3, floor_scale=9), "rest": ["native", WindowConfig(5)]},
        ),
        ("rnope", {"every": 1}, {"::": "nope"}),
    ],
)
def test_named_hybrids_are_these_mappings(name: str, options: dict[str, Any], mapping: dict[Any, Any]) -> None:
    ids = tiny.ids(2, 70)
    found, wanted = patch_model(llama(), name, **options), patch_model(llama(), mapping)
    assert patches(found) == patches(wanted)
    assert [p.options for p in status(found).patches] == [p.options for p in status(wanted).patches]
    assert torch.equal(logits(found, ids), logits(wanted, ids))


def test_mapping_equals_steps_and_is_taken_back() -> None:
    ids = tiny.ids(2, 60)
    before = logits(llama(), ids)
    spec = {0: "alibi", (2, 5): ["native", T5Config(16, 40)], "-2": YarnConfig(4.0), "1:4:2": "nope", "rest": "native"}
    model = patch_model(llama(), spec)
    assert patches(model) == [("alibi", [0]), ("native + t5", [2, 5]), ("yarn", [6]), ("nope", [1, 3])]
    steps = llama()
    for layers, part in (([0], "alibi"), ([2, 5], ["native", T5Config(16, 40)]), ([6], YarnConfig(4.0))):
        patch_model(steps, part, layers=layers)
    patch_model(steps, "nope", layers=slice(1, 4, 2))
    assert torch.equal(logits(model, ids), logits(steps, ids))
    unpatch_model(model)
    assert not status(model).patched
    assert torch.equal(logits(model, ids), before)


def test_rest_alone_is_all_layers() -> None:
    """The same plain config as without a mapping."""
    model = patch_model(llama(), {"rest": YarnConfig(4.0)})
    assert status(model).patches[0].native
    assert model.config.rope_parameters["rope_type"] == "yarn"


@pytest.mark.parametrize("spec", ["swan", {"0": ["native", "t5"], "3::4": NopeConfig(attn_scale=0.5)}], ids=str)
def test_saved_and_loaded(spec: Any, tmp_path: Path) -> None:
    ids = tiny.ids(2, 60)
    options = {"window": 9, "floor_scale": 8} if spec == "swan" else {}
    model = tiny.patched(spec, llama, **options)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert patches(again) == patches(model)
    assert torch.equal(logits(again, ids), logits(model, ids))
    unpatch_model(again)
    assert torch.equal(logits(again, ids), logits(llama(), ids))


def test_kernel_goes_to_the_layers_that_have_one() -> None:
    spec = {"3::4": "nope", "rest": ["native", WindowConfig(5)]}
    model, ids = patch_model(llama(), spec, kernel="blockwise"), tiny.ids(1, 30)
    assert [patch.kernel for patch in status(model).patches] == ["the model's own", "blockwise (forced)"]
    assert distance(logits(model, ids), logits(patch_model(llama(), spec), ids)) < 1e-5
    with pytest.raises(UnsupportedError, match=r"kernel='blockwise' has no meaning"):
        patch_model(llama(), {"3::4": "nope"}, kernel="blockwise")


@pytest.mark.parametrize(
    ("spec", "options", "error", "words"),
    [
        ({"3::4": "nope", (3, 5): "alibi"}, {}, ConfigError, r"Layer 3 is selected by both '3::4' and \(3, 5\)"),
        ({"3": "nope", -5: "alibi"}, {}, ConfigError, "Layer 3 is selected by both"),
        ({}, {}, ConfigError, "mapping from layers to encodings is empty"),
        ({"rest": "native"}, {}, UnsupportedError, "'native' on every layer changes nothing"),
        ({"::": "nope", "rest": "native"}, {}, ConfigError, "'rest' selects nothing"),
        ({"8": "nope"}, {}, ConfigError, "out of range: the model has 8 layers"),
        ({True: "nope"}, {}, TypeError, "slice or a list of layer indices"),
        ({None: "nope"}, {}, ConfigError, "write 'rest'"),
        ({1.5: "nope"}, {}, TypeError, "slice or a list of layer indices"),
        ({"1::0": "nope"}, {}, ConfigError, "'1::0' selects no layers"),
        ({"6:3": "nope"}, {}, ConfigError, "selects none of the 8 layers"),
        ({"learnable": True}, {}, ConfigError, "beside its 'name'"),
        ({"0": {"factor": 2.0}}, {}, ConfigError, "has no 'name'"),
        ({"0": {"1": "nope"}}, {}, ConfigError, "has no 'name'"),
        ({"0": 3}, {}, TypeError, "must be a name"),
        ({"0": "yran"}, {}, UnknownEncodingError, "Did you mean"),
        ({"0": "rnope"}, {}, UnsupportedError, "'rnope' says what each layer"),
        (["rnope", "alibi"], {}, UnsupportedError, "'rnope' says what each layer"),
        ({"0": "alibi"}, {"learnable": True}, ConfigError, "beside a mapping"),
        ({"0": "alibi"}, {"layers": [0]}, ConfigError, "layers=.* cannot be given as well"),
        ("swan", {"layers": [0, 1, 2, 3]}, ConfigError, "'swan' says itself which layers"),
        ("rnope", {"every": 9}, ConfigError, "at least 9 layers"),
        ("rnope", {"evry": 2}, ConfigError, "did you mean 'every'"),
        (RnopeConfig(), {"every": 2}, ConfigError, "beside a config object"),
        ({"0": "alibi", "1": ["nope", "yarn"]}, {}, ConfigError, "'factor' is required"),
        ({"0": "alibi", "1": ["native", "nope"]}, {}, UnsupportedError, "keeps the rotation"),
        ({"0": "alibi", "1": "sinusoidal"}, {}, UnsupportedError, "acts on the input"),
    ],
)
def test_refusals_leave_the_model_alone(spec: Any, options: dict[str, Any], error: type, words: str) -> None:
    model, ids = llama(), tiny.ids(1, 20)
    before, config = logits(model, ids), model.config.to_dict()
    with pytest.raises(error, match=words) as caught:
        patch_model(model, spec, **options)
    assert not status(model).patched
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, ids), before)
    assert "\n" in str(caught.value) or str(caught.value).endswith(".")


def test_all_or_nothing() -> None:
    """The second part fails only when it is proven: layer 3 of this host has no rotation to remove."""
    model, ids = smollm3(llama()), tiny.ids(1, 20)
    before, hooks = logits(model, ids), sum(len(m._forward_pre_hooks) for m in model.modules())
    implementation = model.config._attn_implementation
    with pytest.raises(UnsupportedError, match=r"changed nothing in layers \[3\]"):
        patch_model(model, {"0": ["native", "alibi"], "3": "nope"})
    assert not status(model).patched
    assert torch.equal(logits(model, ids), before)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert model.config._attn_implementation == implementation
    assert not [name for name, _ in model.named_modules() if "position_encoding" in name]


def test_encoders_take_mappings_that_keep_their_table() -> None:
    model = tiny.bert()
    patch_model(model, {"0": ["native", AlibiConfig(sides="split")], "rest": ["native", "t5"]})
    assert patches(model) == [("native + alibi", [0]), ("native + t5", [1])]
    with pytest.raises(UnsupportedError, match="causal attention only"):
        patch_model(tiny.bert(), "rnope", every=2)
    with pytest.raises(UnsupportedError, match="layers= cannot be chosen here"):
        patch_model(tiny.bert(), {"0": ["native", "alibi"], "rest": "rope"})


def test_beside_an_earlier_patch() -> None:
    model = patch_model(llama(), ["native", "alibi"], layers=[0])
    with pytest.raises(UnsupportedError, match=r"Layers \[0\] are already patched"):
        patch_model(model, {"0": "nope"})
    patch_model(model, {"3::4": "nope"})
    assert patches(model) == [("native + alibi", [0]), ("nope", [3, 7])]


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})
    llama().save_pretrained(tmp_path / "plain")
    words = ["patch", str(tmp_path / "plain"), "swan", "window=9", "every=3", "--out", str(tmp_path / "out"), "--json"]
    report = json.loads(runner.invoke(build(), words).stdout)
    groups = [(patch["encodings"], patch["layers"]) for patch in report["status"]["patches"]]
    assert groups == [("nope", [0, 3, 6]), ("native + window", [1, 2, 4, 5, 7])]
    assert report["reload_difference"] == 0
    shown = json.loads(runner.invoke(build(), ["show", "swan", "every=3", "--json"]).stdout)
    assert shown["shown"]["layers"][:4] == ["nope", "native + window", "native + window", "nope"]
    picture = tmp_path / "swan.png"
    assert runner.invoke(build(), ["show", "swan", "--out", str(picture)]).exit_code == 0
    assert picture.stat().st_size > 5000
    assert runner.invoke(build(), [*words[:5], "--layers", "3", "--out", str(tmp_path / "no")]).exit_code == 2


def test_properties_are_measured_on_enough_layers() -> None:
    report = check_encoding("rnope", window=16)
    assert (report.encoding, report.layers) == ("rnope", 4)
    assert report["relative"].holds
    assert report["cached = uncached"].holds
    assert check_encoding("swan", every=2, window=16)["relative"].holds is False


def test_examples_of_the_readme() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    calls = [
        line for line in text.splitlines() if line.startswith("patch_model") and ("rest" in line or "rnope" in line)
    ]
    assert len(calls) == 3
    for call in calls:
        model = llama(max_position_embeddings=4096)
        exec(call, {**vars(pe_retrofit), "model": model})
        assert len(status(model).patches) == (1 if "(0, 5, 7)" in call else 2)


def test_a_hybrid_of_ones_own() -> None:
    @dataclass(frozen=True)
    class OwnConfig(EncodingConfig):
        name = "own_hybrid"

    @dataclass(frozen=True)
    class EmptyConfig(EncodingConfig):
        name = "empty_hybrid"

    @register_encoding
    class Own(HybridEncoding[OwnConfig]):
        Config = OwnConfig
        info = EncodingInfo(title="first and last", formula="layers 0 and -1: alibi", paper="none")

        def layers(self, count: int) -> dict[Any, Any]:
            return {(0, count - 1): "alibi"}

    model = patch_model(llama(), "own_hybrid")
    assert patches(model) == [("alibi", [0, 7])]
    assert get_encoding("own_hybrid") is Own
    with pytest.raises(ConfigError, match=r"override layers\(\)"):
        register_encoding(type("Bad", (HybridEncoding,), {"Config": EmptyConfig, "info": Own.info}))


@pytest.mark.parametrize("spec", ["alibi", ["native", "t5"], {"name": "alibi"}, YarnConfig(2.0)], ids=str)
def test_what_is_the_same_everywhere_is_one_part(spec: Any) -> None:
    (part,) = split_spec(spec, {}, [1, 2], 8)
    assert (part.spec, part.layers, part.of_several) == (spec, [1, 2], False)
