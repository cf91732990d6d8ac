"""The blocks of code on the pages that a stranger reads."""

import re
import shlex
from typing import NamedTuple

from wtacrs_experiments.config import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: the page's path in the repository, the language, and the text."""

    page: str
    language: str
    text: str


def blocks(language):
    """Of all pages."""
    return [
        Block(str(page.relative_to(ROOT)), found, text)
        for page in PAGES
        for found, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands():
    """(page, words) of each command of each shell block, without what it sets before it."""
    found = []
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command.replace("<this repository>", "URL"), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append((block.page, words))
    return found
