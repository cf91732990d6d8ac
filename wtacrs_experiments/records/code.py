"""Which code made a record: a hash over the files that decide what is in it.

A plan and a bench carry it as ``code``. A plan whose code has changed since is stale and is made
again; a commit that does not hold the code that its record names did not make it. Files are hashed
as git names them, so that a commit's hash follows from its tree alone.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from wtacrs_experiments.config import ROOT

FRAMEWORK = ("wtacrs_experiments", "experiments")  # its folder: the name, and a former one
_STEP = [f"wtacrs_experiments/plan/{name}.py" for name in ("kernels", "rehearsal", "search")]
_MODEL = [
    f"wtacrs_experiments/run/{name}.py"
    for name in ("lst", "memory", "models", "pretrained", "pruning", "text2text", "tuning")
]
#: Of what a plan's numbers are made. Not what chooses, keeps or shows them: a new row of a table
#: leaves the others as they are.
PLANNER = ("wtacrs", *_STEP, *_MODEL)
BENCHES = ("wtacrs", "wtacrs_experiments/bench", "wtacrs_experiments/run")


def code_hash(paths: Sequence[str], root: Path = ROOT) -> str:
    """Twelve hex digits over the Python files that are or lie below ``paths``."""
    files = [file for path in paths for file in _python(root / path)]
    return _digest({file.relative_to(root).as_posix(): _blob(file) for file in files})


def code_hash_at(commit: str, paths: Sequence[str], root: Path = ROOT) -> str | None:
    """The same of a commit, whose paths may be former ones; None if the repository lacks it."""
    names = {path.replace(FRAMEWORK[0], name, 1) for path in paths for name in FRAMEWORK}
    listed = git("ls-tree", "-r", commit, "--", *names, root=root)
    if listed is None:
        return None
    entries = [line.split(None, 3) for line in listed.splitlines()]  # mode, type, blob, path
    return _digest({path: blob for _, _, blob, path in entries if path.endswith(".py")})


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """What git says of the repository at ``root``; None if it fails or there is none.

    One that encloses ``root`` is another's: that of a project with an environment in its folder.
    """
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _python(path: Path) -> list[Path]:
    return [path] if path.is_file() else [*path.rglob("*.py")]


def _blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _digest(blobs: Mapping[str, str]) -> str:
    text = "".join(f"{path} {blob}\n" for path, blob in sorted(blobs.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
