"""Signals that end a run: the step or evaluation that is under way ends first, and a checkpoint is
written, but for the last ones: then the run completes.

A scheduler that takes the machine away sends SIGTERM or SIGUSR1, a terminal that closes SIGHUP, a
user SIGINT. The same command goes on from there. A second signal ends the run at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """The run was told to end."""


class Interruption(TrainerCallback):
    """While it is entered, signals end the run as said above. Only the main thread hears them.

    Attributes:
        asked: the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}
        self._steps = self._writes = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked is not None, signal.Signals(number).name
        if self._writes:
            return
        if again or not self._steps:
            raise Interrupted(self.asked)
        told = "a checkpoint after this step or evaluation, then the end; once more: at once"
        print(f"{self.asked}: {told}")

    def raise_if_asked(self) -> None:
        """End the run here, if a signal came.

        Raises:
            Interrupted: one did.
        """
        if self.asked is not None:
            raise Interrupted(self.asked)

    def hold(self) -> None:
        """From now on signals wait: the record is written."""
        self._writes = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps = False
