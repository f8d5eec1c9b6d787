"""A folder appears whole, or what was there stays: after an error, and after a kill at any moment."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pe_retrofit import folders
from pe_retrofit.folders import written_whole


def write(target: Path, text: str, count: int = 3) -> None:
    with written_whole(target) as work:
        for i in range(count):
            (work / f"{i}.txt").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_folder_takes_the_place_of_the_old(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    write(tmp_path / "m", "old", 5)
    write(tmp_path / "m", "new")
    assert contents(tmp_path / "m") == {f"{i}.txt": "new" for i in range(3)}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_after_an_error_nothing_has_changed(tmp_path: Path) -> None:
    write(tmp_path / "m", "old")
    broken = contextlib.ExitStack()
    (broken.enter_context(written_whole(tmp_path / "m")) / "0.txt").write_text("new")
    assert not broken.__exit__(RuntimeError, RuntimeError("in between"), None)
    assert set(contents(tmp_path / "m").values()) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs two names to be exchanged in one step")
def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folders._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs two names to be exchanged in one step")
def test_a_kill_at_any_moment_leaves_one_whole_folder(tmp_path: Path) -> None:
    """A process that does nothing but replace a folder, killed twenty times."""
    target = tmp_path / "m"
    write(target, "start", 20)
    code = f"""
import importlib.util, itertools, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("folders", {folders.__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
for n in itertools.count():
    with module.written_whole(Path({str(target)!r})) as work:
        for i in range(20):
            (work / f"{{i}}.txt").write_text(str(n))
    print(n, flush=True)
"""
    seen = set()
    for turn in range(20):
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while process.stdout.readline() != f"{turn % 3}\n":
            pass
        time.sleep(0.004 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = contents(target)
        assert len(found) == 20
        assert len(set(found.values())) == 1, found
        seen |= set(found.values())
    assert len(seen) > 1  # it was replaced in between
