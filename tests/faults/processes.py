"""A process of its own for each run that is killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import psutil


def in_a_process(
    do: Callable[[], None],
    kill_after: float | None = None,
    chance: random.Random | None = None,
) -> bool:
    """Whether ``do`` ended well by itself, in a fork that is killed after so many seconds.

    Args:
        chance: whether it is the fork itself, or a process that it has started.

    Raises:
        AssertionError: it failed, and none was killed.
    """
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            do()
            code = 0
        finally:
            os._exit(code)
    started: list[psutil.Process] = []
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        else:
            started = psutil.Process(child).children(recursive=True)
            of = [child, *(one.pid for one in started)]
            os.kill(chance.choice(of) if chance else child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL) or started, f"exit code {code}"
    for one in psutil.wait_procs(started, timeout=20)[1]:  # idle, after what it had begun
        one.kill()
    return code == 0
