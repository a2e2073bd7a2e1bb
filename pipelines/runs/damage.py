"""The faults of files that were cut off, or that other hands wrote, as one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from pft_core.errors import UserError

FAULTS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, yaml.YAMLError)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise a UserError that names the file if reading it in the block fails in any way."""
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        text = str(error).partition("\n")[0]
        raise UserError(f"{file}: damaged ({type(error).__name__}: {text})") from None
