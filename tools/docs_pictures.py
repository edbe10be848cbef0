"""A hook of MkDocs: pages show the figures of results/, on the site as in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "results"


def on_files(files: Files, config: Any) -> Files:
    """Adds the figures to the site, below results/."""
    for figure in sorted(RESULTS.rglob("*.png")):
        name = f"results/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links out of docs/ into links within the site."""
    return markdown.replace("](../results/", "](results/")
