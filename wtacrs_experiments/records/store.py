"""The one way in which a record is written: whole or not at all, and valid JSON whatever it holds.

Runs, plans, benches and probes write through it. A reader sees the old file or the new one, never
a part of either.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` to ``path`` atomically; the folder is made if there is none.

    A number that is not finite, which JSON does not know, is written as null.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False, ensure_ascii=False)
    write_text(re.sub(r"\[[^][{}]*\]", _on_one_line, text) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write ``text`` to ``path`` atomically; the folder is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide records from colleagues
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _on_one_line(array: re.Match[str]) -> str:
    # By the line breaks, which no JSON string holds: a bracket may be part of a string.
    return re.sub(r"\n\s*", " ", re.sub(r"(?<=\[)\n\s*|\n\s*(?=\])", "", array[0]))
