"""Recipes: what is read from a file, what is refused and how, and the recipes that come with the package."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pe_retrofit import AlibiConfig, T5Config, YarnConfig
from pe_retrofit.cli.app import build
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.pipeline import load_recipe, make_recipe
from pe_retrofit.pipeline.overriding import apply, read_overrides
from pe_retrofit.pipeline.patchspec import PatchOptions
from pe_retrofit.pipeline.reading import read_text, write_text
from pe_retrofit.pipeline.run import run as run_recipe
from pe_retrofit.pipeline.schema import SECTIONS
from pe_retrofit.pipeline.shipped import HEADER, launchers, shipped

SHIPPED = shipped()


def run(*words: Any) -> Result:
    """The outcome of ``pe-retrofit WORDS``."""
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(build(), [str(word) for word in words])


def refused(raw: dict[str, Any]) -> tuple[str, ...]:
    """The problems of a recipe that must be refused."""
    with pytest.raises(ConfigError) as caught:
        make_recipe(raw)
    return caught.value.problems


# What comes with the package


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda found: found.name)
def test_shipped_recipe_is_valid_and_says_what_it_is(recipe: Any) -> None:
    made = load_recipe(recipe.path)
    assert all(getattr(recipe, key.lower()) for key in HEADER)
    assert f"pe-retrofit train {recipe.name}" in recipe.launch
    assert recipe.name.startswith(recipe.path.stem.split("_")[0])
    again = make_recipe(read_text(made.to_yaml()), made.name)
    assert again == made
    assert again.to_yaml() == made.to_yaml()


def test_shipped_recipes_cover_what_is_promised() -> None:
    names = [recipe.name for recipe in SHIPPED]
    assert len(set(names)) == len(names)
    for start in ("llama32_1b", "qwen3_06b", "pythia_410m", "bert_base", "smollm2"):
        assert any(name.startswith(start) for name in names), start
    patches = [patch for recipe in SHIPPED if (patch := load_recipe(recipe.path)["patch"]) is not None]
    encodings = {name for patch in patches for name in patch.names}
    assert {"yarn", "alibi", "nope", "t5", "fire", "kerple"} <= encodings


@pytest.mark.parametrize("path", launchers().values(), ids=lambda path: path.stem)
def test_launcher_configs_are_accelerates(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    said = yaml.safe_load(path.read_text())
    wanted = {"ddp": "MULTI_GPU", "cpu2": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert said["distributed_type"] == wanted[path.stem]
    if path.stem == "fsdp2":
        assert said["fsdp_config"]["fsdp_version"] == 2


# YAML


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    text = "a: 1e-3\nb: no\nc: 010\nd: 1:30\ne: 2026-01-01\nf: 1_000\ng: -.5E2\nh: '1e-3'\n1:8: x\ni: yes\nj: True"
    assert read_text(text) == {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "1:30",
        "e": "2026-01-01",
        "f": "1_000",
        "g": -50.0,
        "h": "1e-3",
        "1:8": "x",
        "i": "yes",
        "j": True,
    }
    assert yaml.safe_load("a: 1e-3")["a"] == "1e-3", "this is why a reader of our own is needed"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(10))}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: the key 'a' is given twice"),
        ("m:\n  x: 1\n  x: 2", "line 3: the key 'x' is given twice"),
        ("a: &a [*a]", "contains itself"),
        (LAUGHS, "values, with aliases written out"),
        ("[" * 3000, "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML|not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: !!set {b}", "is not allowed"),
        ("? [1]\n: 2", "is no text"),
        ("true: 2", "is no text"),
        ("- 1", "holds a list"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_text(text)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a" * (300 * 1024), b"PK\x03\x04"])
def test_bad_files_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_recipe(path)
    for missing in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"There is no recipe|is a folder"):
            load_recipe(missing)


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"model": "smollm2", "patch": {"name": "yarn", "factor": 4}}))
    assert load_recipe(path)["patch"].spec == [YarnConfig(factor=4)]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), plain, max_size=4))
@example({"\x85": "\u2028", "a": "1e-3", "b": "no", "c": "010", "d": "\ufeff\x00", "e": 1e-9, "f": ""})
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    assert read_text(write_text(value)) == value


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        make_recipe(read_text(text))


# Sections

keys = st.sampled_from([*SECTIONS, "modle", ""]) | st.text(max_size=5)
options = st.sampled_from(["name", "dtype", "r", "layers", "lengths", "tasks", "after", "options", "folder", "seed"])
some = plain | st.sampled_from(["smollm2", "alibi", "native+t5", "rnope", "3::4", "all", math.nan, math.inf, 10**5000])


@given(st.dictionaries(keys, some | st.dictionaries(options, some, max_size=4), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_sections_are_a_recipe_or_refused(raw: dict[str, Any]) -> None:
    try:
        made = make_recipe(raw)
    except ConfigError as error:
        problems = error.problems
    else:
        assert make_recipe(read_text(made.to_yaml()), made.name).to_yaml() == made.to_yaml()
        return
    assert problems, "each is listed"


def test_all_problems_come_at_once() -> None:
    problems = refused(
        {
            "modl": 1,
            "model": {"name": 3, "dtyp": "x", "dtype": "fp8"},
            "patch": {"name": "yarrn"},
            "evaluate": {"tasks": ["paskey"], "samples": 0, "lengths": [3]},
            "lora": {"r": 0, "alfa": 1},
            "save": {"form": "both"},
            "run": None,
        }
    )
    text = "\n".join(problems)
    for part in (
        "'modl' is no section; did you mean 'model'?",
        "model: 'dtyp' is not an option; did you mean 'dtype'?",
        "model: name=3",
        "model: dtype='fp8' must be one of",
        "'yarrn'. Did you mean 'yarn'",
        "evaluate: samples=0",
        "evaluate: lengths=",
        "lora: r=0",
        "lora: 'alfa' is not an option; did you mean 'alpha'?",
        "save: form='both'",
        "run: is empty",
    ):
        assert part in text, part


def test_sections_must_fit_together() -> None:
    def of(**more: Any) -> str:
        return "\n".join(refused({"model": "smollm2", **more}))

    assert "nothing to do" in of()
    assert "save: form='adapter' needs the section 'lora'" in of(patch="alibi", save={"form": "adapter"})
    assert "lora: needs the section 'finetune'" in of(patch="alibi", lora={})
    assert "after names 'finetune', a stage that this recipe leaves out" in of(
        patch="alibi", evaluate={"after": ["finetune"]}
    )
    assert "did you mean 'passkey'" in of(patch="alibi", evaluate={"tasks": ["paskey"]})
    assert "'digit' is not an option; did you mean 'digits'" in of(
        patch="alibi", evaluate={"options": {"passkey": {"digit": 7}}}
    )
    assert "model: is required" in "\n".join(refused({"patch": "alibi"}))
    assert "goes into the section patch" in of(model="alibi@smollm2", patch="alibi")
    assert "cannot be left out" in of(model=False, patch="alibi")


@pytest.mark.parametrize(
    ("value", "spec", "layers"),
    [
        ("alibi", [AlibiConfig()], None),
        ("native+t5", ["native", T5Config()], None),
        ({"name": "yarn", "factor": 4}, [YarnConfig(factor=4)], None),
        ({"name": "native+t5", "num_buckets": 64, "layers": "3::4"}, ["native", T5Config(num_buckets=64)], "3::4"),
        ({"name": "alibi", "layers": [0, 3]}, [AlibiConfig()], "0,3"),
        (["native", {"name": "t5", "num_buckets": 64}], ["native", T5Config(num_buckets=64)], None),
        ({"3::4": "alibi", "rest": "native"}, {"3::4": [AlibiConfig()], "rest": ["native"]}, None),
        ({0: "alibi", "1,2": ["native", "t5"]}, {"0": [AlibiConfig()], "1,2": ["native", T5Config()]}, None),
    ],
)
def test_every_way_to_write_a_patch(value: Any, spec: Any, layers: Any) -> None:
    made = PatchOptions.parse(value)
    assert (made.spec, made.layers) == (spec, layers)
    again = PatchOptions.parse(read_text(write_text({"p": made.to_plain()}))["p"])
    wanted = made if layers is None or len(spec) == 1 else PatchOptions({layers: spec})
    assert again == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("native", "changes nothing"),
        ({"rest": "native"}, "changes nothing"),
        ({}, "names no encoding"),
        ([], "empty"),
        ({"factor": 4}, "put options beside a 'name'"),
        (["t5", "t5"], "named twice"),
        (["native", "rnope"], "cannot be composed"),
        ({"3::4": "rnope"}, "cannot be a part"),
        ({"1": "t5", 1: "t5"}, "selected twice"),
        ({"1": {"name": "t5", "num_buckets": -1}, "2": {"name": "t5", "foo": 1}}, "(?s)num_buckets=-1.*'foo'"),
        (7, "is no encoding"),
        ("pope", "cannot be retrofitted"),
        ({"name": "alibi", "layers": "x"}, "selects no layers"),
    ],
)
def test_wrong_patches_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PatchOptions.parse(value)


# section.key=value


def test_overrides_reach_every_notation() -> None:
    raw = {"model": "smollm2", "patch": "yarn", "fade": False, "evaluate": {"lengths": [512]}}
    items = [
        "patch.factor=8",
        "evaluate.lengths=512,2k",
        "evaluate.options.passkey.digits=7",
        "run.seed=3",
        "save=false",
    ]
    made = make_recipe(apply(raw, read_overrides(items)))
    assert made["patch"].spec == [YarnConfig(factor=8)]
    assert made["evaluate"].lengths == (512, 2048)
    assert made["evaluate"].options == {"passkey": {"digits": 7}}
    assert made["run"].seed == 3
    assert made["save"] is None
    lists = ["patch.factor=8", "evaluate.lengths=[512, 2k]", "evaluate.tasks=[perplexity]"]
    again = make_recipe(apply(raw, read_overrides(lists)))
    assert again["evaluate"].lengths == (512, 2048), "the notation of a recipe's file"
    assert again["evaluate"].tasks == ("perplexity",)
    assert raw["patch"] == "yarn"
    assert raw["evaluate"] == {"lengths": [512]}, "the file's values are left alone"


def test_none_is_a_word_where_an_option_knows_it_and_no_value_elsewhere() -> None:
    words = ["evaluate.against=none", "lora.quantize=none", "finetune.report_to=none", "finetune.shifted_group=none"]
    assert list(read_overrides(words).values()) == ["none", "none", "none", None]


@pytest.mark.parametrize("item", ["patch", "=1", ".a=1", "a..b=1", "a.=1", "patch.factor=" + "[" * 5000])
def test_malformed_overrides_are_refused(item: str) -> None:
    with pytest.raises(ConfigError):
        make_recipe(apply({"model": "smollm2", "patch": "yarn"}, read_overrides([item])))


def test_an_override_is_given_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        read_overrides(["run.seed=1", "run.seed=2"])


@given(st.lists(st.text(max_size=12) | st.builds("{}.{}={}".format, keys, options, st.text(max_size=8)), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_override_is_taken_or_refused(items: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        make_recipe(apply({"model": "smollm2", "patch": "alibi"}, read_overrides(items)))


# The command line


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {tmp_path}/none\npatch: {{name: yarn, factor: 4}}\nevaluate: {{lengths: [64, 2k]}}\n")
    return path


def test_print_config_is_a_recipe_that_gives_the_same(recipe: Path, tmp_path: Path) -> None:
    first = run("train", recipe, "--print-config", "run.seed=5")
    assert first.exit_code == 0, first.output
    said = yaml.safe_load(first.stdout)
    assert said["patch"]["beta_fast"] == YarnConfig(factor=4).beta_fast
    assert said["run"]["seed"] == 5
    assert list(said) == list(SECTIONS)
    copy = tmp_path / "copy.yaml"
    copy.write_text(first.stdout)
    assert run("train", copy, "--print-config").stdout == first.stdout


def test_dry_run_finds_what_is_missing_at_once(recipe: Path) -> None:
    result = run("train", recipe, "evaluate.text=none.txt", "--dry-run")
    assert result.exit_code == 2
    assert "There is no folder" in result.stderr
    assert "'none.txt' does not exist" in result.stderr
    assert result.stdout == ""


def test_quantised_weights_are_refused_before_anything_is_loaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pe_retrofit.pipeline import workshop

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(workshop, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    more = ("data.text=python", "finetune.max_steps=1", "lora.quantize=4bit", "save.form=adapter")
    for words in (("--dry-run",), (f"run.folder={tmp_path / 'out'}",)):
        result = run("train", recipe, *more, *words)
        assert result.exit_code == 2
        assert "lora.quantize='4bit' needs" in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    raw: dict[str, Any] = {
        "model": "smollm2",
        "data": {"text": "python"},
        "finetune": {"max_steps": 1},
        "lora": {"quantize": "8bit"},
        "run": {"device": "cpu"},
    }
    assert [problem[:40] for problem in refused(raw)] == [
        "save: form='merged' would round the adap",
        "lora: quantize='8bit' needs a GPU, and r",
    ]
    raw |= {"save": {"form": "adapter"}, "run": {"folder": str(tmp_path / "out")}}
    with pytest.raises(UnsupportedError, match=r"lora\.quantize='8bit' needs"):
        run_recipe(make_recipe(raw))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_are_loaded_so(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches ``from_pretrained``, with a stand-in for bitsandbytes."""
    import transformers

    from pe_retrofit import loading

    seen: dict[str, Any] = {}

    class Auto:
        @staticmethod
        def from_pretrained(name: str, **more: Any) -> Any:
            seen.update(more)
            return torch.nn.Identity()

    monkeypatch.setattr(transformers, "BitsAndBytesConfig", lambda **more: more)
    monkeypatch.setattr(loading, "auto_class", lambda config: Auto)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: None)
    loading.load_model(loading.Source("x", {}), "auto", quantize=bits, device="cuda:1")
    assert seen["device_map"] == {"": "cuda:1"}
    assert seen["quantization_config"][f"load_in_{bits}"] is True
    assert ("bnb_4bit_quant_type" in seen["quantization_config"]) == (bits == "4bit")
    seen.clear()
    loading.load_model(loading.Source("x", {}), "auto")
    assert set(seen) == {"dtype"}


