"""Bytes alive, a step's peak, who holds what, kernels launched."""
