"""What one sees while a run trains: bars in a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from wtacrs_experiments.run.batch_facts import BatchFacts

EVERY = 5.0  # seconds between two lines, or two readings of the loss, which stop the device


class Recent:
    """The mean loss since it was asked for last; None more often than every few seconds."""

    def __init__(self, facts: BatchFacts) -> None:
        self.facts = facts
        self._last, self._sum, self._steps = time.monotonic(), 0.0, 0

    def start(self) -> None:
        """From here on; of a resumed run, what came before is not recent."""
        self._last = time.monotonic()
        self._sum, self._steps = float(self.facts.loss_sum), self.facts.steps

    def loss(self) -> float | None:
        steps = self.facts.steps - self._steps
        if time.monotonic() - self._last < EVERY or not steps:
            return None
        mean = (float(self.facts.loss_sum) - self._sum) / steps
        self.start()
        return mean


class Bars(ProgressCallback):
    """The Trainer's bars with the loss beside them, in place of its dictionaries."""

    def __init__(self, facts: BatchFacts, place: str) -> None:
        super().__init__()
        self.recent, self.place = Recent(facts), place

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.recent.start()
        if self.training_bar is not None:
            self.training_bar.set_description(self.place or None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None and (loss := self.recent.loss()) is not None:
            self.training_bar.set_postfix(loss=f"{loss:.4f}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


class Lines(TrainerCallback):
    """Where no terminal is: a log of CI, nohup, a job of Slurm.

    Args:
        facts: has the losses.
        title: the run's name, and its place in a sweep.
        main: the metric that is told.
    """

    def __init__(self, facts: BatchFacts, title: str, main: str) -> None:
        self.recent, self.title, self.main = Recent(facts), title, main
        self._score = ""
        self._first, self._began, self._told, self._evaluated = 0, 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.recent.start()
        self._first = state.global_step
        self._began = self._told = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or (loss := self.recent.loss()) is None:
            return
        done, most = state.global_step, state.max_steps
        seconds = (time.monotonic() - self._began) / (done - self._first) * (most - done)
        left = timedelta(seconds=round(seconds))
        end = f"ends about {datetime.now() + left:%H:%M} ({left} left)"
        told = (f"step {done} of {most}", f"epoch {state.epoch:.2f}", f"loss {loss:.4f}")
        self._print(*told, self._score, end)
        self._told = time.monotonic()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluated += 1
        if time.monotonic() - self._told > EVERY and state.is_world_process_zero:
            self._told = time.monotonic()
            of = len(kwargs["eval_dataloader"])
            self._print(
                f"evaluates after step {state.global_step}, batch {self._evaluated} of {of}"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self._evaluated = 0
        if (score := metrics.get(f"eval_validation_{self.main}")) is not None:
            self._score = f"{self.main} {score:.4f} after epoch {state.epoch:g}"

    def _print(self, *parts: str) -> None:
        print(" · ".join(filter(None, (self.title, *parts))), flush=True)
