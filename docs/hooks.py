"""What MkDocs calls: adds the pages that are generated from the package, and leads links to them.

``PE_RETROFIT_DOCS_PICTURES=few`` draws the large picture of one encoding per group only, and takes the small one for
the others; for checks of the site.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from docsite import commands, encodings, names, repository, tiles
from docsite.shown import GROUPS, by_group, every
from markdown.extensions.toc import slugify
from mkdocs.structure.files import File

from pe_retrofit.pictures import draw

README_ANCHORS: dict[str, set[str]] = {}


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    torch.set_num_threads(1)
    for entry in config.nav:
        if "Encodings" in entry:
            entry["Encodings"] += [
                {GROUPS[group].partition(":")[0]: [{one.name: f"encodings/{one.name}.md"} for one in members]}
                for group, members in by_group().items()
            ]
        if "Reference" in entry:
            entry["Reference"].append({"Python": [{name: f"api/{name}.md"} for name in names.modules()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add pages and pictures."""
    made: dict[str, str | bytes] = {
        "encodings/index.md": encodings.index(),
        "gallery.md": encodings.gallery(),
        "cli.md": commands.page(),
        **{f"encodings/{one.name}.md": encodings.page(one) for one in every()},
        **{f"api/{name}.md": names.page(module) for name, module in names.modules().items()},
        **repository.pages(),
        **_pictures(),
    }
    for page in repository.SECTIONS:
        lines = str(made[page]).splitlines()
        README_ANCHORS[page] = {slugify(line.lstrip("# "), "-") for line in lines if line.startswith("##")}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links to files of the repository to their pages, and bring along the files that have none."""
    text, copied = repository.links(markdown, page.file.src_uri, README_ANCHORS)
    for path in sorted(copied):
        if files.get_file_from_path(f"files/{path}") is None:
            files.append(File.generated(config, f"files/{path}", abs_src_path=str(repository.ROOT / path)))
    return text


def _pictures() -> dict[str, bytes]:
    """Small and large pictures of all encodings."""
    few = os.environ.get("PE_RETROFIT_DOCS_PICTURES") == "few"
    large = {members[0].name for members in by_group().values()} if few else {one.name for one in every()}
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for one in every():
            seen = one.view()
            small = tiles.tile(seen, *tiles.AXES[one.group])
            made[f"tiles/{one.name}.png"] = small
            made[f"pictures/{one.name}.png"] = (
                draw(seen, one.heading, Path(folder) / f"{one.name}.png").read_bytes() if one.name in large else small
            )
    return made
