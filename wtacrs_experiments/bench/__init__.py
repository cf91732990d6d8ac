"""Time, kernels and exactness, measured."""
