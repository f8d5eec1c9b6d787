"""Runs side by side: the numbers, what is refused, gaps, verdicts, files, and the command."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import made_runs as made
import pytest
from typer.testing import CliRunner

from pe_retrofit.cli.app import build
from pe_retrofit.errors import ConfigError
from pe_retrofit.evaluation.report import compare, html, markdown, overview, read_runs, task_tables, write_run
from pe_retrofit.evaluation.report.comparison import Run
from pe_retrofit.evaluation.report.verdicts import headline


def runs(*results: Any) -> list[Run]:
    return [Run(r["model"]["name"], f"run{i}", r) for i, r in enumerate(results)]


def view(comparison: Any, task: str, variant: str) -> Any:
    part = next(t for t in comparison["tasks"] if t["name"] == task)
    return next(v for v in part["views"] if v["variant"] == variant)


def row(found: Any, label: str) -> Any:
    return next(r["cells"] for r in found["rows"] if r["label"] == label)


# -------------------------------------------------------------------------------------------------- numbers


def test_means_ratios_and_differences_are_those_of_the_runs() -> None:
    good, blind = made.good(), made.blind()
    comparison = compare(runs(good, blind))
    assert [m["label"] for m in comparison["models"]] == ["stock", "yarn:factor=2@base-model", "alibi@base-model"]
    tail = view(comparison, "perplexity", "fixed_tail")
    assert tail["lengths"] == list(made.LENGTHS)
    for n, stock, cell in zip(tail["lengths"], row(tail, "stock"), row(tail, "alibi@base-model"), strict=True):
        assert stock["mean"] == pytest.approx(made.STOCK_PERPLEXITY[n])
        assert cell["mean"] == pytest.approx(made.ALIBI_PERPLEXITY[n])
        assert cell["change"] == pytest.approx(made.ALIBI_PERPLEXITY[n] / made.STOCK_PERPLEXITY[n])
        assert stock["change"] is None
    keys = view(comparison, "passkey", "")
    for n, stock, cell in zip(keys["lengths"], row(keys, "stock"), row(keys, "alibi@base-model"), strict=True):
        mine, other = round(6 * made.ALIBI_PASSKEY[n]) / 6, round(6 * made.STOCK_PASSKEY[n]) / 6
        assert (cell["mean"], stock["mean"]) == (pytest.approx(mine), pytest.approx(other))
        assert cell["change"] == pytest.approx(mine - other)
    task = next(t for t in comparison["tasks"] if t["name"] == "passkey")
    found = {label: value["length"] for label, value in task["effective_length"].items()}
    assert found == {"stock": 8192, "yarn:factor=2@base-model": 16384, "alibi@base-model": 2048}


def test_grids_hold_the_scores_by_depth_and_length() -> None:
    found = view(compare(runs(made.blind())), "passkey", "")
    assert found["depths"] == list(made.DEPTHS)
    assert set(found["grids"]) == {"stock", "alibi@base-model"}
    at_4k = [line[found["lengths"].index(4096)] for line in found["grids"]["alibi@base-model"]]
    assert at_4k == [0.5, 0.5, 0.5]  # three of six cases: the first sample at each of three depths
    at_8k = [line[found["lengths"].index(8192)] for line in found["grids"]["alibi@base-model"]]
    assert at_8k == [0.5, 0.0, 0.0]


def test_the_overview_is_one_table_with_verdicts() -> None:
    table = overview(compare(runs(made.good(), made.blind())))
    assert [line[0] for line in table.rows] == ["stock", "yarn:factor=2@base-model", "alibi@base-model"]
    assert all(len(line) == len(table.head) for line in table.rows)
    assert table.head[1] == "perplexity 2k"
    assert table.head[-2:] == ["passkey effective", "verdict"]
    stock, _, alibi = (dict(zip(table.head, line, strict=True)) for line in table.rows)
    assert stock["perplexity 16k"] == "466"
    assert alibi["perplexity 12k"] == "25.1 (0.527x)"
    assert alibi["passkey 4k"] == "50 (-50)"
    assert alibi["passkey effective"] == "2k"
    assert alibi["verdict"] == "Fluent but blind at 4k, 8k, 12k, 16k"


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1, "salt": "b"}, "seed (0 and 1)"),
        ({"text": "f" * 64, "salt": "b"}, "text (sha256) (000000000000 and ffffffffffff)"),
        ({"samples": 3}, "number of samples (6 and 9)"),
        ({"depths": (0.0, 0.25, 1.0)}, "depths"),
        ({"salt": "b"}, "the samples themselves"),
        ({"salt": "b", "model": {"tokenizer": {"class": "Other", "vocabulary": 9}}}, "tokenizer (Tokens of 300 and"),
    ],
)
def test_other_questions_are_refused_and_named(change: Any, words: str) -> None:
    with pytest.raises(ConfigError, match="did not ask the same questions") as error:
        compare(runs(made.good(), made.blind(**change)))
    assert words in str(error.value)


def test_other_options_and_versions_are_refused() -> None:
    other = made.blind()
    other["tasks"]["passkey"]["options"]["digits"] = 7
    other["tasks"]["perplexity"]["version"] = 2
    with pytest.raises(ConfigError) as error:
        compare(runs(made.good(), other))
    assert "option digits (5 and 7)" in str(error.value)
    assert "version (1 and 2)" in str(error.value)


def test_every_pair_is_checked_not_only_the_first_with_the_rest() -> None:
    short, both = {2048: 20.0}, {4096: 21.0}
    one = made.run("a", {}, dict.fromkeys(short, 1.0))
    two = made.run("b", {}, dict.fromkeys(both, 1.0))
    three = made.run("c", {}, dict.fromkeys(both, 1.0), seed=5, salt="z")
    compare(runs(one, two))
    compare(runs(one, three))  # nothing in common
    with pytest.raises(ConfigError, match="'b' and 'c' differs in seed"):
        compare(runs(one, two, three))


def test_what_does_not_depend_on_the_text_is_compared_across_texts() -> None:
    keys = {2048: 1.0}
    comparison = compare(runs(made.run("a", {}, keys), made.run("b", {}, keys, text="f" * 64)))
    assert len(view(comparison, "passkey", "")["rows"]) == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"text": "f" * 64}, {"samples": 3}])
def test_files_without_fingerprints_are_judged_by_their_setting(change: Any) -> None:
    def forget(results: Any) -> Any:
        for task in results["tasks"].values():
            for cell in task["by_length"]:
                cell.pop("asked")
        return results

    compare(runs(forget(made.good()), forget(made.blind())))
    with pytest.raises(ConfigError, match="differs in"):
        compare(runs(forget(made.good()), forget(made.blind(**change))))


# -------------------------------------------------------------------------------------------------- gaps and oddities


def test_other_lengths_leave_gaps_and_the_fixed_tail_is_left_out_with_a_note() -> None:
    short = {n: v for n, v in made.YARN_PERPLEXITY.items() if n <= 4096}
    keys = {n: v for n, v in made.YARN_PASSKEY.items() if n <= 4096}
    small = made.run("small", short, keys)
    comparison = compare(runs(made.good(), small))
    cells = row(view(comparison, "perplexity", "by_position"), "small")
    assert [cell is None for cell in cells] == [False, False, True, True, True]
    task = next(t for t in comparison["tasks"] if t["name"] == "perplexity")
    assert [v["variant"] for v in task["views"]] == ["by_position"]
    assert any("fixed_tail, is not compared: the longest lengths differ" in note for note in comparison["notes"])
    line = next(line for line in overview(comparison).rows if line[0] == "small")
    assert "-" in line
    assert "small" in html(comparison)


def test_different_stock_models_get_a_row_each_and_a_note() -> None:
    other = made.blind(stock={"base": "another", "name": "another", "parameters": 99})
    comparison = compare(runs(made.good(), other))
    stocks = [m["label"] for m in comparison["models"] if m["role"] == "stock"]
    assert stocks == ["stock of yarn:factor=2@base-model", "stock of alibi@base-model"]
    assert any("different stock models" in note for note in comparison["notes"])
    assert len(view(comparison, "passkey", "")["rows"]) == 4


def test_a_stock_model_with_other_numbers_is_noticed() -> None:
    worse = dict(made.STOCK_PERPLEXITY) | {2048: 30.0}
    comparison = compare(runs(made.good(), made.blind(stock_perplexity=worse)))
    assert any("different numbers for the same stock model" in note for note in comparison["notes"])
    assert not compare(runs(made.good(), made.blind()))["notes"]


def test_runs_without_a_stock_model() -> None:
    alone = made.run("alone", made.YARN_PERPLEXITY, made.YARN_PASSKEY)
    comparison = compare(runs(alone))
    assert [m["role"] for m in comparison["models"]] == ["run"]
    assert comparison["models"][0]["headline"]["tone"] == "unknown"
    assert "nothing to compare with" in html(comparison)
    together = compare(runs(made.good(), alone))
    assert any("Evaluated without a stock model: alone" in note for note in together["notes"])
    assert "alone" in markdown(together)


def test_nothing_breaks_where_numbers_are_missing(tmp_path: Path) -> None:
    broken = made.blind()
    for task in broken["tasks"].values():
        for rows in (task["cells"], task["by_length"]):
            for cell in rows:
                gone = dict.fromkeys(("mean", "ci95", "nll", "ratio", "ratio_ci95", "difference", "difference_ci95"))
                cell.update({**gone, "not_finite": 1})
                cell["stock"] = {**cell["stock"], "mean": None, "ci95": None, "nll": None}
        task["effective_length"] = None
    broken["tasks"]["niah"] = {
        **copy.deepcopy(broken["tasks"]["passkey"]),
        "title": "Needles",
        "cells": [],
        "by_length": [],
        "status": "skipped",
        "reason": "too short",
    }
    written = write_run(broken, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not finite" in page
    assert "too short" in page
    assert "too short" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert {path.name for path in written} >= {"report.html", "table.md"}


def test_an_unfinished_run_is_said_to_be_one() -> None:
    part = made.good()
    part["status"] = "interrupted"
    assert any("is not complete: interrupted" in note for note in compare(runs(part))["notes"])


# -------------------------------------------------------------------------------------------------- verdicts


def test_headlines() -> None:
    assert headline(made.good()["verdict"])["tone"] == "good"
    assert headline(made.blind()["verdict"]) == {"tone": "alarm", "text": "Fluent but blind at 4k, 8k, 12k, 16k"}
    assert headline(None)["tone"] == "unknown"
    assert headline({"broken": True, "words": ["x"]})["tone"] == "alarm"
    assert headline({"lengths": {}, "short": None, "blind": [], "words": []})["tone"] == "unknown"
    assert headline({"lengths": {"2048": {"fluent": True, "retrieves": True}}, "short": False})["tone"] == "warning"
    lost = {"2048": {"fluent": True, "retrieves": True}, "4096": {"fluent": False, "retrieves": None}}
    assert headline({"lengths": lost}) == {
        "tone": "warning",
        "text": "Fluent, and finds what stands far back, up to 2k, lost at 4k",
    }


def test_a_model_that_is_bad_from_the_start_is_not_called_fluent() -> None:
    """At its own shortest length every perplexity is flat; that alone must not count as looking well."""
    awful = {n: 40 * v for n, v in made.STOCK_PERPLEXITY.items()}
    results = made.blind(stock_perplexity=None)
    worse = made.run(
        "awful",
        awful,
        dict.fromkeys(made.LENGTHS, 0.0),
        stock_perplexity=made.STOCK_PERPLEXITY,
        stock_passkey=made.STOCK_PASSKEY,
    )
    assert 2048 not in worse["verdict"]["blind"]
    assert results["verdict"]["lengths"]


# -------------------------------------------------------------------------------------------------- files


def test_pages_load_nothing_and_escape_everything() -> None:
    evil = made.good("<script>alert(1)</script>\"'&|`")
    evil["setting"]["text"]["source"] = "<img src=x onerror=alert(1)>"
    evil["tasks"]["passkey"]["title"] = "</title><script>alert(2)</script>"
    evil["tasks"]["passkey"]["recipe"] = "<b>recipe</b>"
    evil["verdict"]["words"].append("<i>words</i>")
    evil["tasks"]["passkey"]["options"]["<u>"] = "<u>"
    comparison = compare(runs(evil))
    page = html(comparison)
    for planted in ("<script", "<img", "onerror=alert(1)>", "<b>", "<i>", "<u>", "</title><script"):
        assert planted not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"<[^>]*\s(src|href|srcset|action|on\w+)\s*=", page)
    for word in ("url(", "@import", "http://", "https://"):
        assert word not in page
    text = markdown(comparison)
    assert "<script>" not in text
    assert "\\<script\\>" in text


def test_tables_of_tasks_name_all_models_and_lengths() -> None:
    tables = list(task_tables(compare(runs(made.good(), made.blind()))))
    assert [t.title for t in tables] == [
        "Perplexity of the last tokens before each length",
        "Perplexity of the same last tokens, given that much context",
        "Passkey",
    ]
    for table in tables:
        assert all(len(line) == len(table.head) for line in table.rows)
        assert {"stock", "alibi@base-model"} <= {line[0] for line in table.rows}


def test_the_command_writes_everything(tmp_path: Path) -> None:
    folders = [made.saved(tmp_path / "a", made.good()), made.saved(tmp_path / "b", made.blind())]
    out = tmp_path / "out"
    found = CliRunner().invoke(build(), ["compare", *map(str, folders), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "Fluent but blind at 4k, 8k, 12k, 16k" in found.output
    assert sorted(p.name for p in out.iterdir()) == ["compare.html", "compare.json", "compare.md", "pictures"]
    pictures = sorted(p.name for p in (out / "pictures").iterdir())
    assert pictures == [
        "passkey-depth-alibi-base-model.png",
        "passkey-depth-stock.png",
        "passkey-depth-yarn-factor=2-base-model.png",
        "passkey-minus-stock.png",
        "passkey.png",
        "perplexity-by_position-over-stock.png",
        "perplexity-by_position.png",
        "perplexity-fixed_tail-over-stock.png",
        "perplexity-fixed_tail.png",
    ]
    assert all((out / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    saved = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    printed = CliRunner().invoke(build(), ["compare", *map(str, folders), "--out", str(out), "--json"])
    assert json.loads(printed.stdout) | {"date": ""} == saved | {"date": ""}


def test_an_evaluation_writes_its_own_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pe_retrofit.evaluation.evaluate", lambda *_, **__: made.blind())
    found = CliRunner().invoke(build(), ["eval", "any", "--out", str(tmp_path / "run")])
    assert found.exit_code == 0, found.output
    assert {"report.html", "table.md", "pictures"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert "report.html" in found.output
    assert "Fluent but blind" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_same_name_twice_is_told_apart_by_folder(tmp_path: Path) -> None:
    folders = [made.saved(tmp_path / name, made.good()) for name in ("one", "two")]
    assert [run.label for run in read_runs(folders)] == [f"yarn:factor=2@base-model ({n})" for n in ("one", "two")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["GOOD", "GOOD"], "named twice"),
        (["nowhere"], "is no results folder"),
        (["GOOD", "--temperature", "1"], "--temperature needs --prompts"),
        (["GOOD", "--trust-remote-code"], "--trust-remote-code needs --prompts"),
        (["BROKEN"], "lack tasks.passkey.cells"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], words: str) -> None:
    good, broken = made.saved(tmp_path / "good", made.good()), made.good()
    broken["tasks"]["passkey"].pop("cells")
    places = {"GOOD": str(good), "BROKEN": str(made.saved(tmp_path / "broken", broken))}
    called = [places.get(word, word) for word in arguments]
    found = CliRunner().invoke(build(), ["compare", *called, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())
    assert not (tmp_path / "out").exists()
