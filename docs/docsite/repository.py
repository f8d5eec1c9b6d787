"""Pages from files beside ``docs/``, and links that lead there: what works on GitHub works on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from pe_retrofit import get_encoding, list_encodings

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = {
    "measured.md": ("What was measured", ("Retrofit", "Measured")),
    "limits.md": ("Versions and limits", ("Versions", "Limits")),
}
"""Page -> its title, and the sections of the README on it."""

WHOLE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "recipes/README.md": "recipe_files.md"}
"""Files that are a page each."""

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")
_FENCE = re.compile(r"^(```.*?^```)[ \t]*$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Page -> Markdown."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = {part.splitlines()[0].strip(): part for part in re.split(r"^## ", readme, flags=re.MULTILINE)[1:]}
    made = {}
    for page, (title, wanted) in SECTIONS.items():
        missing = [name for name in wanted if name not in parts]
        if missing:
            raise ValueError(
                f"README.md has no section {', '.join(missing)}, which docs/docsite/repository.py puts on the page "
                f"{page}. It has {', '.join(parts)}."
            )
        made[page] = f"# {title}\n\n" + "".join(f"## {_from_root(parts[name])}" for name in wanted)
    for path, page in WHOLE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        made[page] = _from_root(text, posixpath.dirname(path))
    return made


def links(markdown: str, page: str, anchors: dict[str, set[str]]) -> tuple[str, set[str]]:
    """A page's Markdown with its links to files beside ``docs/`` led to what the site has of them.

    Args:
        page: path within ``docs/``.
        anchors: of the pages made from the README.

    Returns:
        The Markdown, and the paths (from the root) of files that have to be copied to ``files/``.
    """
    copied: set[str] = set()

    def lead(found: re.Match[str]) -> str:
        target, hash_, anchor = found[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/") and not target.startswith("../docs/"):
            return found[0]
        place = _place(path, anchor, anchors)
        if place is None and (ROOT / path).is_file():
            place = f"files/{path}"
            copied.add(path)
        if place is None:
            return found[1][found[1].index("[") + 1 : -2] if (ROOT / path).is_dir() else found[0]
        return f"{found[1]}{posixpath.relpath(place, posixpath.dirname(page) or '.')}{hash_}{anchor}{found[3]}"

    pieces = _FENCE.split(markdown)
    return "".join(piece if piece.startswith("```") else _LINK.sub(lead, piece) for piece in pieces), copied


def _place(path: str, anchor: str, anchors: dict[str, set[str]]) -> str | None:
    """The page of the site that shows a file of the repository."""
    if path == "README.md":
        return next((page for page, known in anchors.items() if anchor in known), "index.md")
    if path in WHOLE:
        return WHOLE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    for name in list_encodings():
        if path == f"{get_encoding(name).__module__.replace('.', '/')}.py" and path.endswith(f"/{name.rstrip('_')}.py"):
            return f"encodings/{name}.md"
    return None


def _from_root(text: str, folder: str = "") -> str:
    """Links of a file outside ``docs/`` as a page in it would write them."""

    def lead(found: re.Match[str]) -> str:
        if "://" in found[2] or found[2].startswith(("#", "mailto:")):
            return found[0]
        return f"{found[1]}{posixpath.normpath(posixpath.join('..', folder, found[2]))}{found[3]}"

    return "".join(piece if piece.startswith("```") else _LINK.sub(lead, piece) for piece in _FENCE.split(text))
