"""The Trainers of runs: their order by length, which a resumed run repeats; answers in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.ranks import agreed, world_size
from wtacrs_experiments.run.text2text import TextToText


class ByLength(LengthGroupedSampler):
    """The Trainer's order by length, which it draws anew as each epoch begins, from the generator
    that dropout has too.

    So a checkpoint holds that generator's state of when its epoch began: the rest of the epoch has
    what is left of the same draw. All processes have one order, each its share of a batch.
    """

    began: Tensor | None = None  # the generator's state, None between epochs
    resumed: Tensor | None = None  # that of a checkpoint

    def __iter__(self) -> Iterator[int]:
        own = torch.get_rng_state()
        self.began = agreed(own if self.resumed is None else self.resumed)
        self.resumed = None
        torch.set_rng_state(self.began)
        order = [*super().__iter__()]
        if world_size() > 1:
            torch.set_rng_state(own)
        return iter(order)

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"began": self.began}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        self.resumed = state["began"]


class OrderedTrainer(Trainer):
    """A Trainer whose order by length is ``ByLength``; ``facts`` hears of the losses."""

    facts: BatchFacts | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.facts is not None:
            self.facts.add(loss)
        return loss

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return ByLength(sampler.batch_size * world_size(), lengths=sampler.lengths)
        return sampler


class TextTrainer(OrderedTrainer):
    """A Trainer that evaluates by the likelihood of answers; ``text`` is set once it is made."""

    text: TextToText

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        answers = inputs.pop("answers")
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        with self.accelerator.autocast():
            return loss, self.text.predict(model, inputs), answers


def order_of(loader: Any) -> ByLength | None:
    """The order by length of the batches of ``loader``, as the Trainer gives it to callbacks."""
    batches = loader.batch_sampler  # with several processes, accelerate's share of the batches
    sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)
    return sampler if isinstance(sampler, ByLength) else None
