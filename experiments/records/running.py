"""A mark beside the record of a run that is under way: who runs it, and since when.

A run that is killed leaves its mark and no record. Whether its process still lives is known on its
own machine alone.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.records.store import write_json

SUFFIX = ".running"


@contextmanager
def marked(record: Path, config: dict[str, Any]) -> Iterator[None]:
    """Leave the mark of the run whose record is to be ``record`` while the block runs."""
    mark = record.with_suffix(SUFFIX)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": started}
    write_json({**who, "config": config}, mark)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def read_mark(path: Path) -> dict[str, Any] | None:
    """What a mark says; None if its run has just ended, or was cut off while it wrote it."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(mark: dict[str, Any]) -> bool:
    """Whether the run goes on; that of another machine is believed to."""
    if mark["host"] != socket.gethostname():
        return True
    try:
        os.kill(mark["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    return True
