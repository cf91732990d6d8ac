"""Sampled linear layers: from tensor functions to one autograd Function, one layer, one sampler."""
