"""Imports that a worker can do without."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# transformers takes the first for assisted generation, accelerate the second for its own trackers: a quarter of what a
# worker imports, for what no worker does.
OPTIONAL = ("sklearn", "mlflow")


@contextmanager
def without_optional_imports() -> Iterator[None]:
    """Let packages that are imported in the block find these missing, as where they are not installed."""
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
