"""A claim beside the record of a run that is under way: one process carries it out, others do not.

It says host, process and time, and is touched every minute. A claim is stale, and taken over, once
its process is gone: known at once on its own machine, of another one after STALE_SECONDS without a
touch. It also holds RESERVE bytes of the disk, which are let go before the record is written.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.shape import parse
from wtacrs_experiments.records.store import write_json

SUFFIX = ".running"
LOCK = ".claims.lock"  # in the folder: who holds it may look at claims and make one
TOUCH_SECONDS = 60
STALE_SECONDS = 15 * TOUCH_SECONDS
RESERVE = 1 << 20  # more than a record needs


class UnderWay(UserError):
    """Another process carries the run out."""


class Claim:
    """What a process has claimed."""

    def __init__(self, path: Path, who: dict[str, Any]) -> None:
        self.path, self.who = path, who

    def is_ours(self) -> bool:
        """False where another machine took it over, after a sleep longer than STALE_SECONDS."""
        return (read_claim(self.path) or self.who).items() >= self.who.items()

    def touch(self) -> None:
        """Say that the run goes on."""
        if self.is_ours():
            os.utime(self.path)

    def release_reserve(self) -> None:
        """Give the disk what the record takes now."""
        if self.is_ours():
            os.truncate(self.path, self.path.stat().st_size - RESERVE)

    def release(self) -> None:
        """End it."""
        with suppress(OSError), _alone(self.path.parent):  # the folder may be gone
            if self.is_ours():
                self.path.unlink(missing_ok=True)


@contextmanager
def claimed(record: Path, config: dict[str, Any]) -> Iterator[Claim]:
    """Claim the run whose record is to be ``record`` while the block runs.

    Raises:
        UnderWay: another process that lives has claimed it.
        OSError: the disk has no room for a record.
    """
    path = record.with_suffix(SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if (other := read_claim(path)) is not None and is_alive(other, path):
            raise UnderWay(
                f"process {other['pid']} on {other['host']} runs it since {other['started_at']}: "
                f"{record}"
            )
        # What a process left that was killed while it wrote record, claim or model.
        for left in path.parent.glob(f".{glob.escape(record.stem)}.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        claim = Claim(path, _write(path, config))
    ended = threading.Event()
    beat = threading.Thread(target=_keep_touched, args=(claim, ended), daemon=True)
    beat.start()
    try:
        yield claim
    finally:
        ended.set()
        claim.release()


def _write(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Claim, and say who does."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    who = {
        **{"pid": os.getpid(), "host": socket.gethostname(), "started_at": started},
        "process_started": psutil.Process().create_time(),
    }
    write_json({**who, "config": config}, path)
    try:
        with path.open("ab") as file:  # blanks, which JSON does not mind
            file.write(b" " * RESERVE)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise
    return who


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep_touched(claim: Claim, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_SECONDS):
        with suppress(OSError):
            claim.touch()


def read_claim(path: Path) -> dict[str, Any] | None:
    """What a claim says; None if its run has just ended, or it is none."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
        kinds = {"pid": int, "host": str, "started_at": str, "config": dict}
        whole = all(isinstance(content[key], kind) for key, kind in kinds.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return content if whole else None


def is_alive(claim: dict[str, Any], path: Path) -> bool:
    """Whether the run of ``claim``, read from ``path``, goes on."""
    if claim["host"] != socket.gethostname():
        with suppress(OSError):
            os.utime(path.parent / LOCK)  # now, by the clock of the file system
            now = (path.parent / LOCK).stat().st_mtime
            return now - path.stat().st_mtime < STALE_SECONDS
        return False
    try:
        started = psutil.Process(claim["pid"]).create_time()
    except psutil.Error:
        return False
    # Another process may have its number by now.
    return abs(started - claim.get("process_started", started)) < 1
