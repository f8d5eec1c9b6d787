"""The measured properties against what is known about the encodings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pe_retrofit import UnsupportedError, get_encoding, list_encodings, register_encoding
from pe_retrofit.attention.piecewise import PiecewiseRotation
from pe_retrofit.capabilities import supported
from pe_retrofit.config import EncodingConfig
from pe_retrofit.patchers.family import FAMILIES
from pe_retrofit.probes import FAMILY_NAMES, Lab
from pe_retrofit.probes.cost import largest_tensor, power
from pe_retrofit.probes.scores import score_rise
from pe_retrofit.properties import PROPERTIES, Report, check_encoding
from pe_retrofit.sites import BiasEncoding, EncodingInfo, PiecewiseEncoding


def measured(name: str, spec: Any, family: str = "llama", **options: Any) -> tuple[bool | None, str, float | None]:
    """One property of one encoding."""
    return PROPERTIES[name][0](Lab(spec, family, options))


KNOWN: list[tuple[str, Any, str, dict[str, Any], bool | None]] = [
    ("unique", "native", "llama", {}, True),
    ("unique", "alibi", "llama", {}, True),
    ("unique", "linear", "llama", {"factor": 4.0}, True),
    ("unique", "sinusoidal", "llama", {}, True),
    ("unique", "learned", "llama", {"max_positions": 256}, True),
    ("unique", "nope", "llama", {}, False),
    ("unique", "t5", "llama", {}, False),
    ("unique", ["native", "t5"], "llama", {}, True),
    ("unique", "t5", "bert", {}, False),
    ("consistent", "dynamic", "llama", {"factor": 2.0}, True),
    ("consistent", "alibi", "bert", {}, True),
    ("consistent", "t5", "gpt_neox", {}, True),
    ("order-sensitive", "nope", "llama", {}, True),  # through the causal mask
    ("order-sensitive", "nope", "bert", {"allow_bag_of_words": True}, False),
    ("order-sensitive", "alibi", "bert", {}, True),
    ("relative", "native", "llama", {}, True),
    ("relative", "native", "bert", {}, False),
    ("relative", "alibi", "llama", {}, True),
    ("relative", "alibi", "bert", {}, True),
    ("relative", "t5", "llama", {}, True),
    ("relative", "linear", "gpt_neox", {"factor": 4.0}, True),
    ("relative", "nope", "llama", {}, True),
    ("relative", "sinusoidal", "llama", {}, False),
    ("relative", "learned", "llama", {"max_positions": 256}, False),
    ("relative", "dynamic", "llama", {"factor": 2.0}, False),  # its base depends on the absolute position beyond L
    ("bounded", "alibi", "llama", {}, False),
    ("bounded", "t5", "llama", {}, True),
    ("bounded", "yarn", "llama", {"factor": 4.0}, True),
    ("bounded", "sinusoidal", "bert", {}, True),
    ("extrapolates", "native", "llama", {}, False),
    ("extrapolates", "native", "bert", {}, False),
    ("extrapolates", "alibi", "llama", {}, True),
    ("extrapolates", "nope", "llama", {}, True),
    ("extrapolates", "t5", "llama", {}, True),
    ("extrapolates", "linear", "llama", {"factor": 4.0}, False),
    ("extrapolates", "linear", "llama", {"factor": 16.0}, True),
    ("extrapolates", "yarn", "llama", {"factor": 16.0}, True),
    ("extrapolates", "learned", "bert", {"max_positions": 256}, False),
    ("cached = uncached", "t5", "llama", {}, True),
    ("cached = uncached", "dynamic", "llama", {"factor": 2.0}, True),
    ("cached = uncached", "learned", "llama", {"max_positions": 140}, True),
    ("cached = uncached", "alibi", "bert", {}, None),
    ("precise in bfloat16", "alibi", "llama", {}, True),
    ("unique", "self_extend", "llama", {}, False),
    ("unique", "string", "llama", {}, False),
    ("unique", "dual_chunk", "llama", {}, True),
    ("unique", "fire", "llama", {}, True),
    ("unique", "shaw", "llama", {}, False),
    ("unique", "transformer_xl", "llama", {}, True),
    ("unique", "rerope", "llama", {}, False),
    ("unique", "window", "llama", {}, False),
    ("unique", "cope", "llama", {}, False),  # two tokens: nothing to count between them
    ("relative", "self_extend", "llama", {}, False),
    ("relative", "rerope", "llama", {}, True),
    ("relative", "string", "gpt_neox", {}, True),
    ("relative", "dual_chunk", "llama", {}, False),
    ("relative", "lm_infinite", "llama", {}, False),  # the first G tokens are others
    ("relative", "fire", "llama", {}, False),
    ("relative", "xpos", "llama", {}, True),
    ("relative", "fope", "llama", {}, False),
    ("relative", "shaw", "bert", {}, True),
    ("relative", "rope", "bert", {}, True),
    ("relative", "irope", "llama", {}, False),
    ("relative", "rnope", "llama", {}, True),
    ("bounded", "shaw", "llama", {}, True),
    ("bounded", "transformer_xl", "llama", {}, True),
    ("bounded", "cope", "llama", {}, True),
    ("bounded", "fox", "llama", {}, False),
    ("bounded", "kerple", "llama", {}, False),
    ("bounded", "irope", "llama", {}, False),
    ("bounded", "xpos", "llama", {}, True),
    ("bounded", "integer", "llama", {}, False),
    ("bounded", "integer", "bert", {}, False),
    ("bounded", "normalized", "llama", {}, True),
    ("bounded", "random", "llama", {}, True),
    ("bounded", "recurrent", "llama", {}, True),
    ("extrapolates", "integer", "llama", {}, False),
    ("extrapolates", "rerope", "llama", {}, True),
    ("extrapolates", "dual_chunk", "gpt_neox", {}, True),
    ("extrapolates", "lm_infinite", "llama", {}, True),
    ("extrapolates", "self_extend", "llama", {}, False),
    ("extrapolates", "self_extend", "llama", {"window": 32, "group": 24}, True),
    ("extrapolates", "deberta", "llama", {}, True),
    ("extrapolates", "conv", "llama", {}, True),
    ("extrapolates", "irope", "llama", {}, False),
    ("consistent", "normalized", "llama", {}, False),
    ("consistent", "normalized", "bert", {}, False),
    ("consistent", "random", "llama", {}, True),
    ("consistent", "recurrent", "bert", {}, True),
    ("consistent", "sinusoidal", "bert", {}, True),
    ("unique", "sandwich", "gpt_neox", {}, True),
    ("order-sensitive", "window", "bert", {}, False),  # a bag of words within the window
    ("cached = uncached", "normalized", "llama", {}, False),
    ("cached = uncached", "recurrent", "llama", {}, True),
    ("cached = uncached", "self_extend", "gpt_neox", {}, True),
    ("precise in bfloat16", "native", "gpt_neox", {}, True),
]


@pytest.mark.parametrize(
    ("name", "spec", "family", "options", "holds"), KNOWN, ids=[f"{n}-{s}-{f}-{h}" for n, s, f, _, h in KNOWN]
)
def test_known_truths(name: str, spec: Any, family: str, options: dict[str, Any], holds: bool | None) -> None:
    answer, figure, _ = measured(name, spec, family, **options)
    assert answer is holds, figure


@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_holds_just_as_far_as_its_factor(factor: int) -> None:
    rises = score_rise(Lab("linear", "llama", {"factor": float(factor)}), (2, 4, 8))
    assert [times for times, rise in rises.items() if rise <= 0.1] == [t for t in (2, 4, 8) if t <= factor]


def test_learned_positions_end_with_their_table() -> None:
    holds, figure, _ = measured("extrapolates", "learned", max_positions=256)
    assert holds is False
    assert figure == "refuses inputs beyond 256 tokens"


def test_t5_tells_apart_as_many_distances_as_it_has_buckets() -> None:
    _, figure, share = measured("unique", "t5", num_buckets=16)
    assert share == 16 / 128, figure


def test_alibi_grows_with_the_length() -> None:
    _, _, growth = measured("bounded", "alibi")
    assert growth == pytest.approx(2047 / 127, rel=1e-3)


def test_a_dense_bias_does_not_scale() -> None:
    @register_encoding
    class Dense(BiasEncoding):
        """A bias that is no function of the distance, so the general kernel has to hold its scores."""

        @dataclass(frozen=True)
        class Config(EncodingConfig):
            name = "dense_for_a_test"

        info = EncodingInfo(title="dense", formula="b = -log(1 + i j)", paper="none")
        toeplitz = False

        def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
            product = query_positions[:, None, :, None] * key_positions[:, None, None, :]
            return -torch.log1p(product.float()).expand(-1, self.host.num_heads, -1, -1)

    lab = Lab("dense_for_a_test", "llama", {})
    small, large = largest_tensor(lab, 128), largest_tensor(lab, 512)
    assert power(small, large, 128, 512) > 1.5
    assert large >= lab.heads * 512 * 512
    assert measured("relative", "dense_for_a_test")[0] is False


def test_scalable_needs_no_dense_tensor() -> None:
    for spec in ("alibi", "t5"):
        lab = Lab(spec, "llama", {})
        small, large = largest_tensor(lab, 512), largest_tensor(lab, 2048)
        assert power(small, large, 512, 2048) < 1.2
        assert large < lab.heads * 2048 * 2048 / 32


def test_lab_leaves_the_random_state_and_says_what_it_filled() -> None:
    state = torch.get_rng_state()
    lab = Lab(["native", "t5"], "llama", {})
    assert torch.equal(torch.get_rng_state(), state)
    assert lab.filled == ["t5.weight"]
    assert all(m.weight.std() > 0.5 for n, m in lab.model.named_modules() if n.endswith("position_encoding.t5"))
    assert Lab("alibi", "llama", {}).filled == []


@pytest.mark.parametrize("name", list_encodings())
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_encoding_has_a_lab_where_it_holds(name: str, family: str) -> None:
    """With example options, or is refused with a sentence; its windows act within the trained length."""
    if not supported(get_encoding(name), next(f for f in FAMILIES if f.name == family)):
        with pytest.raises(UnsupportedError, match=r"causal attention only|has none"):
            Lab(name, family, {})
        return
    lab = Lab(name, family, {})
    if name == "rope" and family != "bert":
        assert lab.starts == []  # it has that
        return
    assert lab.starts[0].encoding == name
    exact = ("dynamic", "longrope", "lm_infinite", "dual_chunk", "learned")  # or nearly, up to L
    assert lab.starts[0].change > 1e-3 or name in exact
    kind, far = get_encoding(name), (4 if name in ("lm_infinite", "dual_chunk") else 1) * lab.trained
    if issubclass(kind, PiecewiseEncoding):
        encoding = next(m for m in lab.model.modules() if isinstance(m, PiecewiseRotation)).encoding
        assert encoding.effective(far - 1, far - 1) != far - 1


def test_starts_are_measured() -> None:
    """What encodings promise of the start, beside the native one and in its place."""
    for name in list_encodings():
        if not get_encoding(name).info.identity.startswith("on top of the native encoding"):
            continue
        starts = {start.encoding: start for start in Lab(name, "llama", {}).starts}
        assert not starts[name].identity
        beside = starts[f"native + {name}"]
        if name not in ("window", "learned", "sinusoidal"):
            assert beside.identity, name
            assert beside.change == 0
    assert not Lab(["native", "alibi"], "llama", {}).starts[0].identity
    assert Lab(["native", "window"], "llama", {}).starts[0].identity  # as large as L
    assert not Lab("window", "llama", {}).starts[1].identity  # a quarter of it
    assert Lab("dynamic", "llama", {}).starts[0].change < 1e-4


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize(("name", "lacks"), [("integer", {"bounded", "extrapolates"}), ("normalized", {"consistent"})])
def test_baselines_lack_what_they_say(name: str, lacks: set[str], family: str) -> None:
    report = check_encoding(name, family)
    assert report.breaks
    assert lacks <= set(report.lacking)
    for word in lacks:
        assert {"extrapolates": "extrapolate"}.get(word, word) in report.breaks
    assert check_encoding("learned", max_positions=140).breaks == ""


def test_options_that_fit_the_small_model() -> None:
    lab = Lab("self_extend", "llama", {})
    assert lab.chosen == {"window": 32}
    assert lab.entries == [{"name": "self_extend", "window": 32, "group": 4}]
    assert Lab("self_extend", "llama", {"window": 16}).chosen == {}
    assert Lab("alibi", "llama", {}).chosen == {}
    assert Lab("yarn", "llama", {}).chosen == {"factor": 4.0}


def test_report_is_complete_and_plain() -> None:
    steps: list[str] = []
    report = check_encoding("learned", "bert", progress=steps.append, max_positions=160)
    assert isinstance(report, Report)
    assert steps == [p.name for p in report.properties] == list(PROPERTIES)
    assert report["relative"].holds is False
    assert report["cached = uncached"].holds is None
    assert report.to_dict()["options"] == [{"name": "learned", "max_positions": 160, "init": "tile"}]


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="choose one of llama, gpt_neox, bert"):
        check_encoding("alibi", "gpt3")
    with pytest.raises(UnsupportedError, match="attends in both directions"):
        check_encoding("nope", "bert")
    with pytest.raises(UnsupportedError, match="max_positions=20"):
        check_encoding("learned", max_positions=20)
