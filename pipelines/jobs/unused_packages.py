"""What workers import and never use."""

# transformers takes the first for assisted generation, accelerate the second for trackers of its own: a quarter of what
# a worker imports.
UNUSED = ("sklearn", "mlflow")  # packages that other libraries import and no job needs
