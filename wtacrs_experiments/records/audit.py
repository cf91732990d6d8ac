"""Can each published record be believed? One line for each that cannot.

A record is valid JSON of its kind; its commit is in the history of this one and holds the code that
made it; the tree was clean. A plan stands in an index, for no table reads it otherwise. What a
shallow clone does not have is not checked, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from wtacrs_experiments.records.code import (
    BENCHES,
    FRAMEWORK,
    PLANNER,
    code_hash,
    code_hash_at,
    git,
)
from wtacrs_experiments.records.record import check_run
from wtacrs_experiments.records.shape import parse

Record = dict[str, Any]
# Kind -> the sections that it has, and the file that makes it, by the names that it has had.
KINDS = {
    "run": (("status", "config", "provenance"), ("run/runner.py", "runner.py")),
    "step": (
        ("config", "memory", "flops", "relative_flops", "provenance"),
        ("plan/rehearsal.py", "rehearsal.py"),
    ),
    "batches": (
        ("config", "peak_bytes_by_batch", "largest_batch", "provenance"),
        ("plan/rehearsal.py", "rehearsal.py"),
    ),
    "bench": (("provenance",), ("bench/__main__.py", "bench.py")),
}
GROUPS = ("model", "task", "tuning", "estimator", "memory")


class Records:
    """The records below ``results/`` of the repository at ``root``.

    Attributes:
        not_here: commits that this shallow clone lacks.
        stale: plans whose code has changed since; they can be believed, of what was planned then.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.not_here: set[str] = set()
        self.stale: list[Path] = []
        self._trees: dict[str, set[str] | None] = {}

    @cached_property
    def paths(self) -> list[Path]:
        """All that is committed; all that lies there where there is no git."""
        listed = git("ls-files", "results", root=self.root)
        if listed is None:
            return sorted(self.root.glob("results/**/*.json"))
        found = (self.root / line for line in listed.splitlines() if line.endswith(".json"))
        return [path for path in found if path.exists()]

    def failures(self) -> Iterator[str]:
        """Path and reason, for each reason there is."""
        for path in self.paths:
            reasons = self._of_index(path) if _is_index(path) else self._of_record(path)
            for reason in reasons:
                yield f"{path.relative_to(self.root)}: {reason}"

    def _of_record(self, path: Path) -> Iterator[str]:
        kind = kind_of(path)
        try:
            record = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"not valid JSON ({error})"
            return
        lacking = [
            key for key in KINDS[kind][0] if not isinstance(record, dict) or key not in record
        ]
        if lacking:
            yield f"no record of a {kind}: it has no {', '.join(lacking)}"
            return
        if kind == "run":
            try:
                check_run(record)
            except ValueError as error:
                yield f"no record of a run: {error}"
                return
        if not all(isinstance(record.get(key, {}), dict) for key in ("config", "provenance")):
            yield f"no record of a {kind}: its config or its provenance is no mapping"
            return
        if kind in ("step", "batches") and path.name not in self._indexed.get(path.parent, set()):
            yield "no index names it, so no table or figure reads it"
        if kind in ("step", "batches") and record.get("code") != code_hash(PLANNER, self.root):
            self.stale.append(path)
        yield from self._of_provenance(kind, record)

    def _of_provenance(self, kind: str, record: Record) -> Iterator[str]:
        made_by = record["provenance"]
        commit, dirty = made_by.get("git_commit"), made_by.get("git_dirty")
        if dirty is not False:
            yield (
                "made from a tree that was not clean"
                if dirty
                else "not known to be of a clean tree"
            )
        if not re.fullmatch("[0-9a-f]{40}", str(commit)):
            yield "names no commit"
            return
        tree = self._tree(commit)
        if tree is None:
            if commit not in self.not_here:
                yield f"commit {commit[:8]} is not in the history of this one"
            return
        if not tree & {f"{top}/{file}" for top in FRAMEWORK for file in KINDS[kind][1]}:
            yield f"commit {commit[:8]} does not hold the code of a {kind}"
        for group in GROUPS:
            of_group = record.get("config", {}).get(group)
            name = of_group.get("name") if isinstance(of_group, dict) else None
            file = f"conf/{group}/{name}.yaml"
            if (self.root / file).exists() and file not in tree:
                yield f"commit {commit[:8]} has no {file}"
        code = record.get("code")
        if code is not None and code != code_hash_at(
            commit, BENCHES if kind == "bench" else PLANNER, self.root
        ):
            yield f"commit {commit[:8]} holds other code than what made it ({code})"

    def _of_index(self, path: Path) -> Iterator[str]:
        try:
            named = _named(path)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            yield f"no index of plans ({error})"
            return
        for file in named:
            if not (path.parent / file).exists():
                yield f"names {file}, which is not there"

    @cached_property
    def _indexed(self) -> dict[Path, set[str]]:
        """Folder -> the files that its indices name."""
        found: dict[Path, set[str]] = {}
        for path in filter(_is_index, self.paths):
            with suppress(OSError, ValueError, AttributeError, TypeError):  # said of the index
                found.setdefault(path.parent, set()).update(_named(path))
        return found

    def _tree(self, commit: str) -> set[str] | None:
        """The files of a commit; None if it is not in the history, or not in this clone."""
        if commit not in self._trees:
            within = git("merge-base", "--is-ancestor", commit, "HEAD", root=self.root)
            listed = git("ls-tree", "-r", "--name-only", commit, root=self.root)
            if within is None and self._shallow:
                self.not_here.add(commit)
            known = within is not None and listed is not None
            self._trees[commit] = {*str(listed).splitlines()} if known else None
        return self._trees[commit]

    @cached_property
    def _shallow(self) -> bool:
        # Also where there is no repository at all, as in an archive of the files.
        return git("rev-parse", "--is-shallow-repository", root=self.root) != "false"


def kind_of(path: Path) -> str:
    """What a published record is, by where it lies."""
    if path.parent.name == "bench":
        return "bench"
    if path.parent.name == "plan":
        return path.name.partition("-")[0] if path.name.startswith("batches-") else "step"
    return "run"


def _is_index(path: Path) -> bool:
    return path.parent.name == "plan" and path.name.startswith("index-")


def _named(index: Path) -> list[str]:
    models = parse(index.read_text(encoding="utf-8"))
    return [str(file) for methods in models.values() for file in methods.values()]
