"""Counts of operators that run."""

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts in ``count`` the calls of the operators ``ops``, whichever their overload."""

    def __init__(self, ops):
        super().__init__()
        self.ops, self.count = ops, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.ops:
            self.count += self.worth(func, args, kwargs or {}, out)
        return out

    def worth(self, func, args, kwargs, out):
        """What a call counts."""
        return 1
