"""Random numbers with an owner: one stream for each purpose, device and rank, saved and restored.

Nothing reads torch's global generator. One seed serves several purposes and processes, so each gets
a stream of its own: two generators with one seed would draw the same numbers, and a dropout mask
that agrees with the choice of rows is no independent draw.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def stream_seed(seed: int, purpose: str, rank: int = 0) -> int:
    """A seed of 63 bits that differs between purposes, ranks and seeds, and from ``seed``."""
    digest = hashlib.sha256(f"wtacrs {purpose} {rank} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fresh_generator(device: torch.device) -> torch.Generator:
    """A generator seeded by the operating system."""
    generator = torch.Generator(device=device)
    generator.seed()
    return generator


class Randomness:
    """The generators of one purpose, made when a device first needs one.

    Args:
        seed: the user's.
        purpose: what is drawn, say "rows".
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self.seed, self.purpose = seed, purpose
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of ``device`` in this process."""
        if device not in self._generators:
            generator = torch.Generator(device=device)
            generator.manual_seed(stream_seed(self.seed, self.purpose, _rank()))
            self._generators[device] = generator
        return self._generators[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> Randomness:
        # By hand, since a generator cannot be copied among fake tensors.
        copied = Randomness(self.seed, self.purpose)
        for device, generator in self._generators.items():
            copied._generators[device] = torch.Generator(device=device)
            copied._generators[device].set_state(generator.get_state())
        return copied

    def state_dict(self) -> dict[str, Any]:
        """Generator states by device: with them a resumed run is the same run."""
        states = {str(device): g.get_state() for device, g in self._generators.items()}
        return {"rank": _rank(), "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; of another rank's state, a stream of one's own from it.

        Without the device of a state it is left out: a run that goes on elsewhere draws anew.
        """
        self._generators.clear()
        for device, generator_state in state["states"].items():
            try:
                generator = self.generator(torch.device(device))
            except RuntimeError:  # torch's word for a device that is not there
                continue
            if state["rank"] == _rank():
                generator.set_state(generator_state.cpu())
            else:
                seen = hashlib.sha256(generator_state.cpu().numpy().tobytes()).hexdigest()
                generator.manual_seed(stream_seed(self.seed, f"{self.purpose} {seen}", _rank()))


def _rank() -> int:
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if together else 0
