"""Side-by-side measurements: ratios of CPU time, variants in turn, medians. RESULTS.md holds what was measured."""
