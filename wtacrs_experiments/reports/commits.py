"""What a table says below itself of the commits that its records come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def commit_note(provenances: Iterable[Mapping[str, Any]]) -> str:
    """Empty if all is of one commit and of a clean tree; else a line that says what it mixes."""
    found = [*provenances]
    commits = Counter(str(one.get("git_commit"))[:8] for one in found)
    dirty = sum(one.get("git_dirty") in (True,) for one in found)
    text = ""
    if len(commits) > 1:
        names = ", ".join(f"{commit} ({count})" for commit, count in sorted(commits.items()))
        text = f"Records of {len(commits)} commits: {names}."
    if dirty:
        text += f" {dirty} of {len(found)} records are of a tree with changes of no commit."
    return f"\n{text.strip()}\n" if text else ""
