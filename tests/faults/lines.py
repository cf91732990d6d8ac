"""The lines at which runs are killed."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import wtacrs_experiments

# Files whose lines are aimed at; the last one removes folders.
OURS = ("run/checkpoints.py", "records/store.py", "records/claims.py", "run/outcome.py")
OURS += ("run/saving.py",)
AIMED = (*OURS, "shutil.py")
Aim = tuple[str, int]  # a line, "file:number", and how often it was reached before


class Lines:
    """A tracer that counts how often lines of the files aimed at are reached; kills at ``at``."""

    def __init__(self, at: Aim | None = None) -> None:
        self.at = at
        self.counts: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(AIMED):
            return None
        if event == "line":
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            before = self.counts.get(line, 0)
            if (line, before) == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.counts[line] = before + 1
        return self


def lines_of(file: str) -> list[str]:
    """The lines of the functions in a file of the framework, as a tracer meets them."""
    path = Path(wtacrs_experiments.__file__).parent / file
    codes, found = [compile(path.read_text(), str(path), "exec")], set()
    for code in codes:
        inner = [const for const in code.co_consts if isinstance(const, CodeType)]
        codes += inner
        if code.co_flags & inspect.CO_NEWLOCALS and code.co_flags & inspect.CO_OPTIMIZED:
            found |= {line for *_, line in code.co_lines() if line and line != code.co_firstlineno}
    return [f"{path}:{line}" for line in sorted(found)]
