"""How many kernels an eager step launches: what a GPU's host has to hand out, one by one.

Every operation that reaches the dispatcher counts, but views and mere allocations, which launch
nothing. Counted on any device, so a CPU tells what a GPU would be asked for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Allocate, alias or answer from metadata; no view by their schema, and no kernel either.
LAUNCH_NOTHING = frozenset(
    {
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "detach",
        "_unsafe_view",
        "promote_types",
    }
)


class Launches(TorchDispatchMode):
    """Context that counts the kernels launched in it.

    Attributes:
        kernels: operation -> how often; ``total`` is their sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.kernels.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket.__name__)
        aliases = (result.alias_info for result in func._schema.returns)
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and name not in LAUNCH_NOTHING:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))
