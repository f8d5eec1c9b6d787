"""What the README says is true: its table, commands, links, versions and code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matrix import HOSTS
from typer.main import get_command

from pe_retrofit import capabilities, patch_model
from pe_retrofit.cli.app import build
from pe_retrofit.cli.support import BEGIN, END, markdown
from pe_retrofit.evaluation import listing
from pe_retrofit.patchers.family import FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/add_an_encoding.md",
    "docs/bridges.md",
    "docs/evaluation.md",
    "recipes/README.md",
    "notebooks/README.md",
]


def test_table_of_encodings_is_the_generated_one() -> None:
    found = README.split(BEGIN)[1].split(END)[0].strip()
    assert found == markdown(), f"Put this table between the markers in README.md:\n\n{markdown()}"


def test_table_of_capabilities_is_the_generated_one() -> None:
    """That it is true is tested in test_capabilities.py."""
    found = README.split(capabilities.BEGIN)[1].split(capabilities.END)[0].strip()
    assert found == capabilities.markdown(), f"Put this table between the markers:\n\n{capabilities.markdown()}"


def test_table_of_tasks_is_the_generated_one() -> None:
    found = README.split(listing.BEGIN)[1].split(listing.END)[0].strip()
    assert found == listing.markdown(), f"Put this table between the markers:\n\n{listing.markdown()}"


def test_families_are_listed_with_their_members() -> None:
    flat = " ".join(README.split())
    for family in FAMILIES:
        assert f"**{family.name}** (" in flat
        for member in family.examples.split(", "):
            assert member in flat, f"{member} is missing from the README's list of {family.name}"


def test_commands_exist() -> None:
    verbs = set(get_command(build()).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"pe-retrofit ([a-z]+)", README))
    assert named
    assert named <= verbs
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = [c for page in PAGES for c in re.findall(r"(?:^|`)make ([a-z ]+)", (ROOT / page).read_text(), re.MULTILINE)]
    used = {target for call in calls for target in call.split()}
    assert {"demo", "test", "versions"} <= used
    assert used <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_versions_agree() -> None:
    """One lower bound of transformers and torch in pyproject, Makefile and README."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    oldest = re.search(r'"transformers>=([\d.]+),<6"', pyproject)
    assert oldest is not None
    assert re.search(rf"^OLDEST_TRANSFORMERS := {re.escape(oldest[1])}$", makefile, re.MULTILINE)
    assert f"transformers {oldest[1]}" in README
    torch_bound = re.search(r'"torch>=([\d.]+)"', pyproject)
    assert torch_bound is not None
    assert f"torch {torch_bound[1]}" in README
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert f"transformers {pins['transformers']}" in README


def test_first_example_runs() -> None:
    """The README's first block, line by line, on a tiny Llama."""
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    calls = [line for line in block[1].splitlines() if line.startswith("patch_model")]
    assert len(calls) == 4
    for call in calls:
        model = HOSTS["llama"].fresh(num_hidden_layers=4)
        exec(call, {"patch_model": patch_model, "model": model})
