"""Sparsity patterns: which masks are legal."""