def test_train_refuses_in_words(recipe: Path, tmp_path: Path) -> None:
    for words, said in [
        (("train", "smolm2_alibi"), "No recipe is called 'smolm2_alibi'"),
        (("train", tmp_path / "x.yaml"), "There is no recipe"),
        (("train", recipe, "patch.faktor=2"), "did you mean 'factor'"),
        (("train", recipe, "--processes", "2"), "add --launch"),
        (("recipes", "show", "nonsense"), "No recipe is called"),
    ]:
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output


def test_list_show_and_copy(tmp_path: Path) -> None:
    listed = json.loads(run("recipes", "list", "--json").stdout)
    assert [found["name"] for found in listed["recipes"]] == [found.name for found in SHIPPED]
    name = SHIPPED[0].name
    shown = run("recipes", "list").stdout
    assert name in shown
    content = SHIPPED[0].path.read_text()
    assert run("recipes", "show", name).stdout == content
    target = tmp_path / "sub" / "mine.yaml"
    assert run("recipes", "copy", name, target).exit_code == 0
    assert target.read_text() == content
    target.write_text("mine")
    assert run("recipes", "copy", name, target).exit_code == 2
    assert target.read_text() == "mine", "never overwritten without --force"
    assert run("recipes", "copy", name, target, "--force").exit_code == 0
    assert target.read_text() == content
    assert run("recipes", "copy", "accelerate/cpu2", tmp_path).exit_code == 0
    assert (tmp_path / "cpu2.yaml").exists()
