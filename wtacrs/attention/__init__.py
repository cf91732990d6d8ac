"""Attention that keeps less, through transformers' AttentionInterface."""
