"""What mkdocs does with the pages on top of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SECTIONS = {
    "tutorial": "Tutorial",
    "how-to": "How-to",
    "reference": "Reference",
    "explanation": "Explanation",
}
# A comment holds what tests/test_docs.py checks and nobody needs to read.
_COMMENT = re.compile(r"^<!--.*?^-->\n", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(?P<head> *(?:`{3,}|~{3,})[a-z]+)(?P<attributes> [^`\n]+)$", re.MULTILINE)


def on_config(config: Any) -> None:
    """Each folder is a section, its index first and then its pages by name."""
    docs = Path(config["docs_dir"])
    nav: list[Any] = [{"Overview": "index.md"}]
    for folder, title in SECTIONS.items():
        pages = sorted((docs / folder).rglob("*.md"), key=lambda page: (page.name != "index.md", page))
        if pages:
            nav.append({title: [page.relative_to(docs).as_posix() for page in pages]})
    config["nav"] = nav


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show a fence's file as its title, and nothing of what only tests/test_docs.py reads: attributes
    of fences, and comments with checks.

    The renderer takes a fence with an attribute that it does not know for text.
    """

    def shown(fence: re.Match[str]) -> str:
        name = re.search(r"\b(?:file|title)=[\"']?([^\"'\s]+)", fence["attributes"])
        return fence["head"] + (f' title="{name[1]}"' if name else "")

    return _FENCE.sub(shown, _COMMENT.sub("", markdown))
