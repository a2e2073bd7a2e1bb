"""Comparison of two evaluations of the same data."""
