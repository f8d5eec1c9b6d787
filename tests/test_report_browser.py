"""The report in a real browser: it shows, dark is dark, nothing overflows a phone, is loaded or runs."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs as made
import numpy as np
import pytest

from pe_retrofit.evaluation.report import compare, html
from pe_retrofit.evaluation.report.answers import answers_html
from pe_retrofit.evaluation.report.comparison import Run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("PE_RETROFIT_NEEDS_BROWSER"))

pytestmark = pytest.mark.skipif(BROWSER is None and not REQUIRED, reason="no Chromium is installed")

LONG = "yarn:factor=2,beta_fast=32.0,beta_slow=1.0@some-organisation/some-very-long-model-name-0000000000000000000000"
EVIL = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"


def chromium(profile: Path, *arguments: str) -> str:
    assert BROWSER is not None, "no Chromium is installed, and PE_RETROFIT_NEEDS_BROWSER is set"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"
    more = "--disable-component-update --disable-sync --disable-dev-shm-usage"
    command = [BROWSER, *flags.split(), *more.split(), f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def answers() -> dict[str, Any]:
    def answer(model: str, text: str) -> dict[str, Any]:
        counts = {"new_tokens": 3, "stopped": True, "first_token_seconds": None, "seconds": 0.5}
        more = {"tokens_per_second": 6.0, "peak_memory_bytes": None, "repetition": 0.0, "exact": False}
        return {"model": model, "text": text, "agreement": None, "reference": 1.0, **counts, **more}

    keys = ("first_token_seconds", "seconds", "tokens_per_second", "peak_memory_bytes", "repetition", "agreement")
    models = [
        {"name": name, "about": made.about(name), **dict.fromkeys((*keys, "exact", "reference"))}
        for name in (LONG, EVIL)
    ]
    long = "word" * 200 + "\n" + EVIL
    row = {"id": EVIL, "prompt": long, "references": [EVIL], "answers": [answer(LONG, long), answer(EVIL, EVIL)]}
    decoding = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}
    return {"models": models, "prompts": [row], "decoding": decoding, "versions": {"torch": "2"}}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    several = [made.good(), made.blind(), made.good(LONG), made.blind(EVIL)]
    runs = [Run(r["model"]["name"], f"run{i}", r) for i, r in enumerate(several)]
    return {"comparison": html(compare(runs)), "run": html(compare(runs[1:2])), "answers": answers_html(answers())}


def pixels(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize(("mode", "flag"), [("dark", 0), ("light", 1)])
@pytest.mark.parametrize(("name", "width"), [("comparison", 1280), ("run", 360), ("answers", 360)])
def test_it_shows_in_light_and_dark(
    pages: dict[str, str], name: str, width: int, mode: str, flag: int, tmp_path: Path
) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "shot.png"
    page.write_text(pages[name], encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={flag}"
    chromium(tmp_path / "p", scheme, f"--window-size={width},1400", f"--screenshot={picture}", page.as_uri())
    seen = pixels(picture)
    assert seen.shape[1] == width
    assert np.unique((seen.reshape(-1, 3) * 255).astype(int), axis=0).shape[0] > 50, "the page is blank"
    background = np.median(seen.reshape(-1, 3), axis=0).mean()
    assert background < 0.2 if mode == "dark" else background > 0.9
    ink = np.abs(seen.mean(-1) - background).max()
    assert ink > 0.6, "text and background are too alike"


MEASURE = """<script>addEventListener('load', () => { document.title = JSON.stringify([
document.documentElement.scrollWidth, innerWidth, document.body.scrollWidth,
[...document.querySelectorAll('.chart, figcaption, h1, h2, h3, p, dd, .text')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length,
[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length]) })</script>"""


def measured(page: str, width: int, folder: Path) -> list[int]:
    """Sizes in the browser, told by a script in a copy of the page whose policy is taken out."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    # headless windows have a least width of about 500 pixels; a frame has none
    inner = folder / "inner.html"
    inner.write_text(bare.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    outer = folder / "outer.html"
    listen = "addEventListener('load', () => setTimeout(() => { document.title = frames[0].document.title }, 200))"
    frame = f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
    outer.write_text(f"<!doctype html><title>none</title><script>{listen}</script>{frame}", encoding="utf-8")
    options = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    dom = chromium(folder / "m", *options, outer.as_uri())
    found = re.search(r"<title>\[(.*?)\]</title>", dom)
    assert found, dom[:500]
    return [int(float(v)) for v in found.group(1).split(",")]


@pytest.mark.parametrize("name", ["comparison", "run", "answers"])
def test_a_phone_never_scrolls_sideways(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    whole, window, body, outside, scrolling = measured(pages[name], 360, tmp_path)
    assert window == 360
    assert whole <= 360
    assert body <= 360
    assert outside == 0
    assert scrolling > 0, "wide tables scroll within themselves"


def test_the_measurement_can_fail(pages: dict[str, str], tmp_path: Path) -> None:
    wide = pages["run"].replace("</main>", '<p style="width:900px">too wide</p></main>')
    whole, _, _, outside, _ = measured(wide, 360, tmp_path)
    assert whole > 360
    assert outside == 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server that says what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()


def test_nothing_is_loaded_and_no_script_runs(
    pages: dict[str, str], tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    planted = '<script>document.title="ran"</script><img src="/loaded.png"><link rel="stylesheet" href="/loaded.css">'
    for name, page in pages.items():
        (tmp_path / f"{name}.html").write_text(page, encoding="utf-8")
        (tmp_path / f"{name}-planted.html").write_text(page.replace("</main>", planted + "</main>"), encoding="utf-8")
        for kind in (name, f"{name}-planted"):  # even what got past the escaping would be held by the policy
            dom = chromium(tmp_path / kind, "--virtual-time-budget=2000", "--dump-dom", f"{address}/{kind}.html")
            assert "<title>ran</title>" not in dom
            assert "</main>" in dom
    assert {path for path in asked if path != "/favicon.ico"} == {
        f"/{name}{more}.html" for name in pages for more in ("", "-planted")
    }
