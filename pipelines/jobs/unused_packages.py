"""Packages that workers would import and never use."""

# transformers imports the first for assisted generation, accelerate the second for its trackers. Together they are a
# quarter of a worker's import time.
UNUSED = ("sklearn", "mlflow")
