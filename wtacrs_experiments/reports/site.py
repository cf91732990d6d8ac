"""What mkdocs needs to build the pages of this repository as they lie: a hook of mkdocs.yml.

README is the first page, and what pages show of ``results/`` lies beside them. A link is written as
it is right in the repository; here it is turned into one of the site. Where it leads to a file
that is no page, its words stay.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = "docs"
ALSO = (  # beside docs/
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "results/LOG.md"),
    *("results/tables/*.md", "results/figures/*.svg", "examples/*.py", "examples/*.ipynb"),
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files of ``ALSO``."""
    root = Path(config.config_file_path).parent
    for found in sorted(path for pattern in ALSO for path in root.glob(pattern)):
        source = found.relative_to(root).as_posix()
        content = found.read_bytes()
        if source.endswith(".md"):
            file = File.generated(config, in_site(source), content=content.decode("utf-8"))
        else:
            file = File.generated(config, in_site(source), abs_src_path=str(found))
        files.append(file)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page of the repository into links of the site."""
    root = Path(config.config_file_path).parent
    here = in_repository(page.file.src_uri, root)

    def turned(match: re.Match[str]) -> str:
        words, link, place = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        uri = in_site(target)
        if files.get_file_from_path(uri) is not None:
            start = posixpath.dirname(page.file.src_uri) or "."
            return f"[{words}]({posixpath.relpath(uri, start)}{place})"
        return words if (root / target).exists() else match[0]  # which mkdocs then reports

    return LINK.sub(turned, markdown)


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return "index.md" if path == "README.md" else path.removeprefix(f"{DOCS}/")


def in_repository(uri: str, root: Path) -> str:
    """The inverse of ``in_site``."""
    if uri == "index.md":
        return "README.md"
    return f"{DOCS}/{uri}" if (root / DOCS / uri).exists() else uri
