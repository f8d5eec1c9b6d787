"""The notebooks run on their small models, and what they say holds; what is stored in them is whole and clean."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hub_server import HubServer
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ("retrofit", "compare", "publish")
PLACES = "home|root|tmp|work|Users|opt|usr|var|mnt"
PRIVATE = re.compile(rf"/(?:{PLACES})/|[A-Z]:\\\\|127\.0\.0\.1|localhost|hf_[A-Za-z0-9]{{8}}")
"""Paths, addresses and tokens of a machine."""


def run(name: str, facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a notebook as it is stored, then evaluate ``facts``, a dictionary of what its names hold at the end.

    Raises:
        CellExecutionError: a cell failed.
    """
    monkeypatch.setenv("PE_RETROFIT_NOTEBOOK_MODEL", "small")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    work = tmp_path / "notebooks"
    shutil.copytree(FOLDER, work)
    (tmp_path / "tests").symlink_to(Path(__file__).parent, target_is_directory=True)
    notebook = nbformat.read(work / f"{name}.ipynb", as_version=4)
    tail = f"import json, pathlib\n_ = pathlib.Path('facts.json').write_text(json.dumps({facts}))"
    notebook.cells.append(nbformat.v4.new_code_cell(tail))
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    return json.loads((work / "facts.json").read_text())


@pytest.mark.slow
def test_retrofit_damages_calibrates_heals_and_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PE_RETROFIT_NOTEBOOK_STEPS", "150")
    facts = """{
        "found": found,
        "layers": [(fit.before, fit.after) for fit in done.layers],
        "previous": [values[layer][head][1] for values in weights.values()],
        "back": torch.equal(model(input_ids=windows[:1]).logits, original) and not status(model).patched,
    }"""
    facts = run("retrofit", facts, tmp_path, monkeypatch)
    found = facts["found"]
    damage = found["T5, as patched"] - found["original"]
    assert damage > found["original"] / 2
    assert found["T5, calibrated"] - found["original"] < damage / 3  # "most of the damage goes without training"
    assert found["T5, calibrated, healed"] < found["T5, calibrated"]
    assert found["original, same training"] < 1.02 * found["original"]
    assert found["hybrid"] < found["T5, calibrated"]
    assert all(after < before for before, after in facts["layers"])
    original, patched, calibrated = facts["previous"]
    assert abs(calibrated - original) < abs(patched - original) / 2
    assert facts["back"]


@pytest.mark.slow
def test_compare_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = """{
        "shuffled": change(encoder),
        "shifted": {spec: shift_change(spec) for spec in ("sinusoidal", "rope", "alibi", "t5")},
        "lacking": {name: report.lacking for name, report in reports.items()},
        "curves": curves,
        "nearest": {name: int(seen[head].argmax()) for name, seen in last.items()},
        "best": small.BEST,
    }"""
    facts = run("compare", facts, tmp_path, monkeypatch)
    assert facts["shuffled"] < 1e-4
    shifted = facts["shifted"]
    assert shifted.pop("sinusoidal") > 0.1
    assert max(shifted.values()) < 1e-4
    lacking = facts["lacking"]
    assert {"relative", "bounded", "extrapolates"} <= set(lacking["integer"])
    assert {"relative", "consistent", "cached = uncached"} <= set(lacking["normalized"])
    assert lacking["random"] == ["relative"]
    assert lacking["native"] == ["extrapolates"]
    assert facts["nearest"] == {"alibi": 0, "sandwich": 0, "kerple": 0, "t5": 1, "fire": 1}
    curves = facts["curves"]
    ends = {name: sum(curve[-4:]) / 4 for name, curve in curves.items()}
    begins = {name: sum(curve[:4]) / 4 for name, curve in curves.items()}
    assert ends["RoPE"] > 1.25 * begins["RoPE"]
    assert ends["ALiBi"] < 1.1 * begins["ALiBi"]
    assert ends["YaRN x4 (RoPE, patched)"] < 0.9 * ends["RoPE"]
    assert begins["NoPE"] > begins["ALiBi"]
    assert all(value > facts["best"] for curve in curves.values() for value in curve)


@pytest.mark.slow
def test_publish_pulls_what_it_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = """{
        "with": {name: name in pulled and torch.equal(pulled[name], logits) for name, logits in expected.items()},
        "without": {name: torch.equal(logits, expected[name]) for name, logits in without.items()},
        "failed": failed,
        "refused": refused,
        "card": card,
        "private": [path for repo in hub.repos.values() for path, held in repo.files().items()
                    if hub.token.encode() in held],
    }"""
    facts = run("publish", facts, tmp_path, monkeypatch)
    assert facts["failed"] == {}
    assert facts["with"] == {"yarn": True, "t5": True, "adapter": True}
    assert facts["without"] == {"yarn": True, "t5": True}  # and nothing under the name "untrusted"
    assert list(facts["refused"]) == ["untrusted"]
    assert "trust_remote_code" in facts["refused"]["untrusted"]
    assert "base_model: alice/letters" in facts["card"]
    assert HubServer.token not in facts["card"]
    assert facts["private"] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_one_whole_clean_run(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(cell.metadata for cell in notebook.cells)
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
    told = json.dumps(["image" if "image/png" in str(o.get("data", "")) else o for c in code for o in c.outputs])
    told += json.dumps([cell.source for cell in notebook.cells])
    assert PRIVATE.findall(told) == []
    assert "Traceback" not in told


def test_the_readme_names_every_notebook() -> None:
    words = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        assert f"[{name}.ipynb]({name}.ipynb)" in words
