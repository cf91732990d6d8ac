"""The owner of what the sampled layers of a model share: randomness, gradient norms, batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from wtacrs.config import SamplingConfig
from wtacrs.randomness import Randomness
from wtacrs.sampling import operators
from wtacrs.sampling.batch import Facts, ForwardPass, Mask, Passes, Reported, recomputes
from wtacrs.sampling.centre import Centring
from wtacrs.sampling.draws import Draw, EarlyPick, LatePick
from wtacrs.sampling.early import SampledRows, compute_dtype
from wtacrs.sampling.follow import follow
from wtacrs.sampling.grad_norms import GradNorms
from wtacrs.sampling.history import History
from wtacrs.sampling.select import rows_kept
from wtacrs.sampling.together import gather
from wtacrs.sampling.traced import TracedSampler


class Sampler:
    """Chooses the rows that each sampled layer keeps. Made by ``sample_linears_``.

    Attributes:
        config: the ``SamplingConfig``.
        names: qualified names of the sampled layers.
        experts: qualified names of the sampled 3-D parameters of experts, see ``experts.py``.
        skipped: qualified name -> reason, for every other linear layer or matrix of the model.
        grad_norms: the estimates of ||dY_n||; ``grad_norms.host_bytes`` is what they take.
        passes: the forward passes of the model that are remembered.
        centring: the split of the inputs, and its directions.
        late: names of the layers that picked in the backward pass when they last ran.
        rows_seen, rows_kept: of layers that pick early, rows that entered while training, and
            rows saved, in bytes' worth: what centring keeps counts as rows.
    """

    def __init__(
        self,
        config: SamplingConfig,
        names: list[str],
        skipped: dict[str, str],
        num_samples: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.names = names
        self.experts: list[str] = []
        self.skipped = skipped
        self.grad_norms = GradNorms(
            config.grad_norms, num_samples, max_tokens, config.norm_table_limit_gib
        )
        self.centring = Centring(
            config.centring, config.rank, Randomness(config.seed, "directions")
        )
        self.rows_seen = self.rows_kept = 0
        self._randomness = Randomness(config.seed, "rows")
        self._history = History(self.grad_norms)
        self.passes = Passes()
        self.late: set[str] = set()
        self._told = False
        self._handles: list[Any] = []
        self._reads_two_sequences = False
        self.traced = TracedSampler(operators.handle_of(self), config)

    def follow(self, model: nn.Module) -> None:
        """Notice, by hooks, when ``model`` is called and returns."""
        config = getattr(model, "config", None)
        self._reads_two_sequences = bool(getattr(config, "is_encoder_decoder", False))
        self._handles = follow(self, model)

    def unfollow(self) -> None:
        """Remove the hooks of ``follow``."""
        while self._handles:
            self._handles.pop().remove()

    def start_batch(self, sample_ids: Tensor | None = None, mask: Mask | None = None) -> None:
        """Tell the facts of the next batch, before its forward pass. Both are optional.

        They belong to that one forward pass and its backward pass. Inputs are batch first.

        Args:
            sample_ids: (b,) int64, the positions of the samples in the training set. With them
                the per-sample table is used and updated.
            mask: (b, t), 1 or True for tokens that count, 0 for padding (an attention mask).
                Padding is never kept while another row is left. It must be exact: a row that is
                masked must have no gradient. It applies to every layer whose input is (b, t, i);
                where layers read sequences that are padded differently (encoder and decoder),
                give a mapping from glob patterns over layer names to masks: the first match
                counts, and layers without one have no mask.

        Raises:
            ValueError: sample ids out of range, a sequence longer than the table, wrong shapes,
                one mask for an encoder and a decoder, or a mask given for an earlier batch that
                hid rows which had a gradient.
        """
        self.settle()
        self._history.raise_for_leaks(wait=False)
        facts = Facts(sample_ids, mask)
        facts.check_masks(self._reads_two_sequences)
        if facts.sample_ids is not None:
            self.grad_norms.check_ids(facts.sample_ids)
            for one in facts.masks():
                self.grad_norms.check_length(one.shape[1])
        self._begin(facts)
        self._told = True

    def gather(self) -> None:
        """Have every process know the gradient norms of all; all call it, once an epoch."""
        self.settle()
        gather(self.grad_norms)

    def trains(self, model: nn.Module) -> bool:
        """Whether ``model`` is called for a training pass."""
        return model.training and torch.is_grad_enabled() and not recomputes()

    def expects_facts(self, model: nn.Module) -> bool:
        """Whether a training pass begins of which nothing was told."""
        return self.trains(model) and not self._told

    def _begin(self, facts: Facts, alone: bool = False) -> ForwardPass:
        self.settle()
        return self.passes.begin(facts, alone)

    @property
    def side(self) -> Sampler | TracedSampler:
        """Whom layers and hooks talk to: this sampler, or what stands for it in a graph."""
        return self.traced if torch.compiler.is_compiling() else self

    def begin_batch(self, facts: Facts) -> None:
        """In a graph: the model is called. ``facts`` count if nothing was told before."""
        if not self._told and not recomputes():
            self.start_batch(facts.sample_ids, facts.mask)

    def end_batch(self) -> None:
        """The model returns."""
        if not recomputes():
            self._told = False
            self.passes.end()

    def picks_late(self, name: str, x: Tensor) -> bool:
        """Whether layer ``name`` picks in the backward pass, where ``x`` is then: recomputed, or
        kept whole by a norm."""
        late = self.traced.picks_late(name, x)
        (self.late.add if late else self.late.discard)(name)
        return late

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """What runs in this context is computed again in the backward pass, or is there already."""
        before, self.traced.recomputed = self.traced.recomputed, True
        try:
            yield
        finally:
            self.traced.recomputed = before

    def pick_of(self, name: str, x: Tensor) -> LatePick:
        """What picks rows of ``x`` (..., i) for layer ``name`` in the backward pass."""
        t = x.shape[-2] if x.dim() > 2 else 1
        return self.late_pick(name, x.device, t, compute_dtype(x))

    def late_pick(self, name: str, device: torch.device, t: int, dtype: torch.dtype) -> LatePick:
        """What picks rows for layer ``name``, ``t`` to a sample, for products in ``dtype``."""
        of = self.passes.current()
        slots = None if of is None else of.slots
        drawn_by = self.config, self.centring, self.generator(device), slots
        return LatePick(*drawn_by, name, t, dtype)

    @torch.no_grad()
    def sample_rows(self, name: str, x: Tensor) -> SampledRows | None:
        """The rows of ``x`` (..., i) that layer ``name`` keeps, or None if it keeps them all.

        Layers that read the same tensor get the same rows, in the same storage.
        """
        flat = x.reshape(-1, x.shape[-1])  # (n, i)
        k = rows_kept(flat.shape[0], self.config.budget)
        exact = self.config.estimator == "full" or k >= flat.shape[0]
        self.rows_seen += flat.shape[0]
        self.rows_kept += flat.shape[0] if exact else k
        if exact:
            return None
        of = self.passes.current() or self._begin(Facts(), alone=True)
        # Autocast off: with it, centred rows would be subtracted from in low precision.
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            shared = of.inputs.get(x)
            if shared is not None and shared.serves(x, dtype, name):
                rows = shared.rows_of(flat)
            else:
                shared, rows = self.draw(name, x, dtype)
                of.inputs[x] = shared
        shared.readers.add(name)
        return SampledRows(rows, shared.kept, partial(shared.reported.take, name))

    def draw(self, name: str, x: Tensor, dtype: torch.dtype) -> tuple[Draw, Tensor]:
        """A draw for layer ``name``, the first that reads ``x`` (..., i), and the rows."""
        of = self.passes.current() or self._begin(Facts(), alone=True)
        facts = of.facts.rows_of(name, x.shape)
        if facts.sample_ids is not None:
            self.grad_norms.check_length(facts.t)
        self.grad_norms.expect(name)
        drawn_by = self.config, self.centring, self.grad_norms, self.generator(x.device)
        kept, basis, rows = EarlyPick(*drawn_by)(name, x, dtype, facts, of)
        reported = Reported(name, facts, of)
        return Draw(x._version, dtype, kept, TensorWeakRef(rows), basis, reported), rows

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of all draws on ``device``."""
        return self._randomness.generator(device)

    def settle(self) -> None:
        """Take the norms of the last backward pass into the history now, not at the next batch."""
        self._history.settle(self.passes.reported)

    def state_dict(self) -> dict[str, Any]:
        """Generator states, gradient norms, directions: with them a resumed run is the same run.

        Raises:
            ValueError: as ``start_batch`` does, for a mask that hid rows with a gradient.
        """
        self.settle()
        self._history.raise_for_leaks(wait=True)
        return {
            "generators": self._randomness.state_dict(),
            "grad_norms": self.grad_norms.state_dict(),
            "directions": self.centring.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._randomness.load_state_dict(state["generators"])
        self.grad_norms.load_state_dict(state["grad_norms"])
        self.centring.load_state_dict(state["directions"])
        self.passes, self._told = Passes(), False

    def __getstate__(self) -> dict[str, Any]:
        # For deepcopy and pickle: what is under way is not part of the sampler.
        self.settle()
        return {**self.__dict__, "passes": Passes(), "_told": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.traced = TracedSampler(operators.handle_of(self), self.config)
