"""The documentation site builds without a warning, is whole, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pe_retrofit import list_encodings

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("material") is None,
    reason="mkdocs and mkdocs-material are not installed: pip install '.[docs]'",
)

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a page loads by itself, by tag."""


class Page(HTMLParser):
    """Links, anchors and loaded files of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.loaded: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value for key, value in attrs if value is not None}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        named = found.get(LOADED.get(tag, ""))
        if named and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(named)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, strictly, with the large picture of one encoding per group only."""
    folder = tmp_path_factory.mktemp("site")
    more = {"PE_RETROFIT_DOCS_PICTURES": "few", "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, timeout=600, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "WARNING" not in said, said[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_encoding_has_a_page_with_a_picture(site: Path) -> None:
    for name in list_encodings():
        text = (site / "encodings" / name / "index.html").read_text(encoding="utf-8")
        assert f"pictures/{name}.png" in text
        assert 'id="options"' in text
        assert (site / "pictures" / f"{name}.png").stat().st_size > 1000
        assert f"tiles/{name}.png" in (site / "gallery" / "index.html").read_text(encoding="utf-8")
    assert {p.name for p in (site / "encodings").iterdir() if p.is_dir()} == set(list_encodings())


def test_no_link_leads_nowhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors and anchor != "__skip":
                broken.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [name for name in page.loaded if urlsplit(name).netloc], path


def test_no_path_of_this_machine_is_told(site: Path, pages: dict[Path, Page]) -> None:
    words = (str(ROOT), str(Path.home()) + "/", str(site))
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {str(path): page.text for path, page in pages.items()}
    texts |= {doc["location"]: doc["text"] for doc in index["docs"]}
    assert not [(where, word) for where, text in texts.items() for word in words if word in text]
    assert not [where for where, text in texts.items() if re.search(r"object at 0x[0-9a-f]+", text)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_work_on_github_too(page: Path) -> None:
    """The pages that are kept; those that are generated have no place there, so no link may need one."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_overview_is_small_and_has_every_encoding() -> None:
    """Draw it anew with ``python docs/docsite/tiles.py`` when an encoding is added."""
    picture = ROOT / "docs" / "img" / "gallery.png"
    assert picture.stat().st_size < 400_000
    from PIL import Image

    with Image.open(picture) as image:
        assert image.text["encodings"].split() == list_encodings()  # type: ignore[attr-defined]
