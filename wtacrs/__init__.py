"""WTA-CRS: fine-tune with a sampled fraction of the activations and an unbiased weight gradient.

See ``sample_linears_`` for models, ``estimate_matmul`` and ``select`` for the mathematics.
"""

from wtacrs.config import SamplingConfig
from wtacrs.sampling.estimators import ESTIMATORS, Selection
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.matmul import estimate_matmul
from wtacrs.sampling.sampler import Sampler
from wtacrs.sampling.select import select
from wtacrs.swap import restore_linears_, sample_linears_

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
