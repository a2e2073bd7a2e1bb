"""Two evaluations of the same data, side by side."""
