"""Benchmarks: side-by-side measurements whose variants take turns, with medians of ratios. Results: RESULTS.md."""
