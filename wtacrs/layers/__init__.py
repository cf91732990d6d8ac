"""Exact layers that keep less for the backward pass. See ``save_less_``."""

from wtacrs.layers.convert import plain_after_all, restore_layers_, rounding_of, save_less_

__all__ = ["plain_after_all", "restore_layers_", "rounding_of", "save_less_"]
