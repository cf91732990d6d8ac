"""WTA-CRS: fine-tune with a sampled fraction of the activations and an unbiased weight gradient.

See ``sample_linears_`` for models, ``estimate_matmul`` and ``select`` for the mathematics.
"""

from wtacrs.config import SamplingConfig
from wtacrs.convert import restore_linears_, sample_linears_
from wtacrs.estimators import ESTIMATORS, Selection, select
from wtacrs.linear import SampledLinear
from wtacrs.matmul import estimate_matmul
from wtacrs.sampler import Sampler

__all__ = [
    "ESTIMATORS",
    "SampledLinear",
    "Sampler",
    "SamplingConfig",
    "Selection",
    "estimate_matmul",
    "restore_linears_",
    "sample_linears_",
    "select",
]
