"""The owner of what the sampled layers of a model share: randomness, gradient norms, batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from wtacrs.config import SamplingConfig
from wtacrs.randomness import Randomness
from wtacrs.sampling.batch import ONE_MASK_FOR_TWO, Facts, ForwardPass, Mask, Passes, Reported
from wtacrs.sampling.centre import Centring
from wtacrs.sampling.draws import Draw, LatePick, choose
from wtacrs.sampling.early import SampledRows, compute_dtype
from wtacrs.sampling.grad_norms import GradNorms
from wtacrs.sampling.history import History
from wtacrs.sampling.known import known_rows
from wtacrs.sampling.select import rows_kept


class Sampler:
    """Chooses the rows that each sampled layer keeps. Made by ``sample_linears_``.

    Attributes:
        config: the ``SamplingConfig``.
        names: qualified names of the sampled layers.
        skipped: qualified name -> reason, for every other linear layer of the model.
        grad_norms: the estimates of ||dY_n||; ``grad_norms.host_bytes`` is what they take.
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
        self._passes = Passes()
        self.late: set[str] = set()
        self._told = self._recomputed = False
        self._handles: list[Any] = []
        self._reads_two_sequences = False

    def follow(self, model: nn.Module) -> None:
        """Notice, by hooks, when ``model`` is called and returns."""
        config = getattr(model, "config", None)
        self._reads_two_sequences = bool(getattr(config, "is_encoder_decoder", False))
        self._handles = [
            model.register_forward_pre_hook(self._called),
            model.register_forward_hook(self._returned, always_call=True),
        ]

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
        if isinstance(mask, Tensor) and self._reads_two_sequences:
            raise ValueError(ONE_MASK_FOR_TWO)
        if facts.sample_ids is not None:
            self.grad_norms.check_ids(facts.sample_ids)
            for one in facts.masks():
                self.grad_norms.check_length(one.shape[1])
        self._begin(facts)
        self._told = True

    def expects_facts(self, model: nn.Module) -> bool:
        """Whether ``model`` is called for a training pass of which nothing was told."""
        return _is_training_pass(model) and not self._told

    def _begin(self, facts: Facts) -> ForwardPass:
        self.settle()
        return self._passes.begin(facts)

    def _called(self, model: nn.Module, args: Any) -> None:
        if not _is_training_pass(model):
            return
        if not self._told:
            self._begin(Facts())
        if self.rows_seen == 0:
            self._warn_if_nothing_trains(model)

    def _returned(self, model: nn.Module, args: Any, output: Any) -> None:
        if _is_training_pass(model):
            self._told = False
            self._passes.end()

    def _warn_if_nothing_trains(self, model: nn.Module) -> None:
        mine = [m for m in model.modules() if getattr(m, "sampler", None) is self]
        if not any(m.weight.requires_grad for m in mine):
            warnings.warn(
                f"none of the {len(self.names)} sampled layers is trainable any more. If adapters "
                "came after sampling (get_peft_model), undo it and sample again, after them",
                stacklevel=2,
            )

    def picks_late(self, name: str, x: Tensor) -> bool:
        """Whether layer ``name`` picks in the backward pass, where ``x`` is then: recomputed, or
        kept whole by a norm."""
        late = self._recomputed or getattr(x.grad_fn, "keeps_output", False)
        (self.late.add if late else self.late.discard)(name)
        return late

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """What runs in this context is computed again in the backward pass, or is there already."""
        before, self._recomputed = self._recomputed, True
        try:
            yield
        finally:
            self._recomputed = before

    def pick_of(self, name: str, x: Tensor) -> LatePick:
        """What picks rows of ``x`` (..., i) for layer ``name`` in the backward pass."""
        b, t = (x.shape[:-2].numel(), x.shape[-2]) if x.dim() > 2 else (x.shape[:-1].numel(), 1)
        drawn_by = self.config, self.centring, self.generator(x.device)
        return LatePick(*drawn_by, name, b, t, compute_dtype(x))

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
        of = self._passes.current() or self._begin(Facts())
        # Autocast off: with it, centred rows would be subtracted from in low precision.
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            shared = of.inputs.get(x)
            if shared is not None and shared.serves(x, dtype, name):
                rows = shared.rows_of(flat)
            else:
                shared, rows = self._draw(name, x, flat, k, dtype, of)
                of.inputs[x] = shared
        shared.readers.add(name)
        return SampledRows(rows, shared.kept, partial(shared.reported.take, name))

    def _draw(
        self, name: str, x: Tensor, flat: Tensor, k: int, dtype: torch.dtype, of: ForwardPass
    ) -> tuple[Draw, Tensor]:
        facts = of.facts.rows_of(name, x.shape)
        if facts.sample_ids is not None:
            self.grad_norms.check_length(facts.t)
        self.grad_norms.expect(name)
        floor, centred = self.config.floor, self.centring.kind != "none"
        known = known_rows(of, facts, x.device, self.grad_norms, floor, centred)
        (n, i), c = flat.shape, known.classes.shape[1]
        q = self.centring.size(n, i, c, k)
        k -= self.centring.cost(n, i, q)
        place, split = self.grad_norms.place(name), None
        norms, squares = known.norms(place), known.squared_norms(place)
        if q > 0:
            split = self.centring.split(name, flat, known.classes, squares, dtype)
        generator, estimator = self.generator(x.device), self.config.estimator
        kept, rows = choose(estimator, flat, split, norms, known.even, floor, k, dtype, generator)
        basis = None if split is None else split.basis
        reported = Reported(name, facts, of)
        return Draw(x._version, dtype, kept, TensorWeakRef(rows), basis, reported), rows

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of all draws on ``device``."""
        return self._randomness.generator(device)

    def settle(self) -> None:
        """Take the norms of the last backward pass into the history now, not at the next batch."""
        self._history.settle(self._passes.reported)

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
        self._passes, self._told = Passes(), False

    def __getstate__(self) -> dict[str, Any]:
        # For deepcopy and pickle: what is under way is not part of the sampler.
        self.settle()
        return {**self.__dict__, "_passes": Passes(), "_told": False}


def _is_training_pass(model: nn.Module) -> bool:
    recomputes = torch._C._current_graph_task_id() != -1
    return model.training and torch.is_grad_enabled() and not recomputes
