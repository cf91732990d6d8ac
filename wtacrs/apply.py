"""The one door: a model keeps less for its backward pass, in place, and back.

    handle = wtacrs.apply_(model, "lean", budget=0.3)

is all that a training loop needs. The order of the swaps is settled here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from wtacrs.attention.interface import (
    attention_of,
    check_sampled_attention,
    restore_attention,
    try_attention,
)
from wtacrs.config import PRESETS, MemoryConfig, config_of
from wtacrs.experts import restore_experts_, sample_experts_
from wtacrs.facts import FactsReader, read_facts, stop_reading
from wtacrs.integrations.checkpointing import (
    checkpoint_,
    embeddings_need_gradients,
    restore_checkpoint_,
)
from wtacrs.integrations.loss import restore_loss_, save_less_of_loss_
from wtacrs.layers import restore_layers_, rounding_of, save_less_
from wtacrs.layers.chunks import chunk_feed_forward_, restore_feed_forward_
from wtacrs.measure.step import StepMemory
from wtacrs.order import Latecomers, check_untouched, look_now
from wtacrs.recompute import parts_of, recompute_, restore_forward_
from wtacrs.report import Report, changes, fake_step, sampled_share
from wtacrs.sampling.batch import Mask
from wtacrs.sampling.sampler import Sampler
from wtacrs.swap import check_matches, restore_linears_, turn_linears_


class Handle:
    """What ``apply_`` did to a model.

    Attributes:
        model: the model.
        config: the ``MemoryConfig``.
        sampler: of its linear layers; None where none is sampled.
        swapped: kind of swap -> qualified names of the modules that it changed.
        left: reason -> what the config asks for and this model does not take.
    """

    def __init__(self, model: nn.Module, config: MemoryConfig, sizes: dict[str, Any]) -> None:
        self.model, self.config, self._sizes = model, config, sizes
        self.sampler: Sampler | None = None
        self.swapped: dict[str, list[str]] = {}
        self.left: dict[str, list[str]] = {}
        self._attention_before = attention_of(model)
        self._embeddings_needed_gradients = embeddings_need_gradients(model)
        self._done = False

    def start_batch(self, sample_ids: Tensor | None = None, mask: Mask | None = None) -> None:
        """Tell the facts of the next batch; see ``Sampler.start_batch``. Optional: without it they
        are read from the arguments of the model's call, ``attention_mask`` and ``sample_ids``."""
        look_now(self.model)
        if self.sampler is not None:
            self.sampler.start_batch(sample_ids, mask)

    def state_dict(self) -> dict[str, Any]:
        """Random and gradient-norm state: with it a resumed run is the same run."""
        rounding = rounding_of(self.model)
        return {
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "rounding": None if rounding is None else rounding.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``.

        Raises:
            ValueError: a state of another preset, which has what this one lacks, or lacks it.
        """
        look_now(self.model)
        owners = {"sampler": self.sampler, "rounding": rounding_of(self.model)}
        if not isinstance(state, dict) or state.keys() != owners.keys():
            raise ValueError(f"a state has the keys {[*owners]}; this is none of a Handle")
        for name, owner in owners.items():
            if (owner is None) != (state[name] is None):
                raise ValueError(f"the state is of another MemoryConfig: {name} differs")
        for name, owner in owners.items():
            if owner is not None:
                owner.load_state_dict(state[name])

    def report(self, batch: dict[str, Tensor] | None = None) -> Report:
        """A table of what was swapped, and what was left and why.

        Args:
            batch: arguments of a training call of the model whose output has a loss. With it the
                table says what such a step takes at its peak, plain and now, on fake tensors.

        Raises:
            ValueError: that output has no loss, or the weights are on the meta device.
        """
        look_now(self.model)
        swapped, left = changes(self.model, self.swapped, self.left, self.sampler)
        share = sampled_share(self.model, self.sampler)
        if batch is None:
            return Report(swapped, left, share)
        plain, now = (fake_step(self.model, batch, f) for f in (self._restore, lambda _: None))
        better = None if now.peak_bytes < plain.peak_bytes else self._better(batch, plain)
        return Report(swapped, left, share, plain, now, better)

    def _better(self, batch: dict[str, Tensor], plain: StepMemory) -> str | None:
        """The preset with the smallest peak, if that is below the plain step's."""
        peaks: dict[str, int] = {}
        for name in PRESETS:

            def change(model: nn.Module, name: str = name) -> None:
                self._restore(model)
                apply_(model, name)

            with suppress(ValueError):  # it is not for this model
                peaks[name] = fake_step(self.model, batch, change).peak_bytes
        best = min(peaks, key=lambda name: peaks[name])
        return best if peaks[best] < plain.peak_bytes else None

    def _restore(self, model: nn.Module) -> None:
        """Undo the swaps of ``model``, which is this one's or a copy."""
        restore_forward_(model)
        restore_feed_forward_(model)
        restore_experts_(model)
        restore_linears_(model)
        restore_layers_(model)
        restore_loss_(model)
        if self.config.recompute in ("checkpoint", "checkpoint_offload"):
            restore_checkpoint_(model, self._embeddings_needed_gradients)
        if attention_of(model) != self._attention_before:
            restore_attention(model, self._attention_before)
        stop_reading(model)

    def apply(self) -> FactsReader:
        """Swap; again, if adapters come before training begins."""
        try:
            _swap(self, self._sizes)
        except BaseException:
            self.undo()
            raise
        reader = FactsReader(self.model, self.sampler, Latecomers(self.model, self._again))
        read_facts(self.model, reader)
        return reader

    def _again(self) -> FactsReader:
        self._restore(self.model)
        self.sampler, self.swapped, self.left = None, {}, {}
        return self.apply()

    def undo(self) -> None:
        """Turn the model back into what it was, in place.

        Raises:
            ValueError: it was undone already.
        """
        if self._done:
            raise ValueError("undone already; call apply_ for a new handle")
        self._done = True
        self._restore(self.model)


def apply_(
    model: nn.Module,
    memory: str | MemoryConfig = "lean",
    *,
    num_samples: int | None = None,
    max_tokens: int | None = None,
    **sampling: Any,
) -> Handle:
    """Have ``model`` keep less for its backward pass, in place.

    Parameters, state-dict keys and an optimizer that was made before stay as they are. Call it
    before the model is wrapped (DDP, FSDP, compile); adapters (peft) may come before it or, where
    nothing is compiled, after it, until training begins.

    Args:
        model: any module with transformer blocks (members of an ``nn.ModuleList``).
        memory: a key of ``wtacrs.PRESETS``, or a ``MemoryConfig``.
        num_samples, max_tokens: see ``sample_linears_``; layers that pick late need neither.
        sampling: with a preset, keys of ``SamplingConfig``: budget, estimator, seed, ...

    Returns:
        The ``Handle``, with which it is undone.

    Raises:
        ValueError: an unknown name, keys that contradict each other, a model that something was
            applied to or that checkpoints already, or one in which there is nothing to do.
    """
    config = config_of(memory, sampling)
    check_untouched(model, config)
    handle = Handle(model, config, {"num_samples": num_samples, "max_tokens": max_tokens})
    handle.apply()
    return handle


def _swap(handle: Handle, sizes: dict[str, Any]) -> None:
    """All swaps, in the order that each needs of the others."""
    model, config = handle.model, handle.config
    if config.attention != "default":
        why = try_attention(model, config.attention, config.recompute in ("attention", "block"))
        found, what = (handle.swapped, config.attention) if why is None else (handle.left, why)
        found[f"attention: {what}"] = [type(model).__name__]
    _make_exact(handle)
    if config.samples:
        assert config.sampling is not None
        handle.sampler = sampler = turn_linears_(model, config.sampling, **sizes)
        experts = sample_experts_(model, sampler, handle.left)
        check_matches(model, sampler)
        found = {"sampled linear layers": sampler.names, "sampled experts": experts}
        handle.swapped |= {kind: names for kind, names in found.items() if names}
        if config.attention == "sampled":
            check_sampled_attention(model)
    # After sampling: a layer whose forward was replaced would not be sampled any more.
    if config.recompute == "block" and (names := chunk_feed_forward_(model, handle.left)):
        handle.swapped["chunked feed-forward"] = names
    if config.recompute == "attention" and not parts_of(model, "attention"):
        handle.left["recompute: no module in a block attends"] = [type(model).__name__]
    elif config.recompute in ("attention", "block"):
        names = recompute_(model, config.recompute, config.attention_output_share)
        handle.swapped[f"recomputed: {config.recompute}"] = names
    elif config.recompute != "none":
        checkpoint_(model, offload=config.recompute == "checkpoint_offload")
        handle.swapped[f"transformers' {config.recompute}"] = [type(model).__name__]
    if handle.left and not handle.swapped:
        raise ValueError(f"there is nothing to do: {'; '.join(handle.left)}")


def _make_exact(handle: Handle) -> None:
    """Layers and the loss that keep less. That a model has none of them is said, and no error."""
    model, config = handle.model, handle.config
    seed = 0 if config.sampling is None else config.sampling.seed
    # A feed-forward that is recomputed in parts holds nothing for a gate to save.
    left_out = {"loss", "gate"} if config.recompute == "block" else {"loss"}
    kinds = [kind for kind in config.lossless if kind not in left_out]
    if kinds or config.gelu != "exact":
        try:
            turned = save_less_(model, kinds, config.gelu, seed, handle.left)
        except ValueError as error:
            turned, why = {}, str(error).split(";")[0]  # without all that there is
            handle.left[why] = [type(model).__name__]
        for name, kind in turned.items():
            handle.swapped.setdefault(kind, []).append(name)
    if "loss" in config.lossless and (names := save_less_of_loss_(model, handle.left)):
        handle.swapped["loss"] = [name or type(model).__name__ for name in names]
