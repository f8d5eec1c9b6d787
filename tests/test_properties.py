"""The measured properties against what is known about the encodings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pe_retrofit import UnsupportedError, register_encoding
from pe_retrofit.config import EncodingConfig
from pe_retrofit.probes import Lab
from pe_retrofit.properties import PROPERTIES, Report, check_encoding
from pe_retrofit.sites import BiasEncoding, EncodingInfo


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
    rises = Lab("linear", "llama", {"factor": float(factor)}).score_rise((2, 4, 8))
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
    small, large = lab.largest_tensor(128), lab.largest_tensor(512)
    assert lab.power(small, large, 128, 512) > 1.5
    assert large >= lab.heads * 512 * 512
    assert measured("relative", "dense_for_a_test")[0] is False


def test_scalable_needs_no_dense_tensor() -> None:
    for spec in ("alibi", "t5"):
        lab = Lab(spec, "llama", {})
        small, large = lab.largest_tensor(512), lab.largest_tensor(2048)
        assert lab.power(small, large, 512, 2048) < 1.2
        assert large < lab.heads * 2048 * 2048 / 32


def test_lab_leaves_the_random_state_and_says_what_it_filled() -> None:
    state = torch.get_rng_state()
    lab = Lab(["native", "t5"], "llama", {})
    assert torch.equal(torch.get_rng_state(), state)
    assert lab.filled == ["t5.weight"]
    assert all(m.weight.std() > 0.5 for n, m in lab.model.named_modules() if n.endswith("position_encoding.t5"))
    assert Lab("alibi", "llama", {}).filled == []


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
